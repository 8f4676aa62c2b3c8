"""What bytes a step works on: tensors of the arena, and frozen weights as they are stored."""

from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import NewType

from mebp.models.format import WeightFormat

TensorId = NewType("TensorId", str)
WeightId = NewType("WeightId", str)

FLOAT_BYTES = 4
ALIGNMENT = 64


def align(nbytes: int) -> int:
    """Round up to the arena's alignment."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class Role(StrEnum):
    """What the bytes of an arena tensor are, as the memory breakdown names them."""

    ACTIVATION = "activations"
    GRADIENT = "gradients"
    ADAPTER_GRADIENT = "adapter gradients"
    WEIGHT = "unpacked weights"
    LOSS = "loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor that may live in the arena. `layer` is None outside the decoder layers; `name` is what the tensor is called within
    its layer, equal for the same tensor of every layer.
    """

    id: TensorId
    name: str
    shape: tuple[int, ...]
    itemsize: int
    role: Role
    layer: int | None

    @property
    def nbytes(self) -> int:
        return self.itemsize * prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A frozen matrix of (rows, cols) = (out, in features), stored in `format`; unpacked, it is the tensor of the same id.

    `name` is what a store calls it (`3.q`), `role` what it does in its layer (`q`), or `embedding` or `head`, whose layer is None.
    """

    id: WeightId
    name: str
    role: str
    layer: int | None
    rows: int
    cols: int
    format: WeightFormat

    @property
    def count(self) -> int:
        return self.rows * self.cols

    @property
    def nbytes(self) -> int:
        return self.format.nbytes(self.rows, self.cols)
