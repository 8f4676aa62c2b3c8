"""One training step as data: ops in program order, their tensors and weights, and the layers that they form."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from mebp.models.config import ModelConfig
from mebp.models.layout import Layout, lay_out
from mebp.models.op import Buffer, Op, OpId, Scratch, Weights, WeightUse
from mebp.models.tensor import Tensor, TensorId, Weight, WeightId, align
from mebp.models.workload import Workload

AdapterShape = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One decoder layer: its input (part of the residual stream), its ops in program order, its weights by role in order of use."""

    number: int
    input: TensorId
    forward: tuple[Op, ...]
    backward: tuple[Op, ...]
    weights: Mapping[str, WeightId]

    @property
    def ops(self) -> tuple[Op, ...]:
        return (*self.forward, *self.backward)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One training step in program order, every tensor and weight that it names, and the bytes that live outside the arena.

    `stream` is the residual stream: the input of every layer, and what the last layer makes. `stream_gradient` is dL/d(stream), one
    tensor that every layer's backward adds to (None where there is no backward). `adapters` are the shapes of every LoRA pair:
    A (rank, in), B (out, rank).
    """

    config: ModelConfig
    workload: Workload
    tensors: Mapping[TensorId, Tensor]
    weights: Mapping[WeightId, Weight]
    ops: tuple[Op, ...]
    stream: tuple[TensorId, ...]
    stream_gradient: TensorId | None
    adapters: Mapping[str, AdapterShape]
    outside_bytes: Mapping[str, int]
    _scratch: dict[object, Scratch] = field(default_factory=dict, init=False, repr=False, compare=False)
    _layouts: dict[object, tuple[Layout, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __repr__(self) -> str:
        return f"<Graph of {self.config.name}: {len(self.ops)} ops, {self.workload.tokens} tokens>"

    @cached_property
    def op(self) -> Mapping[OpId, Op]:
        """Ops by id."""
        return {op.id: op for op in self.ops}

    @cached_property
    def producer(self) -> Mapping[TensorId, Op]:
        """The op that writes each tensor."""
        return {tensor: op for op in self.ops for tensor in op.writes.values()}

    @cached_property
    def head(self) -> Op:
        """The op that makes the loss; of several the first."""
        return next(op for op in self.ops if op.kind.makes_loss)

    @cached_property
    def around_head(self) -> tuple[Op, ...]:
        """Ops that belong to no layer, from the end of the stream to its gradient: the final norm, the head, the norm's
        backward.
        """
        end = self.stream[-1]
        first = next(at for at, op in enumerate(self.ops) if end in op.reads.values())
        return tuple(op for op in self.ops[first:] if op.layer is None and not op.kind.changes_adapters)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The decoder layers, lowest first."""
        forward: dict[int, list[Op]] = {}
        backward: dict[int, list[Op]] = {}
        for op in self.ops:
            if op.layer is not None:
                (backward if op.backward else forward).setdefault(op.layer, []).append(op)
        return tuple(
            Layer(
                number=number,
                input=self.stream[number],
                forward=tuple(forward[number]),
                backward=tuple(backward.get(number, ())),
                weights={self.weights[weight].role: weight for op in forward[number] for weight in op.weights},
            )
            for number in sorted(forward)
        )

    def weight_of(self, op: Op) -> Weight | None:
        """The frozen matrix that an op, not a chunked one, multiplies with or gathers from."""
        return self.weights[op.weights[0]] if op.weights else None

    def scratch(self, op: Op, *, streamed: Weights, tile: int) -> Scratch:
        """The workspace of one run of `op` with the weights `streamed` streamed."""
        key = (op.id, streamed, tile)
        if key not in self._scratch:
            if op.chunks:
                nbytes = max(layout.nbytes for layout in self.layouts(op, streamed=streamed, tile=tile))
                self._scratch[key] = Scratch(always=(Buffer(name="chunk", shape=(nbytes,), dtype="int8"),))
            else:
                self._scratch[key] = self._scratch_by_shape(op, streamed, tile)
        return self._scratch[key]

    def _scratch_by_shape(self, op: Op, streamed: Weights, tile: int) -> Scratch:
        """The same for an op that is not chunked, cached by shape: ops of different extents share an id."""
        weight = self.weight_of(op)
        shape = (op.shape, weight and (weight.rows, weight.cols, weight.format), bool(streamed), tile)
        if shape not in self._scratch:
            self._scratch[shape] = op.kind.scratch(op, WeightUse(weight=weight, streamed=bool(streamed), tile=tile))
        return self._scratch[shape]

    def layouts(self, op: Op, *, streamed: Weights, tile: int) -> tuple[Layout, ...]:
        """How the scratch of a chunked op is laid out, for each of its extents."""
        key = (op.id, streamed, tile)
        if key not in self._layouts:
            self._layouts[key] = tuple(
                lay_out(some, tuple(self._scratch_by_shape(inner, streamed_of(inner, streamed), tile) for inner in some.ops))
                for some in op.chunks
            )
        return self._layouts[key]

    @cached_property
    def largest_op_bytes(self) -> int:
        """No plan has a smaller arena: what the op that needs most reads, writes and works in, and in the backward the stream's
        gradient too.
        """
        return max(map(self.op_bytes, self.ops))

    def op_bytes(self, op: Op) -> int:
        """The least bytes of arena while an op runs, its unpacked weights not counted."""
        touched = {*op.touched, *op.writes.values()}
        if op.backward and self.stream_gradient and not op.kind.changes_adapters:
            touched.add(self.stream_gradient)
        operands = sum(align(self.tensors[tensor].nbytes) for tensor in touched)
        tile = 1 if op.kind.makes_loss else 0
        ways = (op.weights,) if op.kind.gathers else (op.weights, ())
        return operands + min(self.scratch(op, streamed=streamed, tile=tile).nbytes for streamed in ways)

    @cached_property
    def signature(self) -> str:
        """Hash of all that decides what a step computes and what memory it takes: ops, tensors, weights, bytes outside the
        arena.
        """
        digest = hashlib.sha256()
        for outer in self.ops:
            for op in (outer, *(inner for some in outer.chunks for inner in some.ops)):
                slots = [list(slots.items()) for slots in (op.reads, op.writes, op.updates)]
                names = (op.weights, op.vectors, op.adapters)
                digest.update(repr((op.id, op.kind.name, op.layer, op.dims, op.params, slots, names)).encode())
            digest.update(repr([(some.count, list(some.tensors.values())) for some in outer.chunks]).encode())
        for found in (self.tensors, self.weights, self.adapters, self.outside_bytes):
            digest.update(repr(list(found.values())).encode())
        return digest.hexdigest()[:16]


def streamed_of(op: Op, streamed: Weights) -> Weights:
    """Those of an op's weights that are streamed, of all that are."""
    return tuple(weight for weight in op.weights if weight in streamed)
