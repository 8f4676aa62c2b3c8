"""The effect of changing one setting: the least budget, and the least step time that the budget at hand allows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from mebp.errors import InputError, NoPlanInTime
from mebp.models.build import build_graph
from mebp.models.format import BY_SIZE, WeightFormats, weight_formats
from mebp.models.graph import Graph
from mebp.models.workload import MAX_TOKENS, Workload
from mebp.planner.effort import Effort
from mebp.planner.tiling import tilings
from mebp.sim.device import Device
from mebp.sim.profile import override

SEQUENCE, SEQUENCE_UNIT = "seq_len", 32
NEAR = 0.03  # relative: a sequence longer by so much is not looked for
FIRST_CAP = 256e6  # bytes per step, offered where none may be written
WRITE_CAP = "runtime.flash_write_cap_bytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One setting (see errors.py on their names) and its new value."""

    setting: str
    value: int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One change (None: none at all), the least budget under it, a bound on the step time at the budget (None: it is below the
    least), and the compressed weights.
    """

    change: Change | None
    least_budget_bytes: int
    best_step_ns: int | None
    weight_file_bytes: int


def knobs(
    graph: Graph,
    device: Device,
    budget_bytes: int,
    effort: Effort,
    progress: Callable[[Change | None], None] | None = None,
    *,
    only_other: bool = False,
) -> tuple[Knob, ...]:
    """Solve for every change; the first is no change at all. With `only_other` those of the sequence, and none, are left out. When
    the time is over or a stop is asked for, it ends with the knobs so far.
    """
    found: list[Knob] = []
    for change, workload, changed in _changes(graph.workload, device):
        if effort.over:
            break
        if only_other and (change is None or change.setting == SEQUENCE):
            continue
        if progress:
            progress(change)
        try:
            found.append(_knob(change, build_graph(graph.config, workload), changed, budget_bytes, effort))
        except InputError:  # the model cannot take this change
            continue
        except NoPlanInTime:
            break  # nor will the next search find one
    if found and not only_other and not effort.over:
        longest = longest_sequence(graph, device, budget_bytes, found[0].least_budget_bytes, effort)
        asked = Change(setting=SEQUENCE, value=graph.workload.seq_len)
        found += [longest] if longest and longest.change != asked else []
    return tuple(found)


def _knob(change: Change | None, graph: Graph, device: Device, budget_bytes: int, effort: Effort) -> Knob:
    step = tilings(graph, device, effort)
    least = step.footprint(step.least(budget_bytes, effort))
    best = step.best_step_ns(budget_bytes) if budget_bytes >= least else None
    return Knob(change=change, least_budget_bytes=least, best_step_ns=best, weight_file_bytes=_file_bytes(graph))


def _file_bytes(graph: Graph) -> int:
    return sum(weight.nbytes for weight in graph.weights.values())


def longest_sequence(graph: Graph, device: Device, budget_bytes: int, least_bytes: int, effort: Effort) -> Knob | None:
    """The longest sequence found for which something fits, a multiple of SEQUENCE_UNIT; None where not even one unit does.

    `least_bytes` is what the graph's own length needs: where that fits, longer ones are tried, twice as long each. Least budgets
    are nearly straight in the length: the next to try is where the line between the nearest that fits and the nearest that does
    not meets the budget.
    """
    workload = graph.workload

    def attempt(length: int) -> None:
        step = tilings(_of_length(graph, length), device, effort)
        nbytes = step.footprint(step.least(budget_bytes, effort))
        (fits if nbytes <= budget_bytes else not_fit)[length] = nbytes

    most = MAX_TOKENS // workload.batch_size // SEQUENCE_UNIT * SEQUENCE_UNIT
    fits = {workload.seq_len: least_bytes} if least_bytes <= budget_bytes else {}
    not_fit = {} if fits else {workload.seq_len: least_bytes}
    try:
        if not fits and workload.seq_len > SEQUENCE_UNIT:
            attempt(SEQUENCE_UNIT)
        while fits and not not_fit and max(fits) < most and not effort.over:
            attempt(min(most, -(-2 * max(fits) // SEQUENCE_UNIT) * SEQUENCE_UNIT))
        while fits and not_fit and not effort.over:
            low, high = max(fits), min(not_fit)
            if high - low <= max(SEQUENCE_UNIT, high * NEAR):
                break
            share = (budget_bytes - fits[low]) / max(1, not_fit[high] - fits[low])
            guess = low + int(share * (high - low)) // SEQUENCE_UNIT * SEQUENCE_UNIT
            attempt(min(max(guess, low + SEQUENCE_UNIT), high - 1 - (high - 1) % SEQUENCE_UNIT))
    except NoPlanInTime:
        pass  # the best so far
    if not fits:
        return None
    longest = _of_length(graph, length := max(fits))
    try:
        best_step_ns = tilings(longest, device, effort).best_step_ns(budget_bytes)
    except NoPlanInTime:
        best_step_ns = 0  # nothing is known of it
    return Knob(
        change=Change(setting=SEQUENCE, value=length),
        least_budget_bytes=fits[length],
        best_step_ns=best_step_ns,
        weight_file_bytes=_file_bytes(longest),
    )


def _of_length(graph: Graph, length: int) -> Graph:
    return build_graph(graph.config, replace(graph.workload, seq_len=length))


def _changes(workload: Workload, device: Device) -> Iterator[tuple[Change | None, Workload, Device]]:
    """Changes, and the workload and device that they make: halves of what is large, other groups, twice the write cap and none."""
    yield None, workload, device
    for name, lowest in (("seq_len", 32), ("batch_size", 1)):
        half = getattr(workload, name) // 2
        if half >= lowest:
            yield Change(setting=name, value=half), replace(workload, **{name: half}), device
    half = workload.lora.rank // 2
    if half:
        yield Change(setting="rank", value=half), replace(workload, lora=replace(workload.lora, rank=half)), device
    for name in _neighbours(workload.weights):
        yield Change(setting="weights", value=name), replace(workload, weights=weight_formats(name)), device
    cap = device.runtime.flash_write_cap_bytes
    for other in sorted({0.0, 2 * cap or FIRST_CAP} - {cap}):
        yield Change(setting="max_flash_write", value=int(other)), workload, override(device, [f"{WRITE_CAP}={other}"])


def _neighbours(weights: WeightFormats) -> list[str]:
    """What is next in size to one."""
    name = weights.name if weights.name in BY_SIZE else weights.default.name
    if name not in BY_SIZE:
        return []
    at = BY_SIZE.index(name)
    return [*BY_SIZE[max(0, at - 1) : at], *BY_SIZE[at + 1 : at + 2]]
