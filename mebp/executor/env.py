"""What ops run in: the store, adapters and optimizer state, rotary tables, the batch. And Io, one op's view of it and of
the arena.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from mebp.executor.adapter import Adapter
from mebp.executor.arena import TYPES, Arena, Workspace
from mebp.kernel.library import library
from mebp.kernel.product import multiply
from mebp.kernel.weight import Frozen, plain
from mebp.models.chunk import Span, spans
from mebp.models.config import Rope
from mebp.models.graph import Graph, streamed_of
from mebp.models.op import Op, Part, Scratch, Weights, float_type
from mebp.models.optimizer import Optimizer
from mebp.models.tensor import Role, TensorId, WeightId
from mebp.models.tensor import Tensor as Described
from mebp.models.tile import GATHER_ROWS, stream_rows
from mebp.plan import Place
from mebp.store.codec import read_rows
from mebp.store.reader import Store

P = TypeVar("P")
ALL = slice(None)


def dtype_of(graph: Graph) -> torch.dtype:
    """The type of a graph's activations."""
    return TYPES[float_type(graph.workload.itemsize)]


@dataclass(slots=True, kw_only=True)
class Clock:
    """Steps and updates so far; executors that train the same adapters share one."""

    step: int = 0
    updates: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateShare:
    """A step's part in an update: its gradient counts as `part` of it, and the update follows the `last` step."""

    part: float = 1.0
    last: bool = True


