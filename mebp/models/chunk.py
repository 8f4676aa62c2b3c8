"""Chunked ops: ordinary ops that run on some tokens of the sequence at a time, so that what they make on the way never spans it.

A chunk is a part of one sequence, or, where sequences are short, some whole ones. What a chunked op reads and writes spans all
tokens; each chunk reads and writes its own rows, and of keys and values all rows that its queries see. What chunks add up to (the
gradients of adapters, keys and values, the loss) begins at zero.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from mebp.models.kind.attention import attended_pairs
from mebp.models.op import Chunks, Dims, Kind, Op, OpId
from mebp.models.tensor import TensorId
from mebp.models.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """`count` chunks of one shape: `batch` whole sequences each, or `seq` tokens of one sequence. A sequence has `rounds` of them
    in a row, the first at position `before`.
    """

    batch: int
    seq: int
    count: int = 1
    rounds: int = 1
    before: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of one chunk."""
        return self.batch * self.seq

    @property
    def first(self) -> int:
        """Where the last chunk begins in its sequence."""
        return self.before + (self.rounds - 1) * self.seq

    def pairs(self, window: int) -> int:
        """(query, key) pairs per head and sequence, averaged over the rounds."""
        end = self.before + self.rounds * self.seq
        return (attended_pairs(end, window) - attended_pairs(self.before, window)) // self.rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One chunk: `rows` of its tokens, `keys` the rows of its sequences up to its last token, `first` the position of its first
    token.
    """

    rows: slice
    keys: slice
    first: int


def whole_extent(workload: Workload) -> Extent:
    """All tokens at once."""
    return Extent(batch=workload.batch_size, seq=workload.seq_len)


def chunk_extents(workload: Workload) -> tuple[Extent, ...]:
    """Chunks of `workload.chunk` tokens, and the shorter ones at the end of each sequence (or of the batch) where some are left."""
    seq, batch, chunk = workload.seq_len, workload.batch_size, workload.chunk
    if chunk >= seq:
        together = min(batch, chunk // seq)
        count, rest = divmod(batch, together)
        found = [Extent(batch=together, seq=seq, count=count)]
        return (*found, Extent(batch=rest, seq=seq)) if rest else tuple(found)
    rounds, rest = divmod(seq, chunk)
    found = [Extent(batch=1, seq=chunk, count=batch * rounds, rounds=rounds)]
    return (*found, Extent(batch=1, seq=rest, count=batch, before=rounds * chunk)) if rest else tuple(found)


def spans(workload: Workload) -> Iterator[tuple[int, Span]]:
    """Every chunk of a step in order, with the number of its extent in `chunk_extents`."""
    extents, seq, row = chunk_extents(workload), workload.seq_len, 0
    if workload.chunk < seq:
        order = [number for number, extent in enumerate(extents) for _ in range(extent.rounds)] * workload.batch_size
    else:
        order = [number for number, extent in enumerate(extents) for _ in range(extent.count)]
    for number in order:
        first, end = row % seq, row + extents[number].tokens
        yield number, Span(rows=slice(row, end), keys=slice(row - first, end), first=first)
        row = end


def chunked_op(kind: Kind, name: str, layer: int | None, chunks: tuple[Chunks, ...], made: Collection[TensorId]) -> Op:
    """Make one op of `chunks`. Outside tensors in `made` are its outputs; of the others, those that its ops change are updated, the
    rest read.
    """
    ops, local = chunks[0].ops, chunks[0].tensors
    changed = [t for op in ops for t in (*op.writes.values(), *op.updates.values()) if t not in local]
    read = [t for op in ops for t in op.reads.values() if t not in local and t not in changed]
    loss = next((op for op in ops if op.kind.makes_loss), None)
    return Op(
        id=OpId(name),
        kind=kind,
        layer=layer,
        dims=loss.dims if loss else Dims(rows=chunks[0].tokens, itemsize=ops[0].dims.itemsize),
        params=loss.params if loss else None,
        reads=_slots(read),
        writes=_slots(t for t in changed if t in made),
        updates=_slots(t for t in changed if t not in made),
        weights=tuple(dict.fromkeys(weight for op in ops for weight in op.weights)),
        vectors=tuple(dict.fromkeys(vector for op in ops for vector in op.vectors)),
        adapters=tuple(dict.fromkeys(adapter for op in ops for adapter in op.adapters)),
        chunks=chunks,
    )


def _slots(tensors: Iterable[TensorId]) -> dict[str, TensorId]:
    """A slot for each tensor, called alike in layers that are alike."""
    return {str(number): tensor for number, tensor in enumerate(dict.fromkeys(tensors))}


def with_ops(op: Op, kept: Sequence[tuple[Op, ...]]) -> Op:
    """Return the chunked op with only these inner ops, given per extent."""
    chunks = []
    for some, ops in zip(op.chunks, kept, strict=True):
        used = {t for inner in ops for t in (*inner.touched, *inner.writes.values())}
        chunks.append(replace(some, ops=ops, tensors={t: tensor for t, tensor in some.tensors.items() if t in used}))
    return chunked_op(op.kind, op.id, op.layer, tuple(chunks), set(op.writes.values()))
