"""Rotary embedding of queries and keys, and its backward in place."""

from dataclasses import dataclass

from mebp.models.config import Rope
from mebp.models.op import Buffer, Kind, Op, Part, Scratch, WeightUse, element_moved
from mebp.models.tile import no_scratch


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeParams:
    """The rotary embedding whose table rotates queries or keys."""

    rope: Rope


def _backward_scratch(op: Op, use: WeightUse) -> Scratch:
    """The first half of what is rotated of every head, which the second is rotated with."""
    d = op.dims
    assert isinstance(op.params, RopeParams)
    shape = (d.batch, d.seq, d.heads, op.params.rope.width(d.head_dim) // 2)
    return Scratch(always=(Buffer(name="first", shape=shape, dtype=d.activation),))


KINDS = (
    Kind(name="rope", part=Part.ELEMENTWISE, moved=element_moved(2), scratch=no_scratch),
    Kind(name="rope_backward", part=Part.ELEMENTWISE, moved=element_moved(2), scratch=_backward_scratch, backward=True),
)
