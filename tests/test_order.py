"""The execution rule, against a slow reading of it: who touched these bytes before, compared pair by pair."""

import pytest

from mebp.models.graph import Graph
from mebp.models.tensor import TensorId
from mebp.order import predecessors
from mebp.plan import Compute, Engine, Free, Load, Place, Plan, Store, Unpack
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.sim.device import Device
from mebp.sim.profile import override

Extent = tuple[int, int]


def extents(plan: Plan) -> list[tuple[list[Extent], list[Extent]]]:
    """For every instruction the stretches of the arena that it (touches, writes), a place looked up where it is named."""
    live: dict[TensorId, Place] = {place.tensor: place for place in plan.resident}
    found: list[tuple[list[Extent], list[Extent]]] = []
    for i in plan.instructions:
        match i:
            case Compute():
                read = [live[tensor] for tensor in (*i.reads, *i.updates)]
                written = [*i.writes, *([i.scratch] if i.scratch else []), *(live[tensor] for tensor in i.updates)]
                live |= {place.tensor: place for place in i.writes}
            case Unpack() | Load():
                read, written = [], [i.place]
                live[i.place.tensor] = i.place
            case Store():
                read, written = [live[i.tensor]], []
            case Free():
                read, written = [], []
                del live[i.tensor]
        touched = [(p.offset, p.end) for p in (*read, *written)]
        found.append((touched, [(p.offset, p.end) for p in written]))
    return found


def overlap(a: list[Extent], b: list[Extent]) -> bool:
    return any(low < end and start < high for low, high in a for start, end in b)


@pytest.mark.parametrize("name", ["mebp", "mesp", "sqrt", "greedy"])
def test_every_byte_is_written_after_all_who_touched_it_before(name: str, small_graph: Graph, device: Device) -> None:
    concurrent = override(device, ["runtime.unpack_beside=1"])
    plan = STRATEGIES[name].plan(small_graph, concurrent, 10**9)
    waits = predecessors(plan)
    reached: list[set[int]] = []  # all instructions that have ended before each one starts
    for before in waits:
        reached.append(set(before).union(*(reached[other] for other in before)))
    stretches = extents(plan)
    for index, (_, written) in enumerate(stretches):
        for other in range(index):
            if overlap(stretches[other][0], written):
                assert other in reached[index], (plan.instructions[other], plan.instructions[index])


def test_an_update_waits_for_a_store_that_still_reads(small_graph: Graph, device: Device) -> None:
    plan = STRATEGIES["keep-all"].plan(small_graph, device, 10**9)
    at = next(n for n, i in enumerate(plan.instructions) if isinstance(i, Compute) and i.op == "3.norm2.backward")
    listed = (*plan.instructions[:at], Store(tensor=TensorId("stream.grad")), *plan.instructions[at:])
    waits = predecessors(Plan(**{**{f: getattr(plan, f) for f in plan.__dataclass_fields__}, "instructions": listed}))
    assert listed[at].engine is Engine.STORE
    assert at in waits[at + 1]