@dataclass(slots=True, kw_only=True)
class Env:
    """Everything outside the arena that ops touch, and the settings of the update."""

    graph: Graph
    store: Store
    adapters: dict[str, Adapter]
    ids: Tensor  # (tokens,) int64
    labels: Tensor  # (tokens,) int64, the next token or -100
    positions: Tensor  # (seq,) int64
    tables: dict[Rope, tuple[Tensor, Tensor]]  # cos, sin, each (seq, R / 2)
    device: torch.device
    optimizer: Optimizer
    clock: Clock
    share: UpdateShare = field(default_factory=UpdateShare)
    seed: int = 0
    gradient_norm: float | None = None  # of the last update's gradient, before clipping
    displaced: float = 0.0  # how far along the step's noise the adapters are, within a step of MeZO
    losses: dict[TensorId, float] = field(default_factory=dict)
    chunked_ns: dict[Part, int] = field(default_factory=dict)  # what the ops within chunked ones took in a step
    on_gradient: Callable[[str, Tensor], None] | None = None
    copied_layer: int | None = None
    copies: dict[WeightId, Frozen] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """The learning rate of the update that comes next."""
        return self.optimizer.rate_at(self.clock.updates)

    def frozen(self, wid: WeightId) -> Frozen:
        """A frozen matrix, in the mapped file or, with `layer_copies`, copied until another layer's is needed."""
        weight = self.graph.weights[wid]
        mapped = self.store.matrix(weight.name)
        if not self.graph.workload.layer_copies or weight.layer is None:
            return mapped
        if weight.layer != self.copied_layer:
            self.copied_layer, self.copies = weight.layer, {}
        if wid not in self.copies:
            self.copies[wid] = mapped.copy()
        return self.copies[wid]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What an op finds within a chunked one: the span of tokens that it runs on, the intermediates, and its scratch."""

    span: Span
    tensors: Mapping[TensorId, Described]
    scratch: Scratch


class Io:
    """One run of one op: its tensors by slot, its scratch by name, its weight, its vectors, its parameters. In a `chunk` it sees no
    other tokens than those of its span, but for keys.
    """

    def __init__(
        self,
        env: Env,
        arena: Arena,
        op: Op,
        places: dict[TensorId, Place],
        scratch: Place | None,
        *,
        streamed: Weights,
        tile: int,
        chunk: Chunk | None = None,
    ) -> None:
        self.env = env
        self.op = op
        self.dims = replace(op.dims, first=chunk.span.first) if chunk and op.dims.seq else op.dims
        self.dtype = TYPES[op.dims.activation]
        self.streamed = streamed
        self.tile = tile
        self.span = chunk.span if chunk else None
        self._arena = arena
        self._places = places
        self._own: Mapping[TensorId, Described] = chunk.tensors if chunk else {}
        self._scratch = scratch
        declared = chunk.scratch if chunk else env.graph.scratch(op, streamed=streamed, tile=tile)
        self._workspace = Workspace(arena, scratch, declared)

    def chunks(self) -> Iterator["Io"]:
        """Every op that a chunked op runs, in turn."""
        op, graph = self.op, self.env.graph
        self._begin_sums()
        self.leave_scratch()
        base = self._scratch.offset if self._scratch else 0
        layouts = graph.layouts(op, streamed=self.streamed, tile=self.tile)
        places = [
            self._places | {t: Place(tensor=t, offset=base + at, nbytes=some.tensors[t].nbytes) for t, at in layout.tensors.items()}
            for some, layout in zip(op.chunks, layouts, strict=True)
        ]
        for number, span in spans(graph.workload):
            some, layout = op.chunks[number], layouts[number]
            for inner, scratch, offset in zip(some.ops, layout.scratch, layout.offsets, strict=True):
                place = Place(tensor=TensorId("scratch"), offset=base + offset, nbytes=scratch.nbytes)
                chunk = Chunk(span=span, tensors=some.tensors, scratch=scratch)
                streamed = streamed_of(inner, self.streamed)
                yield Io(self.env, self._arena, inner, places[number], place, streamed=streamed, tile=self.tile, chunk=chunk)

    def _begin_sums(self) -> None:
        """Fill with zeros what all chunks add to."""
        changed = {tensor for inner in self.op.chunks[0].ops for tensor in inner.updates.values()}
        for tensor in self.op.writes.values():
            if tensor in changed:
                self._tensor(tensor).zero_()

    def has(self, slot: str) -> bool:
        op = self.op
        return slot in op.writes or slot in op.updates or slot in op.reads

    def __getitem__(self, slot: str) -> Tensor:
        op = self.op
        tid = op.writes.get(slot) or op.updates.get(slot) or op.reads[slot]
        whole = self._tensor(tid)
        if self.span is None or not self._spans(tid):
            return whole
        return whole[self.span.keys if slot in op.kind.keys else self.span.rows]

    def _tensor(self, tid: TensorId) -> Tensor:
        tensor = self._own.get(tid) or self.env.graph.tensors[tid]
        return self._arena.view(self._places[tid].offset, tensor.shape, TYPES[float_type(tensor.itemsize)])

    def _spans(self, tid: TensorId) -> bool:
        """Whether a tensor has a row for every token of the step."""
        return tid not in self._own and self.env.graph.tensors[tid].role in (Role.ACTIVATION, Role.GRADIENT)

    @property
    def labels(self) -> Tensor:
        """The labels of the op's tokens."""
        return self.env.labels if self.span is None else self.env.labels[self.span.rows]

    def params(self, cls: type[P]) -> P:
        """The op's parameters, of the class that its kind asks for."""
        found = self.op.params
        assert isinstance(found, cls), f"{self.op.id} has {found}"
        return found

    def take(self, name: str) -> Tensor:
        """A buffer of the op's scratch."""
        return self._workspace.take(name)

    def take_if_any(self, name: str) -> Tensor | None:
        """A buffer that not every op of the kind has."""
        return self._workspace.take_if_any(name)

    def leave_scratch(self) -> None:
        """Say that the op ran without its scratch: a kernel did what needs it in torch."""
        self._workspace.whole()

    def room(self, *, behind: Collection[str] = ()) -> Tensor:
        """The op's scratch as one buffer of bytes, from the end of the buffers named on."""
        return self._workspace.whole(behind)

    def finish(self) -> None:
        """Every byte of scratch that the plan gave must have been taken."""
        assert not self._workspace.untouched, f"{self.op.id} left {self._workspace.untouched} of its scratch untouched"

    def vector(self, index: int = 0) -> Tensor:
        return self.env.store.vector(self.op.vectors[index]).to(self.env.device)

    def adapter(self) -> Adapter:
        return self.env.adapters[self.op.adapters[0]]

    def weight_tiles(self) -> Iterator[tuple[int, int, Tensor]]:
        """(first row, end row, rows of the weight): all of it where it is unpacked, tile by tile where it is streamed."""
        weight = self.env.graph.weights[self.op.weights[0]]
        step = stream_rows(weight.cols) if self.streamed else weight.rows
        for start in range(0, weight.rows, step):
            end = min(start + step, weight.rows)
            yield start, end, self.weight_rows(start, end)

    def weight_rows(self, start: int, end: int) -> Tensor:
        """Rows [start, end) of the weight: a part of it where it is unpacked, decompressed to the scratch's tile where streamed."""
        wid = self.op.weights[0]
        if not self.streamed:
            return self._tensor(TensorId(wid))[start:end]
        return read_rows(self.env.frozen(wid)[start:end], self._workspace.take_if_any("tile"), self.env.device)

    @property
    def multiplies(self) -> bool:
        """Whether the compiled kernel may multiply with the op's weight."""
        return bool(self.op.weights) and library().multiplies and self.dtype is torch.bfloat16

    def multiply(
        self,
        x: Tensor,
        out: Tensor,
        *,
        transposed: bool,
        rows: slice = ALL,
        add: bool = False,
        bias: Tensor | None = None,
        adapter: tuple[Tensor, Tensor] | None = None,
        room: Tensor | None = None,
    ) -> bool:
        """`out` = x W^T (+ bias) or x W with `rows` of the weight, and what an `adapter` adds, by the compiled kernel, in `room` or
        that of the weight's tile. False, and nothing is computed, where the kernel cannot.
        """
        tile, own_room = (self._workspace.take_if_any(name) for name in ("tile", "room"))
        given = own_room if tile is None else tile
        room = given if room is None else room
        if not self.multiplies or room is None:
            return False
        wid = self.op.weights[0]
        frozen = self.env.frozen(wid) if self.streamed else plain(self._tensor(TensorId(wid)))
        return multiply(x, frozen[rows], out, room, transposed=transposed, add=add, bias=bias, adapter=adapter)

    def gather(self, ids: Tensor, out: Tensor) -> None:
        """Decompress the weight's rows `ids` into `out` (len(ids), cols), a few hundred at a time."""
        frozen = self.env.frozen(self.op.weights[0])
        tile = self._workspace.take_if_any("gathered tile")
        for start in range(0, len(ids), GATHER_ROWS):
            some = ids[start : start + GATHER_ROWS]
            gathered = self._gathered(frozen, some)
            out[start : start + len(some)].copy_(read_rows(gathered, tile, self.env.device))

    def _gathered(self, frozen: Frozen, ids: Tensor) -> Frozen:
        """Some rows of a frozen matrix as they are stored, side by side."""
        rows = ids.to(frozen.codes.device)
        found = {}
        for name, part in frozen.parts.items():
            found[name] = self.take(f"gathered {name}")[: len(ids)]
            _select(part, rows, found[name])
        return Frozen(format=frozen.format, cols=frozen.cols, parts=found)


def _select(source: Tensor, rows: Tensor, out: Tensor) -> None:
    """Gather rows of `source` in `out`, directly where both are in one memory."""
    if source.device == out.device:
        torch.index_select(source, 0, rows, out=out)
    else:
        out.copy_(torch.index_select(source, 0, rows))
