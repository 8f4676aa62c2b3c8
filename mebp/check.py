"""Is this plan valid for this graph? Simple, slow, one rule after another; knows nothing of how the plan was found.

Walks the plan once, keeping what lies where in the arena, which ops have run, and what the spill file holds. The peak that it
reports is the highest byte that any instruction touches.
"""

from dataclasses import dataclass

from mebp.errors import InputError, InvalidPlan
from mebp.models.build import build_graph
from mebp.models.graph import Graph
from mebp.models.op import Op, OpId
from mebp.models.tensor import ALIGNMENT, TensorId, WeightId, align
from mebp.models.tile import stream_rows
from mebp.plan import Compute, Engine, Free, Load, Place, Plan, Store, Unpack, require_signature


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """Facts of a valid plan: highest byte touched, most live bytes, and the instruction where that is reached."""

    peak_bytes: int
    live_peak_bytes: int
    peak_index: int


def check(plan: Plan, graph: Graph) -> Checked:
    """Check every rule of the plan language; raises InvalidPlan naming the rule and the instruction."""
    if plan.signature != graph.signature:
        raise InvalidPlan("same graph", None, f"made for {plan.signature}, checked against {graph.signature}")
    if plan.exact != (plan.workload.method == "backprop"):
        raise InvalidPlan("exact where it has a backward", None, f"{plan.workload.method}, exact {plan.exact}: plan again")
    walk = _Walk(plan, graph)
    for place in plan.resident:
        walk.require(WeightId(place.tensor) in graph.weights, "resident tensors are weights", str(place.tensor))
        walk.put(place)
    for index, instruction in enumerate(plan.instructions):
        walk.index = index
        match instruction:
            case Compute():
                walk.compute(instruction)
            case Unpack():
                walk.unpack(instruction)
            case Store():
                walk.require_live(instruction.tensor)
                walk.stored.add(instruction.tensor)
            case Load():
                walk.require(instruction.place.tensor in walk.stored, "load only what was stored", instruction.place.tensor)
                walk.put(instruction.place)
            case Free():
                walk.free(instruction.tensor)
        walk.note_peak()
    return walk.finish()


def graph_of(plan: Plan, what: str) -> Graph:
    """Build the graph that `plan` is for; refuse a plan whose model or workload was changed since (`what` names it)."""
    try:
        graph = build_graph(plan.config, plan.workload)
    except InputError as error:
        raise InputError(f"{what}: {str(error).replace('`', '')}: plan again") from None
    require_signature(plan, graph.signature, f"what {what} says of its model")
    return graph


