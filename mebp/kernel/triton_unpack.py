"""Unpacking on a CUDA device in one kernel of Triton, which comes with torch there; equal bit for bit to what torch makes of it."""

import os
import shutil
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from mebp.kernel.weight import Frozen, levels_of
from mebp.models.format import HIGH

BLOCK = 1024  # columns of a row that one program unpacks


def unpack_on_gpu(frozen: Frozen, out: Tensor) -> bool:
    """Decompress a matrix into `out` (rows, cols), all on one device; False without Triton, or where a tensor is not
    contiguous."""
    fmt = frozen.format
    if not _compiles() or not (frozen.codes.is_contiguous() and out.is_contiguous()):
        return False
    scales, offsets = frozen.groups()
    codes = frozen.codes.view(torch.uint8) if fmt.levels == "unsigned" and fmt.bits == 8 else frozen.codes
    levels = levels_of(fmt.levels, min(fmt.bits, 4)).to(out.device)
    rows, cols = out.shape
    grid = (rows, -(-cols // BLOCK))
    _kernel()[grid](
        *(codes, frozen.parts.get(HIGH, codes), levels, scales, scales if offsets is None else offsets, out),
        *(cols, codes.shape[1], cols // scales.shape[1], scales.shape[1]),
        BITS=fmt.bits,
        AFFINE=offsets is not None,
        FLIP=0 if fmt.levels == "unsigned" else 32,
        BLOCK=BLOCK,
    )
    return True


@cache
def _compiles() -> bool:
    """Whether there is Triton, and the C compiler that its launcher is built with."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return find_spec("triton") is not None and compiler is not None


@cache
def _kernel() -> Any:
    import triton  # noqa: PLC0415  (only where there is a device for it)
    import triton.language as tl  # noqa: PLC0415

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def unpack(  # type: ignore[no-untyped-def]
        codes,
        high,
        levels,
        scales,
        offsets,
        out,
        cols,
        width,
        group,
        groups,
        BITS: tl.constexpr,
        AFFINE: tl.constexpr,
        FLIP: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < cols
        slot, byte = column // width, column % width
        code = tl.load(codes + row * width + byte, mask=inside, other=0).to(tl.int32)
        if BITS < 6:
            level = tl.load(levels + ((code >> (BITS * slot)) & 15), mask=inside, other=0.0)
        elif BITS == 6:
            quarter = cols // 4
            upper = tl.load(high + row * quarter + column % quarter, mask=inside, other=0).to(tl.int32)
            six = ((code >> (4 * slot)) & 15) | (((upper >> (2 * (column // quarter))) & 3) << 4)
            level = ((six ^ FLIP) - FLIP).to(tl.float32)
        else:
            level = code.to(tl.float32)
        value = level * tl.load(scales + row * groups + column // group, mask=inside, other=0.0)
        if AFFINE:
            value = value + tl.load(offsets + row * groups + column // group, mask=inside, other=0.0)
        if out.dtype.element_ty == tl.bfloat16:  # rounded as the processor's kernel does: to nearest, ties to even
            bits = value.to(tl.int32, bitcast=True)
            value = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
        tl.store(out + row * cols + column, value, mask=inside)

    return unpack
