"""Where the intermediates of a chunked op lie: in a small arena of its own within its scratch."""

from collections.abc import Mapping
from dataclasses import dataclass

from mebp.models.op import Chunks, Scratch
from mebp.models.tensor import TensorId, align


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where in a chunked op's scratch its own tensors lie, each of its ops' scratch and where that lies; bytes of the whole."""

    tensors: Mapping[TensorId, int]
    scratch: tuple[Scratch, ...]
    offsets: tuple[int, ...]
    nbytes: int


def lay_out(chunks: Chunks, scratch: tuple[Scratch, ...]) -> Layout:
    """Place the intermediates of `chunks` and the scratch of each op, the largest first, each as low as it fits."""
    stays: dict[TensorId, tuple[int, int]] = {}
    for at, op in enumerate(chunks.ops):
        for tensor in (*op.touched, *op.writes.values()):
            if tensor in chunks.tensors:
                stays[tensor] = (stays.get(tensor, (at, at))[0], at)
    items: list[tuple[int, int, int, TensorId | int]] = []
    items += [(align(chunks.tensors[tensor].nbytes), *stay, tensor) for tensor, stay in stays.items()]
    items += [(space.nbytes, at, at, at) for at, space in enumerate(scratch) if space.nbytes]
    placed: list[tuple[int, int, int, int]] = []  # offset, end, first and last op
    offsets: dict[TensorId | int, int] = {}
    for nbytes, first, last, which in sorted(items, key=lambda item: (-item[0], item[1])):
        offset = 0
        for low, high, begin, end in placed:
            if begin <= last and first <= end and low < offset + nbytes and offset < high:
                offset = high
        placed.append((offset, offset + nbytes, first, last))
        placed.sort()
        offsets[which] = offset
    return Layout(
        tensors={tensor: offsets[tensor] for tensor in stays},
        scratch=scratch,
        offsets=tuple(offsets.get(at, 0) for at in range(len(chunks.ops))),
        nbytes=max((high for _, high, _, _ in placed), default=0),
    )
