"""Ops that touch each element once or twice: the residual sum and the gated activation."""

from dataclasses import dataclass

from mebp.models.config import Activation
from mebp.models.op import Kind, Part, element_moved
from mebp.models.tile import no_scratch


@dataclass(frozen=True, slots=True, kw_only=True)
class GluParams:
    """activation(gate) x up."""

    activation: Activation


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualParams:
    """x + scale x branch."""

    scale: float


KINDS = (
    Kind(name="residual", part=Part.ELEMENTWISE, moved=element_moved(3), scratch=no_scratch),
    Kind(name="residual_backward", part=Part.ELEMENTWISE, moved=element_moved(2), scratch=no_scratch, backward=True),
    Kind(name="glu", part=Part.ELEMENTWISE, moved=element_moved(3), scratch=no_scratch, saves=("gate", "up")),
    Kind(name="glu_backward", part=Part.ELEMENTWISE, moved=element_moved(5), scratch=no_scratch, backward=True),
)
