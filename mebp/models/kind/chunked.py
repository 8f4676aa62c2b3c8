"""Kinds of chunked ops: what they run, read and write is their own ops'."""

from mebp.models.op import Kind, Op, Part, flat
from mebp.models.tile import no_scratch


def _flops(op: Op) -> int:
    return sum(count * inner.kind.flops(inner) for count, inner in flat((op,)))


def _moved(op: Op) -> int:
    return sum(count * inner.kind.moved(inner) for count, inner in flat((op,)))


def _kind(name: str, part: Part, *, backward: bool = False, makes_loss: bool = False) -> Kind:
    return Kind(
        name=name,
        part=part,
        scratch=no_scratch,  # the graph lays it out
        moved=_moved,
        flops=_flops,
        backward=backward,
        makes_loss=makes_loss,
        runs_chunks=True,
    )


KINDS = (
    _kind("chunked", Part.PRODUCTS),
    _kind("chunked_backward", Part.PRODUCTS, backward=True),
    _kind("chunked_head", Part.HEAD, makes_loss=True),
)
