"""Derive a machine's rates and its factors per shape from measured runs of plans.

Three runs of a few layers: `streamed` unpacks weights within products and has wide tiles of logits; `resident` finds every weight
unpacked and has narrow ones; `whole` unpacks each weight right before its product. Product time is measured on resident weights,
which are read from memory. What streaming takes is the excess of the streamed run over that; unpacking whole weights is timed in
the third run, with what their products take in addition. Where streaming takes as long as that, both are one number. All are taken
at one speed of the machine (see at_speed_of).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from mebp.executor.measure.job import Measurement
from mebp.models.graph import Graph
from mebp.models.op import Op, Part, Rate
from mebp.models.tensor import Weight
from mebp.models.tile import reads_in_place
from mebp.plan import Compute, Plan, Unpack
from mebp.sim.cost import NS, CostModel
from mebp.sim.device import SHAPE_FACTOR, Device
from mebp.sim.shape import head_tile_of, is_fused, shape_of, streamed_average, streamed_shape, unpacked_shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A plan of `graph` and the run that it had."""

    graph: Graph
    plan: Plan
    run: Measurement

    def ops(self) -> Iterator[tuple[Compute, Op, int]]:
        """Every op that was run, and its ns."""
        for instruction, ns in zip(self.plan.instructions, self.run.durations_ns, strict=True):
            if isinstance(instruction, Compute):
                yield instruction, self.graph.op[instruction.op], ns

    def unpacked(self) -> Iterator[tuple[Weight, int]]:
        """Every weight that was unpacked by itself, and its ns."""
        for instruction, ns in zip(self.plan.instructions, self.run.durations_ns, strict=True):
            if isinstance(instruction, Unpack):
                yield self.graph.weights[instruction.weight], ns

    def products(self) -> Iterator[tuple[Compute, Op, int]]:
        """Every product with a weight of a layer, and its ns."""
        return (found for found in self.ops() if found[1].kind.is_linear and found[1].weights)

    def head(self) -> tuple[Op, int, int]:
        """The head, its tile, and its ns."""
        return next((op, instruction.tile, ns) for instruction, op, ns in self.ops() if op.kind.makes_loss)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plans:
    """What calibration runs: weights streamed, with wide tiles of logits; all resident, with narrow ones; each unpacked whole."""

    graph: Graph
    streamed: Plan
    resident: Plan
    whole: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """The three runs that calibration reads."""

    streamed: Timed
    resident: Timed
    whole: Timed


@dataclass(frozen=True, slots=True, kw_only=True)
class Attained:
    """FLOP/s (MEMORY: bytes/s) by rate, and weights/s unpacked."""

    rates: Mapping[Rate, float]
    unpack: float


def at_speed_of(run: Measurement, other: Measurement, work: float = 1.0) -> Measurement:
    """A run as it would have been in `other`'s time, whose step has `work` times as many dense products: the floor of each says how
    fast the machine was.
    """
    factor = other.floor_s / (work * run.floor_s)
    return replace(run, durations_ns=tuple(round(ns * factor) for ns in run.durations_ns))


def attained(runs: Runs) -> Attained:
    """Products from the run with resident weights, attention and the rest from all, the head from the streamed one."""
    every = (runs.streamed, runs.resident, runs.whole)
    rates = {rate: _flop_rate((runs.resident,), rate) for rate in (Rate.FORWARD_PRODUCT, Rate.BACKWARD_PRODUCT)}
    alone = list(runs.whole.unpacked())
    unpack = sum(weight.count for weight, _ in alone) / sum(ns for _, ns in alone) * NS
    moved = [(op.kind.moved(op), ns) for one in every for _, op, ns in one.ops() if op.kind.part is Part.ELEMENTWISE]
    rates |= {
        Rate.ATTENTION: _flop_rate(every, Rate.ATTENTION),
        Rate.HEAD: _head_rate(runs.streamed, streaming_s_per_weight(runs.streamed, rates)),
        Rate.MEMORY: sum(nbytes for nbytes, _ in moved) / sum(ns for _, ns in moved) * NS,
    }
    return Attained(rates=rates, unpack=unpack)


def _flop_rate(runs: Iterable[Timed], rate: Rate) -> float:
    """FLOP/s over all ops of one rate."""
    found = [(op.kind.flops(op), ns) for one in runs for _, op, ns in one.ops() if op.kind.rate is rate]
    return sum(flops for flops, _ in found) / sum(ns for _, ns in found) * NS


def _head_rate(timed: Timed, streaming_s_per_weight: float) -> float:
    """FLOP/s of the head, less what streaming its weight takes."""
    head, tile, ns = timed.head()
    weight = timed.graph.weights[head.weights[0]]
    in_place = reads_in_place(weight.format, head.dims.itemsize)
    streaming_s = 0.0 if in_place else head.kind.passes(head, tile) * weight.count * streaming_s_per_weight
    return head.kind.flops(head) / max(ns / NS - streaming_s, ns / NS / 4)


