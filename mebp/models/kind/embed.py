"""The embedding: rows of a frozen matrix, gathered and unpacked."""

from dataclasses import dataclass

from mebp.models.op import Kind, Op, Part, Scratch, WeightUse, element_moved
from mebp.models.tile import gathered


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedParams:
    """Rows of the embedding are multiplied by `scale`."""

    scale: float


def _scratch(op: Op, use: WeightUse) -> Scratch:
    """The rows that are gathered, and the same unpacked."""
    assert use.weight is not None
    return Scratch(always=gathered(use.weight, op.dims) if use.streamed else ())


KINDS = (Kind(name="embed", part=Part.ELEMENTWISE, moved=element_moved(2), scratch=_scratch, gathers=True),)
