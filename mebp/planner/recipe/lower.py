"""Turn a recipe into a plan: order the steps, find every tensor's lifetime, pack the arena, write the instructions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from mebp.models.graph import Graph
from mebp.models.tensor import TensorId, WeightId, align
from mebp.plan import SCHEMA_VERSION, Compute, Engine, Free, Instruction, Load, Place, Plan, Store, Unpack
from mebp.planner.pack.heuristic import Buffer, pack
from mebp.planner.recipe.flash import Life, extend_stored, hoist_loads, hoist_unpacking, turn_of
from mebp.planner.recipe.recipe import Recipe, Unpacking
from mebp.planner.recipe.schedule import Loaded, Run, Step, Stored, Unpacked, schedule, tensors_of
from mebp.sim.cost import CostModel
from mebp.sim.device import Device

SCRATCH = TensorId("scratch")


def lower(
    graph: Graph,
    device: Device,
    recipe: Recipe,
    *,
    name: str,
    budget_bytes: int,
    exact: bool = True,
    waits: bool = False,
) -> Plan:
    """Write `recipe` out as a plan for `graph`; its engines are those of `device`.

    With `waits`, transfers happen where the recipe has them: the processor waits for flash, and the arena is smaller.
    """
    cost = CostModel(graph, device)
    steps = _steps(graph, recipe, cost, waits=waits)
    resident = _resident_places(graph, recipe)
    floor = sum(place.nbytes for place in resident)
    lives = lifetimes(steps, graph, frozenset(place.tensor for place in resident))
    if not waits:
        extend_stored(lives, steps, cost)
    spaces = list(workspaces(steps, graph))
    buffers = [Buffer(start=life.start, end=life.last + 1, size=align(graph.tensors[life.tensor].nbytes)) for life in lives]
    buffers += spaces
    packing = pack(buffers)
    offsets = [floor + offset for offset in packing.offsets]
    places = {
        (life.tensor, life.start): Place(tensor=life.tensor, offset=offset, nbytes=buffer.size)
        for life, buffer, offset in zip(lives, buffers, offsets, strict=False)
    }
    scratch = {
        space.start: Place(tensor=SCRATCH, offset=offset, nbytes=space.size)
        for space, offset in zip(spaces, offsets[len(lives) :], strict=True)
    }
    writer = _Writer(engine=device.unpack_engine, places=places, scratch=scratch)
    return Plan(
        schema_version=SCHEMA_VERSION,
        name=name,
        exact=exact,
        signature=graph.signature,
        device=device.name,
        device_title=device.title,
        overrides=device.overrides,
        budget_bytes=budget_bytes,
        config=graph.config,
        workload=graph.workload,
        arena_bytes=floor + packing.height,
        resident=tuple(resident),
        instructions=tuple(writer.write(steps, lives)),
    )


def _steps(graph: Graph, recipe: Recipe, cost: CostModel, *, waits: bool) -> list[Step]:
    """A recipe's steps in order, loads (unless they are waited for) and concurrent unpacking as early as pays."""
    steps = schedule(graph, recipe)
    steps = steps if waits else hoist_loads(steps, cost, turn_of(steps))
    return hoist_unpacking(steps, cost)


def lifetimes(steps: Sequence[Step], graph: Graph, resident: frozenset[TensorId] = frozenset()) -> list[Life]:
    """Every stay of every tensor in the arena, in the order in which they begin."""
    lives: list[Life] = []
    current: dict[TensorId, Life] = {}
    for at, step in enumerate(steps):
        for tensor, new in tensors_of(step, graph):
            if tensor in resident:
                continue
            if new:
                current[tensor] = Life(tensor=tensor, start=at, last=at)
                lives.append(current[tensor])
            elif tensor in current:
                current[tensor].last = at
    return lives


def step_scratch(step: Step, graph: Graph) -> int:
    """Bytes of scratch that a step takes, aligned."""
    match step:
        case Run(op=op, streamed=streamed, tile=tile):
            return graph.scratch(op, streamed=streamed, tile=tile).nbytes
        case Unpacked() | Stored() | Loaded():
            return 0


def workspaces(steps: Sequence[Step], graph: Graph) -> Iterator[Buffer]:
    """Scratch of each step that takes some."""
    for at, step in enumerate(steps):
        size = step_scratch(step, graph)
        if size:
            yield Buffer(start=at, end=at + 1, size=size)


def live_profile(steps: Sequence[Step], graph: Graph) -> list[int]:
    """Live bytes (scratch included) while each step runs, before packing."""
    change = [0] * (len(steps) + 1)
    for life in lifetimes(steps, graph):
        size = align(graph.tensors[life.tensor].nbytes)
        change[life.start] += size
        change[life.last + 1] -= size
    for space in workspaces(steps, graph):
        change[space.start] += space.size
        change[space.end] -= space.size
    return list(accumulate(change[:-1]))


def _resident_places(graph: Graph, recipe: Recipe) -> list[Place]:
    places: list[Place] = []
    offset = 0
    for weight in graph.weights:
        if recipe.unpacks(weight) is Unpacking.RESIDENT:
            tensor = TensorId(weight)
            places.append(Place(tensor=tensor, offset=offset, nbytes=align(graph.tensors[tensor].nbytes)))
            offset = places[-1].end
    return places


@dataclass(frozen=True, slots=True, kw_only=True)
class _Writer:
    """Writes steps as instructions once every stay has its place."""

    engine: Engine
    places: dict[tuple[TensorId, int], Place]
    scratch: dict[int, Place]

    def write(self, steps: Sequence[Step], lives: list[Life]) -> list[Instruction]:
        over: dict[int, list[TensorId]] = {}
        for life in lives:
            over.setdefault(life.last, []).append(life.tensor)
        written: list[Instruction] = []
        for at, step in enumerate(steps):
            written.append(self._instruction(at, step))
            written += [Free(tensor=tensor) for tensor in over.get(at, ())]
        return written

    def _instruction(self, at: int, step: Step) -> Instruction:
        match step:
            case Run(op=op):
                unpacked = (TensorId(weight) for weight in op.weights if weight not in step.streamed)
                updates = tuple(op.updates.values())
                return Compute(
                    op=op.id,
                    recompute=step.recompute,
                    reads=(*(t for t in op.reads.values() if t not in updates), *unpacked),
                    writes=tuple(self.places[tensor, at] for tensor in op.writes.values()),
                    updates=updates,
                    scratch=self.scratch.get(at),
                    streamed=step.streamed,
                    tile=step.tile,
                )
            case Unpacked(weight=weight):
                place = self.places[TensorId(weight), at]
                return Unpack(weight=WeightId(weight), place=place, engine=self.engine)
            case Stored(tensor=tensor):
                return Store(tensor=tensor)
            case Loaded(tensor=tensor):
                return Load(place=self.places[tensor, at])
