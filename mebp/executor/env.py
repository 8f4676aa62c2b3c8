"""What ops run in: the arena, the store, adapters and optimiser state, tables, the batch. And Io, one op's view of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mebp.models.graph import Graph
from mebp.models.kind import unpack_scratch
from mebp.models.op import Op
from mebp.models.scratch import GATHER_ROWS, reads_in_place, stream_rows
from mebp.models.tensor import TensorId, WeightId, align
from mebp.plan import Place
from mebp.store.codec import unpack
from mebp.store.reader import Frozen, Store

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Arena:
    """One allocation; tensors are typed views of it. `used_bytes` is the highest byte that any view reached."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.bytes = torch.empty(nbytes, dtype=torch.int8, device=device)
        whole = {1: 1, 2: 2, 4: 4, 8: 8}
        self._typed = {
            dtype: self.bytes[: nbytes // whole[dtype.itemsize] * dtype.itemsize].view(dtype)
            for dtype in (torch.int8, torch.bool, torch.bfloat16, torch.float32)
        }
        self.used_bytes = 0

    def view(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor of `shape` at `offset` bytes (a multiple of 64)."""
        strides, count = [], 1
        for extent in reversed(shape):
            strides.append(count)
            count *= extent
        self.used_bytes = max(self.used_bytes, offset + align(count * dtype.itemsize))
        return self._typed[dtype].as_strided(shape, strides[::-1], offset // dtype.itemsize)


class Scratch:
    """An op's workspace: buffers are taken one after another and all given back when the op ends."""

    def __init__(self, arena: Arena, place: Place | None) -> None:
        self._arena = arena
        self._next = place.offset if place else 0
        self._end = place.end if place else 0
        self._high = self._next

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The next buffer; asking for more than the plan gave is a bug in the op's scratch rule."""
        count = dtype.itemsize
        for extent in shape:
            count *= extent
        start, self._next = self._next, self._next + align(count)
        self._high = max(self._high, self._next)
        assert self._next <= self._end, f"scratch overrun by {self._next - self._end} bytes"
        return self._arena.view(start, shape, dtype)

    @property
    def unused(self) -> int:
        """Bytes that the plan gave and the op never took."""
        return self._end - self._high

    def mark(self) -> int:
        """Where the next buffer begins, for `release`."""
        return self._next

    def release(self, mark: int) -> None:
        """Give back what was taken since `mark`."""
        self._next = mark


@dataclass(slots=True, kw_only=True)
class Adapter:
    """One LoRA pair in fp32: A (rank, in), B (out, rank); `states` are the optimiser's, two a tensor, or none; `held` are the
    gradients of A and B that wait for an update, or none.
    """

    A: Tensor
    B: Tensor
    states: list[Tensor] = field(default_factory=list)
    held: list[Tensor] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Env:
    """Everything outside the arena that ops touch, and the settings of the update."""

    graph: Graph
    store: Store
    adapters: dict[str, Adapter]
    ids: Tensor  # (tokens,) int64
    labels: Tensor  # (tokens,) int64, the next token or -100
    positions: Tensor  # (seq,) int64
    tables: dict[bool, tuple[Tensor, Tensor]]  # local? -> cos, sin, each (seq, head_dim / 2)
    device: torch.device
    learning_rate: float = 1e-4
    epsilon: float = 1e-3
    step: int = 0
    seed: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    on_gradient: Callable[[str, Tensor], None] | None = None
    copied_layer: str = ""
    copies: dict[WeightId, Frozen] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.graph.workload.precision]

    def frozen(self, weight: WeightId) -> Frozen:
        """A frozen matrix, in the mapped file or, with `layer_copies`, copied until another layer's is asked for."""
        mapped = self.store.matrix(weight.removesuffix(".weight"))
        layer, dot, _ = weight.removesuffix(".weight").partition(".")
        if not (self.graph.workload.layer_copies and dot):
            return mapped
        if layer != self.copied_layer:
            self.copied_layer, self.copies = layer, {}
        if weight not in self.copies:
            steps = None if mapped.steps is None else mapped.steps.clone()
            self.copies[weight] = Frozen(codes=mapped.codes.clone(), steps=steps, format=mapped.format)
        return self.copies[weight]


class Io:
    """One run of one op: its tensors by slot, its scratch, its weight, its vectors."""

    def __init__(
        self,
        env: Env,
        arena: Arena,
        op: Op,
        places: dict[TensorId, Place],
        scratch: Scratch,
        *,
        streamed: bool,
        tile: int,
    ) -> None:
        self.env = env
        self.op = op
        self.dims = op.dims
        self.dtype = env.dtype
        self.scratch = scratch
        self.streamed = streamed
        self.tile = tile
        self._arena = arena
        self._places = places

    def has(self, slot: str) -> bool:
        op = self.op
        return slot in op.writes or slot in op.updates or slot in op.reads

    def __getitem__(self, slot: str) -> Tensor:
        op = self.op
        tensor = op.writes.get(slot) or op.updates.get(slot) or op.reads[slot]
        return self._tensor(tensor)

    def _tensor(self, tid: TensorId) -> Tensor:
        tensor = self.env.graph.tensors[tid]
        dtype = torch.float32 if tensor.itemsize == 4 else torch.bfloat16
        return self._arena.view(self._places[tid].offset, tensor.shape, dtype)

    def take(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.scratch.take(shape, dtype or self.dtype)

    def vector(self, index: int = 0) -> Tensor:
        return self.env.store.vector(self.op.vectors[index]).to(self.env.device)

    def adapter(self) -> Adapter:
        return self.env.adapters[self.op.adapters[0]]

    def weight_tiles(self, rows: int | None = None) -> Iterator[tuple[int, int, Tensor]]:
        """(first row, end row, rows of the weight): all of it where it is unpacked, tile by tile where it is streamed."""
        wid = self.op.weights[0]
        weight = self.env.graph.weights[wid]
        if not self.streamed:
            whole = self._tensor(TensorId(wid))
            step = rows or weight.rows
            for start in range(0, weight.rows, step):
                yield start, min(start + step, weight.rows), whole[start : start + step]
            return
        frozen = self.env.frozen(wid)
        step = min(rows or stream_rows(weight.cols), stream_rows(weight.cols))
        mark = self.scratch.mark()
        tile, codes = self._tile_buffers(frozen, min(step, weight.rows))
        for start in range(0, weight.rows, step):
            end = min(start + step, weight.rows)
            yield start, end, read_rows(frozen, slice(start, end), tile, codes, self.env.device)
        self.scratch.release(mark)

    def gather(self, ids: Tensor, out: Tensor) -> None:
        """Decompress the weight's rows `ids` into `out` (len(ids), cols), a few hundred at a time."""
        frozen = self.env.frozen(self.op.weights[0])
        mark = self.scratch.mark()
        for start in range(0, len(ids), GATHER_ROWS):
            some = ids[start : start + GATHER_ROWS]
            gathered = self._gathered(frozen, some)
            tile, codes = self._tile_buffers(frozen, len(some))
            out[start : start + len(some)].copy_(read_rows(gathered, slice(0, len(some)), tile, codes, self.env.device))
            self.scratch.release(mark)

    def _gathered(self, frozen: Frozen, ids: Tensor) -> Frozen:
        code_rows = self.take(len(ids), frozen.codes.shape[1], dtype=frozen.codes.dtype)
        rows = ids.to(frozen.codes.device)
        _select(frozen.codes, rows, code_rows)
        if frozen.steps is None:
            return Frozen(codes=code_rows, steps=None, format=frozen.format)
        step_rows = self.take(len(ids), frozen.steps.shape[1], dtype=torch.bfloat16)
        _select(frozen.steps, rows, step_rows)
        return Frozen(codes=code_rows, steps=step_rows, format=frozen.format)

    def _tile_buffers(self, frozen: Frozen, rows: int) -> tuple[Tensor | None, Tensor | None]:
        fmt, cols = frozen.format, self.env.graph.weights[self.op.weights[0]].cols
        if reads_in_place(fmt, self.dtype.itemsize):
            return None, None
        tile = self.take(rows, cols)
        nbytes = unpack_scratch(fmt, rows, cols) if fmt.packed else 0
        return tile, self.take(nbytes, dtype=torch.int8) if nbytes else None


def _select(source: Tensor, rows: Tensor, out: Tensor) -> None:
    """Gather rows of `source` in `out`, with nothing between them where one memory holds both."""
    if source.device == out.device:
        torch.index_select(source, 0, rows, out=out)
    else:
        out.copy_(torch.index_select(source, 0, rows))


def read_rows(frozen: Frozen, rows: slice, tile: Tensor | None, codes: Tensor | None, device: torch.device | None = None) -> Tensor:
    """Rows of a frozen weight, decompressed into `tile` (or as they lie, where nothing needs to be decompressed)."""
    stored = frozen.codes[rows]
    if tile is None:
        return stored if device is None else stored.to(device)
    out = tile[: stored.shape[0]]
    if frozen.steps is None:
        out.copy_(stored)
        return out
    if out.device != stored.device:
        stored, steps = stored.to(out.device), frozen.steps[rows].to(out.device)
    else:
        steps = frozen.steps[rows]
    unpack(stored, steps, frozen.format, out, codes)
    return out
