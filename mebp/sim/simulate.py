"""Predict step time and peak memory of a plan on a device. No torch, no planner: the plan's own rule, and the cost table.

The peak is the plan's: arena, what lives outside it, and the device's runtime baseline. Breakdowns sum to their totals exactly.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mebp.models.graph import Graph
from mebp.models.op import Part
from mebp.models.tensor import Role, TensorId, Weight
from mebp.order import predecessors
from mebp.plan import Compute, Engine, Free, Load, Place, Plan, Store, Unpack
from mebp.sim.cost import CostModel
from mebp.sim.device import Device
from mebp.sim.footprint import footprint_bytes, outside_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One instruction on the timeline, in nanoseconds from the start of the step."""

    index: int
    engine: Engine
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Bytes of the arena that are live while instruction `index` runs."""

    index: int
    live_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a plan costs on a device; times in ns, sizes in bytes.

    `peak_breakdown` sums to `peak_bytes`, `time_breakdown` to `step_ns`, `arena_breakdown` to the plan's arena.
    `peak_tensors` are the live bytes of each tensor (and of scratch) at the peak. File-backed bytes (`weight_file_bytes`,
    `spill_bytes`) are not part of the peak.
    """

    peak_bytes: int
    peak_breakdown: Mapping[str, int]
    arena_breakdown: Mapping[str, int]
    peak_index: int
    peak_tensors: Mapping[TensorId, int]
    step_ns: int
    time_breakdown: Mapping[Part, int]
    busy_ns: Mapping[Engine, int]
    recompute_ns: int
    unpack_ns: int
    unpacked_weights: int
    flash_read_bytes: int
    flash_written_bytes: int
    spill_bytes: int
    weight_file_bytes: int
    timeline: tuple[Slice, ...]
    memory: tuple[Moment, ...]

    def __repr__(self) -> str:
        return f"<Prediction: {self.peak_bytes} bytes, {self.step_ns} ns per step>"


def simulate(plan: Plan, graph: Graph, device: Device) -> Prediction:
    """Predict what running `plan` takes; it must be valid for `graph` (see check)."""
    cost = CostModel(graph, device)
    timeline = _timeline(plan, cost, predecessors(plan))
    memory, peak_index, peak_tensors = _memory(plan)
    arena_breakdown = _by_role(plan, peak_tensors, graph)
    step_ns = max((piece.end_ns for piece in timeline), default=0)
    outside = outside_bytes(graph, device)
    own_bytes = sum((outside | arena_breakdown).values())
    kept = {"kept as published": footprint_bytes(plan.arena_bytes, graph, device) - own_bytes}
    peak_breakdown = {name: nbytes for name, nbytes in (outside | kept | arena_breakdown).items() if nbytes}
    sizes = {tid: tensor.nbytes for tid, tensor in graph.tensors.items()}
    return Prediction(
        peak_bytes=sum(peak_breakdown.values()),
        peak_breakdown=peak_breakdown,
        arena_breakdown=arena_breakdown,
        peak_index=peak_index,
        peak_tensors=peak_tensors,
        step_ns=step_ns,
        time_breakdown=_time_breakdown(plan, cost, timeline, step_ns),
        busy_ns=_busy(timeline),
        recompute_ns=sum(cost.duration(i) for i in plan.instructions if isinstance(i, Compute) and i.recompute),
        unpack_ns=sum(cost.parts(i).get(Part.UNPACK, 0) for i in plan.instructions),
        unpacked_weights=sum(weight.count for weight in _weights_read(plan, graph)),
        flash_read_bytes=sum(sizes[i.place.tensor] for i in plan.instructions if isinstance(i, Load))
        + int(cost.uncached_fraction * sum(weight.nbytes for weight in _weights_read(plan, graph))),
        flash_written_bytes=sum(sizes[i.tensor] for i in plan.instructions if isinstance(i, Store)),
        spill_bytes=sum(sizes[tensor] for tensor in {i.tensor for i in plan.instructions if isinstance(i, Store)}),
        weight_file_bytes=sum(weight.nbytes for weight in graph.weights.values()),
        timeline=timeline,
        memory=memory,
    )


