"""Give buffers addresses within a capacity where the heuristic falls short: the search of search.py, then CP-SAT.

In CP-SAT buffers that live together at some moment must lie apart: one no-overlap rule per set of buffers alive together that no
larger one contains. A second form, rectangles in time and address that do not overlap, decides other instances; both get their
share of time.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import gcd

from ortools.sat.python import cp_model

from mebp.errors import InfeasibleBudget, NoPlanInTime
from mebp.planner.effort import Effort
from mebp.planner.pack.heuristic import Buffer, Packing, live_peak, pack
from mebp.planner.pack.search import search_offsets

MOST_BUFFERS = 2_000  # larger models take longer to write than there is time


def pack_within(buffers: list[Buffer], capacity: int, effort: Effort) -> Packing:
    """Place `buffers` within `capacity` bytes; InfeasibleBudget where none can, NoPlanInTime where none was found."""
    begin = time.monotonic()
    least = live_peak(buffers)
    if least > capacity:
        raise InfeasibleBudget(f"does not fit {capacity} bytes: {least} are live at once: raise `capacity`", capacity, least)
    quick = pack(buffers, wall_s=effort.wall_s)
    if quick.height <= capacity:
        return quick
    for part, attempt in ATTEMPTS:
        left_s = begin + effort.wall_s - time.monotonic()
        if left_s <= 0 or effort.stop.asked:
            break
        offsets = attempt(buffers, capacity, replace(effort, wall_s=part * left_s))
        if offsets is not None:
            height = max(offset + buffer.size for offset, buffer in zip(offsets, buffers, strict=True))
            return Packing(offsets=offsets, height=height, live_peak=least)
    raise NoPlanInTime(
        f"no packing within {capacity} bytes found in {time.monotonic() - begin:.1f} s"
        f" (one of {quick.height} is known, {least} are live at once): raise `time_limit` or `capacity`"
    )


def _offsets(buffers: Sequence[Buffer], capacity: int, effort: Effort, *, rectangles: bool, workers: int) -> tuple[int, ...] | None:
    if len(buffers) > MOST_BUFFERS:
        return None
    unit = gcd(capacity, *(buffer.size for buffer in buffers))
    model = cp_model.CpModel()
    starts = [model.new_int_var(0, (capacity - buffer.size) // unit, "") for buffer in buffers]
    spans = [model.new_fixed_size_interval_var(start, b.size // unit, "") for start, b in zip(starts, buffers, strict=True)]
    if rectangles:
        lives = [model.new_fixed_size_interval_var(b.start, b.end - b.start, "") for b in buffers]
        model.add_no_overlap_2d(lives, spans)
    else:
        for together in _alive_together(buffers):
            model.add_no_overlap([spans[number] for number in together])
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = workers
    solver.parameters.random_seed = effort.seed
    solver.parameters.max_time_in_seconds = effort.wall_s
    solver.parameters.catch_sigint_signal = False
    status = effort.stop.run(solver, model)
    if status == cp_model.INFEASIBLE:
        raise InfeasibleBudget(f"does not fit {capacity} bytes: no packing exists: raise `capacity`", capacity, live_peak(buffers))
    if status == cp_model.UNKNOWN:
        return None
    return tuple(solver.value(start) * unit for start in starts)


def _alive_together(buffers: Sequence[Buffer]) -> list[list[int]]:
    """The sets of buffers alive at one moment that are not part of another such set."""
    moments = sorted({buffer.start for buffer in buffers})
    sets = [frozenset(n for n, b in enumerate(buffers) if b.start <= moment < b.end) for moment in moments]
    largest = [found for found in dict.fromkeys(sets) if not any(found < other for other in sets)]
    return [sorted(found) for found in largest]


# (part of the time that is left, attempt); kinds of CP-SAT's workers matter more than cores, and which form and number decide an
# instance differs
ATTEMPTS: tuple[tuple[float, Callable[[list[Buffer], int, Effort], tuple[int, ...] | None]], ...] = (
    (0.4, search_offsets),
    (0.4, partial(_offsets, rectangles=False, workers=2)),
    (0.5, partial(_offsets, rectangles=True, workers=8)),
    (1.0, partial(_offsets, rectangles=False, workers=8)),
)
