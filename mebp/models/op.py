"""One fused op: what it reads and writes, its extents and parameters, and the facts that hold for every op of its kind."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from math import prod
from typing import Literal, NewType

from mebp.models.tensor import Tensor, TensorId, Weight, WeightId, align

OpId = NewType("OpId", str)
Weights = tuple[WeightId, ...]
IN_PLACE = frozenset({"x"})  # slots of a linear's backward whose tensor its dx replaces
DType = Literal["fp32", "bf16", "fp16", "int16", "int8", "uint8", "bool"]
ITEMSIZES: dict[DType, int] = {"fp32": 4, "bf16": 2, "fp16": 2, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}


def float_type(itemsize: int) -> DType:
    """The type of activations of `itemsize` bytes."""
    return "fp32" if itemsize == ITEMSIZES["fp32"] else "bf16"


class Part(StrEnum):
    """Where time goes, as the time breakdown names it."""

    PRODUCTS = "products"
    ATTENTION = "attention"
    ELEMENTWISE = "element-wise"
    HEAD = "head"
    UPDATE = "updates"
    UNPACK = "unpack"
    LAUNCH = "launches"
    FLASH = "flash wait"
    WAIT = "unpack wait"


class Rate(StrEnum):
    """The rate of a device that an op's arithmetic goes with; MEMORY for an op that only moves bytes."""

    FORWARD_PRODUCT = "products of the forward"
    BACKWARD_PRODUCT = "products of the backward"
    ATTENTION = "attention"
    HEAD = "head"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    """Extents of an op; those that do not apply are 0.

    rows: tokens, or tokens x heads for a norm over head_dim. cols, outs: in and out features. pairs: (query, key) pairs
    that one head of one sequence attends to. window: keys that a query sees at most, 0 for all before it. first: where in its
    sequence the first of `seq` queries stands, as many keys before it.
    """

    rows: int
    cols: int = 0
    outs: int = 0
    rank: int = 0
    batch: int = 0
    seq: int = 0
    first: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    window: int = 0
    pairs: int = 0
    itemsize: int = 2
    state: int = 0

    @property
    def activation(self) -> DType:
        """The type of the op's activations."""
        return float_type(self.itemsize)


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """A named piece of an op's scratch."""

    name: str
    shape: tuple[int, ...]
    dtype: DType

    @property
    def nbytes(self) -> int:
        return align(prod(self.shape) * ITEMSIZES[self.dtype])


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """An op's workspace, which lives while the op runs and no longer: the buffers of `always`, and behind them those of one group
    of `either` at a time, whose places overlap. Buffers of no bytes are left out.
    """

    always: tuple[Buffer, ...] = ()
    either: tuple[tuple[Buffer, ...], ...] = ()

    @cached_property
    def places(self) -> Mapping[str, tuple[int, Buffer]]:
        """Each buffer with its offset from where the scratch begins."""
        found: dict[str, tuple[int, Buffer]] = {}
        base = _lay_out(self.always, 0, found)
        for group in self.either:
            _lay_out(group, base, found)
        return found

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the whole, a multiple of the arena's alignment."""
        return max((offset + buffer.nbytes for offset, buffer in self.places.values()), default=0)


