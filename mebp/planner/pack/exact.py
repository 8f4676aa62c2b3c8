"""Give buffers addresses within a capacity, with CP-SAT, where the heuristic falls short.

Buffers that live together at some moment must lie apart: one no-overlap rule per set of buffers alive together that no
larger one contains. A second form, rectangles in time and address that do not overlap, decides other instances; both get their
share of time.
"""

from collections.abc import Sequence
from math import gcd

from ortools.sat.python import cp_model

from mebp.errors import InfeasibleBudget, NoPlanInTime
from mebp.planner.effort import Effort
from mebp.planner.pack.heuristic import Buffer, Packing, live_peak, pack

# (rectangles?, workers): kinds of worker matter more than cores, and which form and number decide an instance differs
TRIES = ((False, 8), (False, 2), (True, 8))


def pack_within(buffers: list[Buffer], capacity: int, effort: Effort) -> Packing:
    """Place `buffers` within `capacity` bytes; InfeasibleBudget where none can, NoPlanInTime where none was found."""
    least = live_peak(buffers)
    if least > capacity:
        raise InfeasibleBudget(f"does not fit {capacity} bytes: {least} are live at once: raise `capacity`", capacity, least)
    quick = pack(buffers)
    if quick.height <= capacity:
        return quick
    for rectangles, workers in TRIES:
        offsets = _offsets(buffers, capacity, effort, rectangles=rectangles, workers=workers)
        if offsets is not None:
            height = max(offset + buffer.size for offset, buffer in zip(offsets, buffers, strict=True))
            return Packing(offsets=offsets, height=height, live_peak=least)
    raise NoPlanInTime(
        f"no packing within {capacity} bytes found in {effort.wall_s:g} s"
        f" (one of {quick.height} is known, {least} are live at once): raise `time_limit` or `capacity`"
    )


def _offsets(buffers: Sequence[Buffer], capacity: int, effort: Effort, *, rectangles: bool, workers: int) -> tuple[int, ...] | None:
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
    solver.parameters.max_time_in_seconds = effort.wall_s / len(TRIES)
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
