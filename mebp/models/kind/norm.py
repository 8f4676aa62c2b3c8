"""RMSNorm in fp32, a tile of rows at a time, and its backward."""

from collections.abc import Callable
from dataclasses import dataclass

from mebp.models.op import Buffer, Dims, Kind, Op, Part, Scratch, WeightUse, element_moved

NORM_ELEMENTS = 1 << 17  # elements of one fp32 tile


@dataclass(frozen=True, slots=True, kw_only=True)
class NormParams:
    """RMSNorm: y = x rsqrt(mean(x^2) + eps) (w + offset)."""

    eps: float
    offset: float


def norm_rows(dims: Dims) -> int:
    """Rows of one fp32 tile."""
    return min(dims.rows, max(16, NORM_ELEMENTS // dims.cols))


def _scratch(*tiles: str, sums: tuple[str, ...]) -> Callable[[Op, WeightUse], Scratch]:
    """fp32 `tiles` of some rows, `sums` of one value per row, and the norm's weight in fp32."""

    def scratch(op: Op, use: WeightUse) -> Scratch:
        rows, cols = norm_rows(op.dims), op.dims.cols
        wide = (Buffer(name=name, shape=(rows, cols), dtype="fp32") for name in tiles)
        narrow = (Buffer(name=name, shape=(rows, 1), dtype="fp32") for name in sums)
        return Scratch(always=(Buffer(name="weight", shape=(cols,), dtype="fp32"), *wide, *narrow))

    return scratch


KINDS = (
    Kind(
        name="norm",
        part=Part.ELEMENTWISE,
        moved=element_moved(2),
        scratch=_scratch("x", "square", sums=("r",)),
        saves=("x",),
    ),
    Kind(
        name="norm_backward",
        part=Part.ELEMENTWISE,
        moved=element_moved(3),
        scratch=_scratch("x", "g", "product", sums=("r", "mean")),
        backward=True,
        may_add_dx=True,
    ),
)