class _Walk:
    """The state of the arena while a plan is walked."""

    def __init__(self, plan: Plan, graph: Graph) -> None:
        self.plan = plan
        self.graph = graph
        self.index: int | None = None
        self.live: dict[TensorId, Place] = {}
        self.extent: dict[TensorId, tuple[int, int]] = {}
        self.live_bytes = 0
        self.scratch_bytes = 0
        self.stored: set[TensorId] = set()
        self.done: set[OpId] = set()
        self.high = 0
        self.peak = (0, 0)
        self.resident = {place.tensor for place in plan.resident}
        self.position = {op.id: position for position, op in enumerate(graph.ops)}
        self.changers: dict[str, list[Op]] = {}
        for op in graph.ops:
            for changed in _changed(op):
                self.changers.setdefault(changed, []).append(op)

    def require(self, holds: bool, rule: str, message: str) -> None:
        if not holds:
            raise InvalidPlan(rule, self.index, message)

    def require_live(self, tensor: TensorId) -> None:
        self.require(tensor in self.live, "read only what is in the arena", f"{tensor} is not")

    def require_free(self, place: Place) -> None:
        """No live tensor overlaps `place`, compared one by one; it lies inside the arena."""
        inside = place.offset >= 0 and place.end <= self.plan.arena_bytes
        self.require(inside, "stay inside the arena", f"{place.tensor} ends at {place.end} of {self.plan.arena_bytes}")
        start, end = place.offset, place.end
        for tensor, (low, high) in self.extent.items():
            if start < high and low < end:
                raise InvalidPlan("no two live tensors overlap", self.index, f"{place.tensor} and {tensor}")
        self.high = max(self.high, end)

    def require_aligned(self, place: Place) -> None:
        """Offsets and sizes are multiples of the alignment: a typed view begins where the plan says."""
        aligned = place.offset % ALIGNMENT == 0 and place.nbytes % ALIGNMENT == 0
        self.require(aligned, "places are aligned", f"{place.tensor} at {place.offset}, {place.nbytes} bytes")

    def put(self, place: Place) -> None:
        """Give `place` to its tensor."""
        self.require(place.tensor not in self.live, "write only what is not in the arena", f"{place.tensor} is")
        needed = self.graph.tensors[place.tensor].nbytes
        self.require(place.nbytes >= needed, "room for the tensor", f"{place.tensor} takes {needed}, has {place.nbytes}")
        self.require_aligned(place)
        self.require_free(place)
        self.live[place.tensor] = place
        self.extent[place.tensor] = (place.offset, place.end)
        self.live_bytes += place.nbytes

    def free(self, tensor: TensorId) -> None:
        """Take a tensor's place back."""
        self.require_live(tensor)
        self.require(tensor not in self.resident, "resident tensors stay", f"{tensor} is freed")
        self.live_bytes -= self.live.pop(tensor).nbytes
        del self.extent[tensor]

    def workspace(self, place: Place | None, needed: int) -> None:
        """Give `needed` bytes (aligned), no more and no less, to the instruction at hand."""
        have = place.nbytes if place else 0
        self.require(have == align(needed), "room for scratch", f"takes {align(needed)} exactly, has {have}")
        if place:
            self.require_aligned(place)
            self.require_free(place)
        self.scratch_bytes = have

    def compute(self, run: Compute) -> None:
        """Run an op."""
        op = self.graph.op.get(run.op)
        if op is None:
            raise InvalidPlan("known ops only", self.index, f"{run.op}")
        self._require_slots(op, run)
        self._require_order(op, run)
        for tensor in (*run.reads, *run.updates):
            self.require_live(tensor)
        self._require_weight(op, run)
        for place in run.writes:
            self.put(place)
        self.workspace(run.scratch, self.graph.scratch(op, streamed=run.streamed, tile=run.tile).nbytes)
        self.done.add(op.id)
        self.stored -= set(run.updates)  # what was stored of them is out of date

    def _require_slots(self, op: Op, run: Compute) -> None:
        weights = (weight for weight in op.weights if weight not in run.streamed)
        reads = {*op.reads.values(), *weights} - set(op.updates.values())
        self.require(set(run.reads) == reads, "an op reads its inputs", f"{op.id} names {sorted(run.reads)}")
        self.require(set(run.updates) == set(op.updates.values()), "an op updates its accumulators", f"{op.id}")
        written = {place.tensor for place in run.writes}
        self.require(written == set(op.writes.values()), "an op writes its outputs", f"{op.id} names {sorted(written)}")

    def _require_order(self, op: Op, run: Compute) -> None:
        """First runs in an order that the graph allows; second runs of pure ops only."""
        self.require(run.recompute == (op.id in self.done), "a second run is marked, a first is not", f"{op.id}")
        self.require(op.kind.recomputable or not run.recompute, "only forward ops are recomputed", f"{op.id}")
        for touched in (*op.touched, *op.adapters):
            self._require_settled(op, touched)

    def _require_settled(self, op: Op, touched: str) -> None:
        """An op runs after those changes of what it touches that stand before it in the graph, and before those after it."""
        for other in self.changers.get(touched, ()):
            before = self.position[other.id] < self.position[op.id]
            self.require(before == (other.id in self.done), "changes keep the graph's order", f"{op.id}, {other.id}")

    def _require_weight(self, op: Op, run: Compute) -> None:
        self.require(set(run.streamed) <= set(op.weights), "an op streams its own weights", f"{op.id} names {sorted(run.streamed)}")
        self.require(op.kind.makes_loss == (run.tile > 0), "the head has a tile, nothing else has", f"{op.id}")
        self.require(run.tile >= 0, "a tile is a number of logits", f"{run.tile}")
        whole_or_streamable = run.tile == 0 or run.tile <= min(stream_rows(op.dims.cols), op.dims.outs) or run.tile == op.dims.outs
        self.require(whole_or_streamable, "a head tile is one tile of weights at most, or the whole vocabulary", f"{run.tile}")
        self.require(not op.kind.gathers or bool(run.streamed), "the embedding is gathered, never unpacked", f"{op.id}")

    def unpack(self, unpack: Unpack) -> None:
        """Decompress a weight."""
        weight = self.graph.weights.get(unpack.weight)
        if weight is None:
            raise InvalidPlan("known weights only", self.index, f"{unpack.weight}")
        self.require(not self.plan.workload.layer_copies, "copied weights are never unpacked whole", unpack.weight)
        self.require(unpack.engine in (Engine.COMPUTE, Engine.UNPACK), "weights unpack on compute or unpack", unpack.engine)
        self.require(unpack.place.tensor == TensorId(weight.id), "unpack into the weight's own tensor", f"{unpack.place.tensor}")
        self.put(unpack.place)

    def note_peak(self) -> None:
        assert self.index is not None
        self.peak = max(self.peak, (self.live_bytes + self.scratch_bytes, -self.index))
        self.scratch_bytes = 0

    def finish(self) -> Checked:
        """What must hold at the end of the step."""
        self.index = None
        missing = [op.id for op in self.graph.ops if op.id not in self.done]
        self.require(not missing, "every op runs", f"{len(missing)} do not, {missing[:1]} first")
        left = set(self.live) - self.resident
        self.require(not left, "what is written is freed", f"{sorted(left)[:1]} is not")
        self.require(
            self.high == self.plan.arena_bytes,
            "the arena ends at its highest byte",
            f"{self.high} of {self.plan.arena_bytes}",
        )
        return Checked(peak_bytes=self.high, live_peak_bytes=self.peak[0], peak_index=-self.peak[1])


def _changed(op: Op) -> tuple[str, ...]:
    """Tensors and adapters that `op` changes in place."""
    return (*op.updates.values(), *(op.adapters if op.kind.changes_adapters else ()))
