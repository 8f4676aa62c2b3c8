"""What runs of plans say of a machine: the rate that every part of a step attains, and what each shape takes beside it.

Three runs of a few layers: `streamed` unpacks weights within products and has wide tiles of logits; `resident` finds every weight
unpacked and has narrow ones; `whole` unpacks each weight right before its product. What a product takes is what it takes on a
resident weight, which has to come from memory; what unpacking takes is what the other two take above that. All are taken at one
speed of the machine (see at_speed_of).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from mebp.executor.measure.worker import Measurement
from mebp.models.graph import Graph
from mebp.models.kind import ATTENTION_KINDS, KINDS, LINEAR_KINDS, head_passes
from mebp.models.op import Op, Part
from mebp.models.scratch import reads_in_place
from mebp.models.tensor import Weight
from mebp.plan import Compute, Plan, Unpack
from mebp.sim.cost import NS, CostModel
from mebp.sim.device import SHAPE_FACTOR, Device
from mebp.sim.shape import head_tile_of, shape_of, unpacked_shape


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
        return (found for found in self.ops() if found[1].kind in LINEAR_KINDS and found[1].weights)

    def head(self) -> tuple[Op, int, int]:
        """The head, its tile, and its ns."""
        return next((op, instruction.tile, ns) for instruction, op, ns in self.ops() if op.kind == "head")


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """The three runs that calibration reads."""

    streamed: Timed
    resident: Timed
    whole: Timed


@dataclass(frozen=True, slots=True, kw_only=True)
class Attained:
    """Rates: FLOP/s of products in forward and backward, of attention and the head; bytes/s of the rest; weights/s unpacked."""

    product: float
    backward: float
    attention: float
    head: float
    bandwidth: float
    unpack: float


def at_speed_of(run: Measurement, other: Measurement) -> Measurement:
    """A run as it would have been in `other`'s time: the floor of each says how fast the machine was."""
    factor = other.floor_s / run.floor_s
    return replace(run, durations_ns=tuple(round(ns * factor) for ns in run.durations_ns))


def attained(runs: Runs) -> Attained:
    """Products from the run with resident weights, attention and the rest from all, the head from the streamed one."""
    product, backward = (_flop_rate((runs.resident,), kind) for kind in LINEAR_KINDS)
    extra_s, streamed_weights = streaming(runs.streamed, {"linear": product, "linear_backward": backward})
    alone = list(runs.whole.unpacked())
    unpack = (sum(weight.count for weight, _ in alone) + streamed_weights) / (sum(ns for _, ns in alone) / NS + extra_s)
    every = (runs.streamed, runs.resident, runs.whole)
    head, tile, ns = runs.streamed.head()
    weight = runs.streamed.graph.weights[head.weights[0]]
    in_place = reads_in_place(weight.format, head.dims.itemsize)
    unpacking_s = 0.0 if in_place else head_passes(head, tile) * weight.count / unpack
    moved = [(KINDS[op.kind].moved(op), ns) for one in every for _, op, ns in one.ops() if KINDS[op.kind].part is Part.ELEMENTWISE]
    return Attained(
        product=product,
        backward=backward,
        attention=_flop_rate(every, *ATTENTION_KINDS),
        head=KINDS["head"].flops(head) / max(ns / NS - unpacking_s, ns / NS / 4),
        bandwidth=sum(nbytes for nbytes, _ in moved) / sum(ns for _, ns in moved) * NS,
        unpack=unpack,
    )


def _flop_rate(runs: Iterable[Timed], *kinds: str) -> float:
    """FLOP/s over all ops of some kinds."""
    found = [(KINDS[op.kind].flops(op), ns) for one in runs for _, op, ns in one.ops() if op.kind in kinds]
    return sum(flops for flops, _ in found) / sum(ns for _, ns in found) * NS


def streaming(timed: Timed, rates: dict[str, float]) -> tuple[float, int]:
    """Seconds that streamed products take above unpacked ones at `rates` (FLOP/s), and the weights that they unpack: none of
    either where noise has eaten the difference.
    """
    seconds, weights = 0.0, 0
    for instruction, op, ns in timed.products():
        if instruction.streamed:
            seconds += ns / NS - KINDS[op.kind].flops(op) / rates[op.kind]
            weights += timed.graph.weights[op.weights[0]].count
    return (seconds, weights) if seconds > 0 else (0.0, 0)


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
        if op.kind not in ("embed", "head"):
            add(shape_of(op), taken_ns, _own_ns(cost, op))
    own = {shape: spent_ns[shape] / expected for shape, expected in expected_ns.items() if expected}
    for weight, taken_ns in runs.whole.unpacked():
        add(unpacked_shape(weight.rows, weight.cols, weight.format), taken_ns, cost.unpack_ns(weight))
    for timed in (runs.streamed, runs.whole):
        for instruction, op, taken_ns in timed.products():
            weight = cost.graph.weights[op.weights[0]]
            above_ns = taken_ns - own.get(shape_of(op), 1.0) * _own_ns(cost, op)
            unpacked_ns = cost.unpack_ns(weight) if instruction.streamed else 0
            add(unpacked_shape(weight.rows, weight.cols, weight.format), above_ns, unpacked_ns)
    factors = {shape: spent_ns[shape] / expected for shape, expected in expected_ns.items() if expected}
    factors |= _head_factors(cost, runs)
    low, high = SHAPE_FACTOR
    return {shape: min(high, max(low, factor)) for shape, factor in sorted(factors.items())}


def _weightless(timed: Timed) -> Iterator[tuple[Compute, Op, int]]:
    """Ops that take as long whatever becomes of weights."""
    return (found for found in timed.ops() if not found[1].weights)


def _own_ns(cost: CostModel, op: Op, tile: int = 0) -> int:
    """What the rates say of an op, its weight unpacked and its launches not counted."""
    kind = KINDS[op.kind]
    tiles = -(-op.dims.outs // tile) if tile else 0
    return cost.op_parts(op, streamed=False, tile=tile)[kind.part] - round(tiles * cost.head_tile_ns(op))


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
    return ns - head_passes(head, tile) * cost.unpack_ns(cost.graph.weights[head.weights[0]])
