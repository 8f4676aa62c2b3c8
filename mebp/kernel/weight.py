"""A frozen matrix as it is stored, a tensor for each part of its format, and how the compiled kernels see it."""

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mebp.models.format import (
    BLOCK_OFFSETS,
    BLOCK_SCALES,
    CODES,
    HIGH,
    OFFSETS,
    PLAIN_BITS,
    SCALES,
    Levels,
    PartType,
    WeightFormat,
)

PART_TYPES: dict[PartType, torch.dtype] = {
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
NF4 = (  # quantiles of a normal distribution, scaled to [-1, 1] (Dettmers et al. 2023, QLoRA, appendix E)
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """A frozen matrix (rows, cols): a tensor (rows, values a row) for each part of its format."""

    format: WeightFormat
    cols: int
    parts: Mapping[str, Tensor]

    @property
    def codes(self) -> Tensor:
        """(rows, bytes) int8, or, where the format is plain bf16, the weights."""
        return self.parts[CODES]

    @property
    def rows(self) -> int:
        return len(self.codes)

    def each(self, change: Callable[[Tensor], Tensor]) -> "Frozen":
        """The matrix whose parts are what `change` makes of these."""
        return Frozen(format=self.format, cols=self.cols, parts={name: change(part) for name, part in self.parts.items()})

    def __getitem__(self, rows: slice) -> "Frozen":
        """Some of the rows."""
        return self.each(lambda part: part[rows])

    def copy(self) -> "Frozen":
        """The same matrix in memory of the process's own."""
        return self.each(Tensor.clone)

    def groups(self) -> tuple[Tensor, Tensor | None]:
        """What each group's levels are multiplied by, and what is added, (rows, groups) fp32."""
        scales, offsets = self.parts[SCALES].float(), self.parts.get(OFFSETS)
        wide = None if offsets is None else offsets.float()
        if wide is not None and self.format.zero_point:
            wide = wide * -scales
        if BLOCK_SCALES in self.parts:
            each = scales.shape[1] // self.parts[BLOCK_SCALES].shape[1]
            scales = scales * self.parts[BLOCK_SCALES].float().repeat_interleave(each, dim=1)
            if wide is not None:
                wide = wide * self.parts[BLOCK_OFFSETS].float().repeat_interleave(each, dim=1)
        return scales, wide


@cache
def levels_of(levels: Levels, bits: int) -> Tensor:
    """What a code's low 4 bits are worth, (16,) fp32; codes of 2 bits repeat."""
    if levels == "nf4":
        return torch.tensor(NF4)
    count = 1 << bits
    codes = [code % count for code in range(16)]
    return torch.tensor([float(code - count if levels == "signed" and code >= count // 2 else code) for code in codes])


def plain(values: Tensor) -> Frozen:
    """A matrix (rows, cols) of bf16 weights as they are."""
    return Frozen(format=WeightFormat(name="bf16", bits=PLAIN_BITS), cols=values.shape[1], parts={CODES: values})


class KernelWeight(ctypes.Structure):
    """`Weight` of number.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in (CODES, HIGH, SCALES, OFFSETS, BLOCK_SCALES, BLOCK_OFFSETS, "levels")),
        *((name, ctypes.c_int64) for name in ("rows", "cols", "group", "block", "bits", "type", "is_unsigned", "zero_point")),
    )


TYPES: dict[PartType, int] = {"bf16": 0, "fp16": 1, "int8": 2, "uint8": 3}


def kernel_weight(frozen: Frozen) -> KernelWeight | None:
    """The matrix as the kernels see it, in memory that it does not keep; None where a part is not contiguous on the processor."""
    parts, fmt = frozen.parts, frozen.format
    if not all(part.is_contiguous() and part.device.type == "cpu" for part in parts.values()):
        return None
    pointers = {name: part.data_ptr() for name, part in parts.items()}
    if fmt.bits <= 4:
        pointers["levels"] = levels_of(fmt.levels, fmt.bits).data_ptr()
    return KernelWeight(
        **pointers,
        rows=frozen.rows,
        cols=frozen.cols,
        group=fmt.group_cols(frozen.cols),
        block=fmt.block_cols(frozen.cols),
        bits=fmt.bits,
        type=TYPES[fmt.scale],
        is_unsigned=fmt.levels == "unsigned",
        zero_point=fmt.zero_point,
    )
