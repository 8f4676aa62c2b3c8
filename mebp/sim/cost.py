"""How long an instruction takes on a device, in whole nanoseconds, by part. A table over instruction and op kinds."""

from mebp.models.graph import Graph, streamed_of
from mebp.models.kind.linear import LinearParams
from mebp.models.kind.table import dense_flops
from mebp.models.op import Op, OpId, Part, Rate, Weights, flat
from mebp.models.tensor import FLOAT_BYTES, Weight, WeightId
from mebp.models.tile import reads_in_place
from mebp.plan import Compute, Free, Instruction, Load, Store, Unpack
from mebp.sim.device import Device
from mebp.sim.shape import Factors, head_tile_of, is_fused, shape_of, streamed_average, streamed_shape, unpacked_shape

NS = 1e9
DROPOUT_PASSES = 8  # over a linear's input: bits drawn and compared, a mask made of them, what the adapter sees


def floor_ns(graph: Graph, device: Device) -> float:
    """What the dense products of a step take at the rate that a good product attains: no step on the processor is faster."""
    return dense_flops(graph.ops) / device.dense_flops(graph.workload.itemsize) * NS


class CostModel:
    """Durations of instructions of one graph on one device.

    Time = max(arithmetic, memory traffic) x measured factor of the op's shape (1 where none was measured) + launches; the head has
    an overhead per tile of logits in addition. `parts(instruction)` splits the duration; its values sum to it exactly. Weights in
    `ahead` are unpacked on another engine, so only their products count here. Of compressed weights that outgrow the page cache the
    part that does not fit (`uncached_fraction`) is read from flash again at each use; a use takes the longer of reading and
    unpacking. Contention of such reads with loads is ignored.
    """

    def __init__(self, graph: Graph, device: Device, ahead: frozenset[WeightId] = frozenset()) -> None:
        self.graph = graph
        self.device = device
        self.ahead = ahead
        file_bytes = sum(weight.nbytes for weight in graph.weights.values())
        self.uncached_fraction = max(0.0, 1 - device.hardware.page_cache_bytes / file_bytes)
        self._bandwidth = device.rate(Rate.MEMORY)
        self._factors = Factors(device.shapes)
        self.launch_ns = round(device.runtime.launch_seconds * NS)
        self._ops: dict[tuple[OpId, Weights, int], dict[Part, int]] = {}
        self._shapes: dict[object, dict[Part, int]] = {}  # layers are alike: most ops have the shape of another

    def duration(self, instruction: Instruction) -> int:
        """Nanoseconds that `instruction` keeps its engine busy."""
        return sum(self.parts(instruction).values())

    def parts(self, instruction: Instruction) -> dict[Part, int]:
        """Nanoseconds by part."""
        match instruction:
            case Compute():
                return self.op_parts(self.graph.op[instruction.op], streamed=instruction.streamed, tile=instruction.tile)
            case Unpack():
                return {Part.UNPACK: self.unpack_ns(self.graph.weights[instruction.weight]), Part.LAUNCH: self.launch_ns}
            case Store():
                return {Part.FLASH: self.store_ns(self.graph.tensors[instruction.tensor].nbytes)}
            case Load():
                return {Part.FLASH: self.load_ns(self.graph.tensors[instruction.place.tensor].nbytes)}
            case Free():
                return {}

    def op_parts(self, op: Op, *, streamed: Weights, tile: int = 0) -> dict[Part, int]:
        """Nanoseconds of one run of `op` by part; it streams these of its weights and reads the others unpacked."""
        if self.ahead and not op.kind.gathers:
            streamed = tuple(weight for weight in streamed if weight not in self.ahead)
        key = (op.id, streamed, tile)
        if key not in self._ops:
            self._ops[key] = self._chunked_parts(op, streamed, tile) if op.chunks else self._parts(op, streamed, tile)
        return self._ops[key]

    def op_ns(self, op: Op, *, streamed: Weights, tile: int = 0) -> int:
        """Nanoseconds of one run of `op`."""
        return sum(self.op_parts(op, streamed=streamed, tile=tile).values())

    def _chunked_parts(self, op: Op, streamed: Weights, tile: int) -> dict[Part, int]:
        """The sum over all that a chunked op runs."""
        found: dict[Part, int] = {}
        for count, inner in flat((op,)):
            for part, ns in self._parts(inner, streamed_of(inner, streamed), tile).items():
                found[part] = found.get(part, 0) + count * ns
        return found

    def _parts(self, op: Op, streamed: Weights, tile: int) -> dict[Part, int]:
        """Nanoseconds by part of an op that is not chunked."""
        weight = self.graph.weight_of(op)
        shape = (op.shape, weight and (weight.rows, weight.cols, weight.format), bool(streamed), tile)
        if shape not in self._shapes:
            self._shapes[shape] = self._measure(op, bool(streamed), tile)
        return self._shapes[shape]

    def _measure(self, op: Op, streamed: bool, tile: int) -> dict[Part, int]:
        kind = op.kind
        seconds = kind.moved(op) / self._bandwidth
        if kind.rate is not Rate.MEMORY:
            seconds = max(seconds, kind.flops(op) / self.device.rate(kind.rate, op.dims.itemsize))
        factor = self._factors.get(shape_of(op, tile))
        seconds *= 1.0 if factor is None else factor
        parts = {kind.part: round(seconds * NS), Part.LAUNCH: self.launch_ns}
        if kind.makes_loss:
            parts[Part.HEAD] += round(-(-op.dims.outs // tile) * self.head_tile_ns(op))
        weight = self.graph.weight_of(op)
        if streamed and weight is not None:
            parts[Part.UNPACK] = self._streamed_ns(op, weight, tile)
            if kind.is_linear:
                parts[Part.LAUNCH] += self.streaming_parts(weight)[Part.LAUNCH]
        if isinstance(op.params, LinearParams) and op.params.dropout and op.dims.rank:
            parts[Part.ELEMENTWISE] = round(DROPOUT_PASSES * op.dims.rows * op.dims.cols * op.dims.itemsize / self._bandwidth * NS)
        if isinstance(op.params, LinearParams) and op.params.copied and not op.backward and weight is not None:
            parts[Part.UNPACK] = parts.get(Part.UNPACK, 0) + round(weight.nbytes / self._bandwidth * NS)
        return parts

    def _streamed_ns(self, op: Op, weight: Weight, tile: int) -> int:
        """Nanoseconds that one run of `op` spends unpacking what it streams: the rows that it gathers, or the whole weight."""
        if op.kind.gathers:
            return self._unpack_count_ns(weight, min(op.dims.rows, weight.rows) * weight.cols)
        return op.kind.passes(op, tile) * self.streaming_parts(weight)[Part.UNPACK]

    def head_tile_ns(self, op: Op) -> float:
        """Nanoseconds that a tile of the head's logits takes in addition to its products: a launch, where nothing was measured."""
        factor = self._factors.get(head_tile_of(op))
        return self.launch_ns if factor is None else factor * self.head_sums_ns(op)

    def head_sums_ns(self, op: Op) -> float:
        """Nanoseconds that a walk over the head's fp32 sums (rows, cols) takes by the rates."""
        return op.dims.rows * op.dims.cols * FLOAT_BYTES / self._bandwidth * NS

    def unpack_ns(self, weight: Weight) -> int:
        """Nanoseconds to decompress a whole weight once, its launch not counted."""
        return self._unpack_count_ns(weight, weight.count)

    def streaming_ns(self, weight: Weight) -> int:
        """Nanoseconds that a product with a streamed weight takes above one that finds it unpacked: no more than an Unpack."""
        return sum(self.streaming_parts(weight).values())

    def streaming_parts(self, weight: Weight) -> dict[Part, int]:
        """The same by part. As measured, where a kernel unpacks within the product and takes less than half of an Unpack for it, so
        that no other way pays; else as long as an Unpack takes.
        """
        if weight.id in self.ahead:
            return {Part.UNPACK: 0, Part.LAUNCH: 0}
        unpack_ns = self.unpack_ns(weight)
        whole = {Part.UNPACK: unpack_ns, Part.LAUNCH: self.launch_ns if unpack_ns else 0}
        workload = self.graph.workload
        measured = self._factors.get(streamed_shape(workload, weight))
        if measured is None:
            measured = self.device.shapes.get(streamed_average(workload))
        if measured is None:
            return whole
        within_ns = self._unpack_count_ns(weight, weight.count, measured)
        return {Part.UNPACK: within_ns, Part.LAUNCH: 0} if is_fused(within_ns, sum(whole.values())) else whole

    def repeats_ns(self, op: Op, weights: Weights) -> int:
        """Nanoseconds that streaming these weights takes in the chunks of `op` after the first: what unpacking them once saves."""
        return sum((op.uses(weight) - 1) * self.streaming_ns(self.graph.weights[weight]) for weight in weights)

    def whole_saves_ns(self, op: Op, weights: Weights) -> int:
        """Nanoseconds that unpacking these weights once, before `op`, saves of streaming them in each of its chunks."""
        found = (self.graph.weights[weight] for weight in weights)
        return sum(op.uses(one.id) * self.streaming_ns(one) - self.unpack_ns(one) - self.launch_ns for one in found)

    def streams_within(self, weight: Weight) -> bool:
        """Whether unpacking within products takes so little that a weight is never worth unpacking whole for a use or two."""
        return self.streaming_ns(weight) < self.unpack_ns(weight) + self.launch_ns and weight.id not in self.ahead

    def _unpack_count_ns(self, weight: Weight, count: int, factor: float | None = None) -> int:
        """Nanoseconds to unpack, or to read from flash where that takes longer, `count` weights; `factor` times what the rate says,
        or what was measured of an instruction's unpacking.
        """
        in_place = reads_in_place(weight.format, self.graph.workload.itemsize)
        if factor is None:
            factor = self.device.shapes.get(unpacked_shape(weight), 1.0)
        unpacking = 0.0 if in_place else factor * count / self.device.runtime.unpack_rate
        reading = self.uncached_fraction * weight.nbytes * count / weight.count / self.device.hardware.flash_read
        return round(max(unpacking, reading) * NS)

    def store_ns(self, nbytes: int) -> int:
        """Nanoseconds to write `nbytes` to flash."""
        return round((nbytes / self.device.hardware.flash_write + self.device.runtime.flash_latency_seconds) * NS)

    def load_ns(self, nbytes: int) -> int:
        """Nanoseconds to read `nbytes` from flash."""
        return round((nbytes / self.device.hardware.flash_read + self.device.runtime.flash_latency_seconds) * NS)
