"""Transfers that the processor does not wait for: loads start early enough, and bytes that are still being written are not reused.

Both are worked out on a clock that counts the processor's own time only, so without other waits the flash keeps to it exactly.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mebp.models.tensor import TensorId
from mebp.planner.recipe.schedule import Loaded, Run, Step, Stored, Unpacked
from mebp.sim.cost import CostModel


@dataclass(slots=True)
class Life:
    """One stay of a tensor in the arena: written at step `start`, last touched at `last`."""

    tensor: TensorId
    start: int
    last: int


def turn_of(steps: list[Step]) -> int:
    """Where backward begins: after the head, or 0 where there is none."""
    return next((at for at, step in enumerate(steps) if isinstance(step, Run) and step.op.kind.makes_loss), -1) + 1


def hoist_loads(steps: list[Step], cost: CostModel, turn: int) -> list[Step]:
    """Move each load up to where the flash, one load after another, has it done when its reader starts.

    Worked out from the last load to the first. No load moves before step `turn`, where backward begins: memory is fullest there.
    """
    begins = start_times(steps, cost)
    before: dict[int, list[Loaded]] = {}
    free = begins[-1]
    for at in range(len(steps) - 1, -1, -1):
        step = steps[at]
        if isinstance(step, Loaded):
            free = min(free, begins[at]) - cost.load_ns(cost.graph.tensors[step.tensor].nbytes)
            place = min(at, max(turn, bisect_right(begins, free) - 1))
            before.setdefault(place, []).insert(0, step)
    return _moved(steps, before, Loaded)


def _moved(steps: list[Step], before: Mapping[int, Sequence[Step]], kind: type[Loaded] | type[Unpacked]) -> list[Step]:
    """The steps with those of one kind put before others, by number."""
    moved: list[Step] = []
    for at, step in enumerate(steps):
        moved += before.get(at, [])
        if not isinstance(step, kind):
            moved.append(step)
    return moved


def hoist_unpacking(steps: list[Step], cost: CostModel) -> list[Step]:
    """Move each unpacking up to where its engine, one weight after another, has it done when its reader starts.

    Only where unpacking has an engine of its own. At most two weights are unpacked ahead at a time: none moves further up than
    right before the reader of the weight before it, nor to where another copy of the same weight is live.
    """
    if not cost.device.unpacks_concurrently:
        return steps
    begins = start_times(steps, cost)
    unpacked = [at for at, step in enumerate(steps) if isinstance(step, Unpacked)]
    before: dict[int, list[Unpacked]] = {}
    free = begins[-1]
    for previous, at in reversed(list(zip([-1, *unpacked], unpacked, strict=False))):
        step = steps[at]
        assert isinstance(step, Unpacked)
        free = min(free, begins[at]) - cost.unpack_ns(cost.graph.weights[step.weight]) - cost.launch_ns
        alike = previous >= 0 and steps[previous] == step
        before[min(at, max(previous + 1 + alike, bisect_right(begins, free) - 1))] = [step]
    return _moved(steps, before, Unpacked)


def extend_stored(lives: list[Life], steps: list[Step], cost: CostModel) -> None:
    """Let every stored tensor stay until the flash, one store after another, has written it."""
    begins = start_times(steps, cost)
    by_tensor: dict[TensorId, list[Life]] = {}
    for life in lives:
        by_tensor.setdefault(life.tensor, []).append(life)
    free = 0
    for at, step in enumerate(steps):
        if isinstance(step, Stored):
            free = max(free, begins[at]) + cost.store_ns(cost.graph.tensors[step.tensor].nbytes)
            life = next(life for life in by_tensor[step.tensor] if life.start <= at <= life.last)
            later = [other.start - 1 for other in by_tensor[step.tensor] if other.start > life.last]
            life.last = max(life.last, min([bisect_left(begins, free) - 1, len(steps) - 1, *later]))


def first_wait_ns(steps: list[Step], cost: CostModel, lead_ns: int) -> int:
    """Time that the last layer's backward waits for its first loads: loads start when the head ends, the layer `lead_ns` later."""
    clock, flash, waited = lead_ns, 0, 0
    ready: dict[TensorId, int] = {}
    for step in steps:
        match step:
            case Loaded(tensor=tensor):
                flash += cost.load_ns(cost.graph.tensors[tensor].nbytes)
                ready[tensor] = flash
            case Run(op=op):
                wait = max([0, *(ready.get(tensor, 0) - clock for tensor in op.touched)])
                waited, clock = waited + wait, clock + wait + _processor_ns(step, cost)
            case _:
                clock += _processor_ns(step, cost)
    return waited


def start_times(steps: list[Step], cost: CostModel) -> list[int]:
    """When the processor starts each step if it never waits, ns, and at the end when it is done."""
    begins = [0]
    for step in steps:
        begins.append(begins[-1] + _processor_ns(step, cost))
    return begins


def _processor_ns(step: Step, cost: CostModel) -> int:
    match step:
        case Run(op=op, streamed=streamed, tile=tile):
            return cost.op_ns(op, streamed=streamed, tile=tile)
        case Unpacked(weight=weight) if not cost.device.unpacks_concurrently:
            return cost.unpack_ns(cost.graph.weights[weight]) + cost.launch_ns
        case _:
            return 0