def step_ends(plan: Plan, cost: CostModel, before: Sequence[tuple[int, ...]]) -> list[int]:
    """When each instruction ends, ns from the start of the step; `before` are its predecessors (see order.py)."""
    ends: list[int] = []
    for instruction, others in zip(plan.instructions, before, strict=True):
        ends.append(max((ends[other] for other in others), default=0) + cost.duration(instruction))
    return ends


def _timeline(plan: Plan, cost: CostModel, before: Sequence[tuple[int, ...]]) -> tuple[Slice, ...]:
    ends = step_ends(plan, cost, before)
    return tuple(
        Slice(index=index, engine=instruction.engine, start_ns=ends[index] - cost.duration(instruction), end_ns=ends[index])
        for index, instruction in enumerate(plan.instructions)
        if not isinstance(instruction, Free)
    )


def _time_breakdown(plan: Plan, cost: CostModel, timeline: tuple[Slice, ...], step_ns: int) -> dict[Part, int]:
    """The compute engine's busy time by part; the rest of the step is waiting for unpacking, where that has its own engine, or
    flash.
    """
    found = dict.fromkeys(Part, 0)
    for piece in timeline:
        if piece.engine is Engine.COMPUTE:
            for part, ns in cost.parts(plan.instructions[piece.index]).items():
                found[part] += ns
    waiting = step_ns - sum(found.values())
    stores = any(piece.engine in (Engine.STORE, Engine.LOAD) for piece in timeline)
    found[Part.FLASH if stores else Part.WAIT] += waiting
    return {part: ns for part, ns in found.items() if ns}


def _busy(timeline: tuple[Slice, ...]) -> dict[Engine, int]:
    found: dict[Engine, int] = {}
    for piece in timeline:
        found[piece.engine] = found.get(piece.engine, 0) + piece.end_ns - piece.start_ns
    return found


def _weights_read(plan: Plan, graph: Graph) -> Iterator[Weight]:
    """Weights decompressed per step, once for each use, gathered embedding rows left out."""
    for instruction in plan.instructions:
        match instruction:
            case Unpack():
                yield graph.weights[instruction.weight]
            case Compute(streamed=streamed):
                op = graph.op[instruction.op]
                for weight in () if op.kind.gathers else streamed:
                    yield from [graph.weights[weight]] * (op.uses(weight) * op.kind.passes(op, instruction.tile))


SCRATCH = TensorId("scratch")
GAPS = "gaps between tensors"


def _memory(plan: Plan) -> tuple[tuple[Moment, ...], int, dict[TensorId, int]]:
    """Live bytes while each instruction runs, where they peak, and what is live there."""
    live: dict[TensorId, Place] = {place.tensor: place for place in plan.resident}
    live_bytes = sum(place.nbytes for place in plan.resident)
    moments: list[Moment] = []
    peak, peak_index = -1, 0
    at_peak: dict[TensorId, int] = {}
    for index, instruction in enumerate(plan.instructions):
        scratch = 0
        match instruction:
            case Free():
                live_bytes -= live.pop(instruction.tensor).nbytes
                continue
            case Compute():
                written, scratch = instruction.writes, instruction.scratch.nbytes if instruction.scratch else 0
            case Unpack() | Load():
                written = (instruction.place,)
            case Store():
                written = ()
        live |= {place.tensor: place for place in written}
        live_bytes += sum(place.nbytes for place in written)
        moments.append(Moment(index=index, live_bytes=live_bytes + scratch))
        if live_bytes + scratch > peak:
            peak, peak_index = live_bytes + scratch, index
            at_peak = {place.tensor: place.nbytes for place in live.values()} | ({SCRATCH: scratch} if scratch else {})
    return tuple(moments), peak_index, at_peak


def _by_role(plan: Plan, live: Mapping[TensorId, int], graph: Graph) -> dict[str, int]:
    """The arena by role at the peak, gaps named, so that it sums."""
    found: dict[str, int] = {role.value: 0 for role in Role} | {SCRATCH: 0}
    for tensor, nbytes in live.items():
        found[SCRATCH if tensor == SCRATCH else graph.tensors[tensor].role.value] += nbytes
    found[GAPS] = plan.arena_bytes - sum(live.values())
    return {name: nbytes for name, nbytes in found.items() if nbytes}