def streaming_s_per_weight(timed: Timed, rates: Mapping[Rate, float]) -> float:
    """Seconds per weight that streamed products take above unpacked ones at `rates` (FLOP/s); 0 where noise is larger."""
    seconds, weights = 0.0, 0
    for instruction, op, ns in timed.products():
        if instruction.streamed:
            seconds += ns / NS - op.kind.flops(op) / rates[op.kind.rate]
            weights += timed.graph.weights[op.weights[0]].count
    return max(0.0, seconds) / max(1, weights)


def shape_factors(device: Device, runs: Runs) -> dict[str, float]:
    """What ops and weights of each shape take, times what the rates of `device` (which knows no shapes) say."""
    assert not device.shapes
    cost = CostModel(runs.resident.graph, device)
    spent_ns: dict[str, float] = defaultdict(float)
    expected_ns: dict[str, float] = defaultdict(float)

    def add(shape: str, taken: float, expected: float) -> None:
        spent_ns[shape] += taken
        expected_ns[shape] += expected

    for _, op, taken_ns in (*runs.resident.ops(), *_weightless(runs.streamed), *_weightless(runs.whole)):
        if not (op.kind.gathers or op.kind.makes_loss):
            add(shape_of(op), taken_ns, _own_ns(cost, op))
    own = {shape: spent_ns[shape] / expected for shape, expected in expected_ns.items() if expected}
    for weight, taken_ns in runs.whole.unpacked():
        add(unpacked_shape(weight), taken_ns, cost.unpack_ns(weight))
    workload = cost.graph.workload
    for timed in (runs.streamed, runs.whole):
        for instruction, op, taken_ns in timed.products():
            weight = cost.graph.weights[op.weights[0]]
            above_ns = taken_ns - own.get(shape_of(op), 1.0) * _own_ns(cost, op)
            if not instruction.streamed:
                add(unpacked_shape(weight), above_ns, 0)
                continue
            for shape in (streamed_shape(workload, weight), streamed_average(workload)):
                add(shape, above_ns, cost.unpack_ns(weight))
    for weight in {unpacked_shape(weight): weight for weight in cost.graph.weights.values()}.values():
        within, whole, unpack_ns = streamed_shape(workload, weight), unpacked_shape(weight), cost.unpack_ns(weight)
        if not (spent_ns[within] and expected_ns[whole]):
            continue
        within_ns, whole_ns = (unpack_ns * spent_ns[shape] / expected_ns[shape] for shape in (within, whole))
        if not is_fused(within_ns, whole_ns + cost.launch_ns):
            add(whole, spent_ns[within], expected_ns[within])
            spent_ns[within], expected_ns[within] = spent_ns[whole], expected_ns[whole]
    factors = _bounded({shape: spent_ns[shape] / expected for shape, expected in expected_ns.items() if expected})
    with_streaming = replace(device, shapes=factors)
    return dict(sorted((factors | _bounded(_head_factors(CostModel(cost.graph, with_streaming), runs))).items()))


def _bounded(factors: Mapping[str, float]) -> dict[str, float]:
    """Factors that a profile may hold: noise may make less than nothing of one."""
    low, high = SHAPE_FACTOR
    return {shape: min(high, max(low, factor)) for shape, factor in factors.items()}


def _weightless(timed: Timed) -> Iterator[tuple[Compute, Op, int]]:
    """Ops that take as long whatever becomes of weights."""
    return (found for found in timed.ops() if not found[1].weights)


def _own_ns(cost: CostModel, op: Op, tile: int = 0) -> int:
    """What the rates say of an op, its weight unpacked and its launches not counted."""
    kind = op.kind
    tiles = -(-op.dims.outs // tile) if tile else 0
    return cost.op_parts(op, streamed=(), tile=tile)[kind.part] - round(tiles * cost.head_tile_ns(op))


def _head_factors(cost: CostModel, runs: Runs) -> dict[str, float]:
    """The head's time is one part that goes with its products, and one for each tile; in one piece it is a case of its own."""
    taken_ns: dict[int, float] = {}
    for timed in (runs.streamed, runs.resident):
        head, tile, ns = timed.head()
        taken_ns[-(-head.dims.outs // tile)] = _without_unpacking(cost, head, tile, ns)
    num_wide, num_narrow = min(taken_ns), max(taken_ns)
    per_tile_ns = cost.head_tile_ns(head)
    if num_narrow > num_wide:
        per_tile_ns = max(0.0, (taken_ns[num_narrow] - taken_ns[num_wide]) / (num_narrow - num_wide))
    own_ns = _own_ns(cost, head, tile)
    found = {}
    products_ns = taken_ns[num_narrow] - num_narrow * per_tile_ns
    if num_narrow > 1 and products_ns > 0:  # else the tiles' time is noise, as it is where the head takes microseconds
        found = {head_tile_of(head): per_tile_ns / cost.head_sums_ns(head), shape_of(head, 1): products_ns / own_ns}
    head, tile, ns = runs.whole.head()
    found[shape_of(head, tile)] = (_without_unpacking(cost, head, tile, ns) - per_tile_ns) / own_ns
    return found


def _without_unpacking(cost: CostModel, head: Op, tile: int, ns: float) -> float:
    weight = cost.graph.weights[head.weights[0]]
    return ns - head.kind.passes(head, tile) * cost.streaming_parts(weight)[Part.UNPACK]
