"""Compressed weights of random parts, in every format."""

import torch

from mebp.kernel.weight import PART_TYPES, Frozen
from mebp.models.format import CODES, FORMATS, HIGH, PartType, WeightFormat

_KINDS = {
    (fmt.bits, fmt.levels, fmt.scale, fmt.affine, fmt.zero_point, fmt.block > 0, fmt.group > 0): name
    for name, fmt in reversed(FORMATS.items())
}
UNLIKE = (*_KINDS.values(), "int4-g64", "int4-g128")  # one format of each kind that differs in more than its group, and two groups


def random_weight(rows: int, cols: int, fmt: WeightFormat, seed: int = 0) -> Frozen:
    """Any codes, scales either side of 0, and offsets that are not the same everywhere."""
    generator = torch.Generator().manual_seed(seed + rows + cols)

    def drawn(name: str, dtype: PartType, per_row: int) -> torch.Tensor:
        if name in (CODES, HIGH) and dtype == "int8":
            return torch.randint(-128, 128, (rows, per_row), generator=generator).to(torch.int8)
        if dtype in ("int8", "uint8"):
            return torch.randint(0 if dtype == "uint8" else -32, 64, (rows, per_row), generator=generator).to(PART_TYPES[dtype])
        return (torch.randn(rows, per_row, generator=generator) * 0.02).to(PART_TYPES[dtype])

    return Frozen(format=fmt, cols=cols, parts={part.name: drawn(part.name, part.dtype, part.per_row) for part in fmt.parts(cols)})