def _lay_out(buffers: tuple[Buffer, ...], offset: int, found: dict[str, tuple[int, Buffer]]) -> int:
    """Place buffers one after another from `offset` on; returns where they end."""
    for buffer in buffers:
        if buffer.nbytes:
            found[buffer.name] = (offset, buffer)
            offset += buffer.nbytes
    return offset


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUse:
    """How one run of an op reads its weight: streamed tile by tile, or unpacked; `tile` is the head's logits at a time, else 0."""

    weight: Weight | None
    streamed: bool
    tile: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What holds for every op of a kind; what depends on shape is a function of the op.

    scratch, moved, flops: workspace, bytes moved and FLOPs of one run. products: the products with the frozen weight, each with
    whether the weight is transposed. kernels: how many shapes of products there are for which a library may compile and keep a
    kernel. passes: how often a streamed weight is unpacked in one run with a given tile. saves: forward slots that the backward
    reads. optional: outputs that are left out where nothing reads them. keys: slots whose tensors have a row for every key, not
    for every query. may_add_dx: a backward op whose dx is written, added to what is there, or left out. makes_loss: the head.
    gathers: the op that reads rows of its weight and never the whole. runs_chunks: an op of ops (see chunk.py).
    """

    name: str
    part: Part
    scratch: Callable[["Op", WeightUse], Scratch]
    moved: Callable[["Op"], int]
    flops: Callable[["Op"], int] = lambda op: 0
    products: Callable[["Op"], tuple[bool, ...]] = lambda op: ()
    kernels: Callable[["Op"], int] = lambda op: 0
    passes: Callable[["Op", int], int] = lambda op, tile: 1
    rate: Rate = Rate.MEMORY
    saves: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    backward: bool = False
    may_add_dx: bool = False
    makes_loss: bool = False
    gathers: bool = False
    changes_adapters: bool = False
    runs_chunks: bool = False

    @property
    def recomputable(self) -> bool:
        """Whether a second run changes nothing but what it writes."""
        return not (self.backward or self.makes_loss or self.changes_adapters)

    @property
    def is_linear(self) -> bool:
        """Whether it multiplies with a layer's frozen weight."""
        return self.rate in (Rate.FORWARD_PRODUCT, Rate.BACKWARD_PRODUCT)

    @property
    def is_attention(self) -> bool:
        return self.rate is Rate.ATTENTION

    @property
    def is_of_layers(self) -> bool:
        """Whether it multiplies with frozen weights of layers, itself or in what it runs."""
        return self.is_linear or (self.runs_chunks and not self.makes_loss)

    @property
    def unpacks_whole(self) -> bool:
        """Whether it can read its weights unpacked."""
        return self.is_of_layers or self.makes_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One fused op. Tensors sit in named slots: `reads`, `writes` (new ones) and `updates` (changed in place).

    `weights` are frozen matrices (at most one, but for a chunked op), `vectors` uncompressed parameters, `adapters` the linears
    whose LoRA pair the op reads (or, for an update, changes). `params` are of the class in its kind's module, None where the kind
    has none. `chunks` are what a chunked op runs, empty for every other.
    """

    id: OpId
    kind: Kind
    layer: int | None
    dims: Dims
    params: object = None
    reads: Mapping[str, TensorId]
    writes: Mapping[str, TensorId]
    updates: Mapping[str, TensorId]
    weights: tuple[WeightId, ...] = ()
    vectors: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    chunks: tuple["Chunks", ...] = ()

    @property
    def backward(self) -> bool:
        return self.kind.backward

    @property
    def touched(self) -> tuple[TensorId, ...]:
        """Tensors that must be in the arena before the op runs."""
        return (*self.reads.values(), *self.updates.values())

    @property
    def makes_dx(self) -> bool:
        """Whether this op makes a gradient of its input at all."""
        return "dx" in self.writes or "dx" in self.updates or self.is_in_place

    @property
    def is_in_place(self) -> bool:
        """Whether the gradient of its input takes the input's place."""
        return not IN_PLACE.isdisjoint(self.updates)

    @property
    def shape(self) -> tuple[object, ...]:
        """What decides its cost, its weight apart: ops that agree here take the same time and scratch."""
        if self.chunks:
            return self.kind.name, tuple((some.count, tuple(op.shape for op in some.ops)) for some in self.chunks)
        return self.kind.name, self.dims, self.params, self.makes_dx, tuple(self.updates)

    def uses(self, weight: WeightId) -> int:
        """How many times one run reads a weight: once for each inner op and chunk."""
        return sum(count for count, op in flat((self,)) if weight in op.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks:
    """`count` chunks of `tokens` tokens each; the ops that each goes through, and their intermediates."""

    count: int
    tokens: int
    ops: tuple[Op, ...]
    tensors: Mapping[TensorId, Tensor]


def flat(ops: Iterable[Op]) -> Iterator[tuple[int, Op]]:
    """Ops that run none themselves, those of chunked ops in their place, each with how often it runs."""
    for op in ops:
        if not op.chunks:
            yield 1, op
        for some in op.chunks:
            yield from ((some.count, inner) for inner in some.ops)


def element_moved(tensors: int) -> Callable[[Op], int]:
    """Bytes of `tensors` passes over (rows, cols) elements."""

    def moved(op: Op) -> int:
        return tensors * op.dims.rows * op.dims.cols * op.dims.itemsize

    return moved


def one_kernel(op: Op) -> int:
    """A product of one shape."""
    return 1
