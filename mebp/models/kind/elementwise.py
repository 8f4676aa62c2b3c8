"""Ops that touch each element once or twice: the residual sum and the gated activation."""

from dataclasses import dataclass

from mebp.models.config import Activation
from mebp.models.op import Buffer, Dims, Kind, Op, Part, Scratch, WeightUse, element_moved
from mebp.models.tile import no_scratch

GLU_ELEMENTS = 1 << 17  # elements of one tile


@dataclass(frozen=True, slots=True, kw_only=True)
class GluParams:
    """activation(gate) x up."""

    activation: Activation


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualParams:
    """x + scale x branch."""

    scale: float


def glu_rows(dims: Dims) -> int:
    """Rows of a tile of the gated activation's backward."""
    return min(dims.rows, max(16, GLU_ELEMENTS // dims.cols))


def _glu_backward_scratch(op: Op, use: WeightUse) -> Scratch:
    """dL/d(up) of some rows, while their `up` is still needed."""
    shape = (glu_rows(op.dims), op.dims.cols)
    return Scratch(always=(Buffer(name="dup", shape=shape, dtype=op.dims.activation),))


KINDS = (
    Kind(name="residual", part=Part.ELEMENTWISE, moved=element_moved(3), scratch=no_scratch),
    Kind(name="residual_backward", part=Part.ELEMENTWISE, moved=element_moved(2), scratch=no_scratch, backward=True),
    Kind(name="narrow", part=Part.ELEMENTWISE, moved=element_moved(3), scratch=no_scratch, backward=True),
    Kind(name="glu", part=Part.ELEMENTWISE, moved=element_moved(3), scratch=no_scratch, saves=("gate", "up")),
    Kind(name="glu_backward", part=Part.ELEMENTWISE, moved=element_moved(5), scratch=_glu_backward_scratch, backward=True),
)
