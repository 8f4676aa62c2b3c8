"""Unpacking on a CUDA device in one kernel of Triton, which comes with torch there; equal bit for bit to what torch makes of it."""

import os
import shutil
from functools import cache
from importlib.util import find_spec
from typing import Any

from torch import Tensor

BLOCK = 1024  # columns of a row that one program unpacks


def unpack_on_gpu(codes: Tensor, steps: Tensor, bits: int, out: Tensor) -> bool:
    """Decompress codes (rows, bytes) int8 and steps (rows, groups) bf16 into `out` (rows, cols), all on one device; False where
    there is no Triton or no C compiler for it, or a tensor is not contiguous.
    """
    if not _compiles() or not all(tensor.is_contiguous() for tensor in (codes, steps, out)):
        return False
    rows, cols = out.shape
    grid = (rows, -(-cols // BLOCK))
    _kernel()[grid](codes, steps, out, cols, codes.shape[1], cols // steps.shape[1], steps.shape[1], BITS=bits, BLOCK=BLOCK)
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
    def unpack(codes, steps, out, cols, width, group, groups, BITS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < cols
        slot, byte = column // width, column % width
        code = tl.load(codes + row * width + byte, mask=inside, other=0).to(tl.int32)
        top = (code << (8 - BITS * (slot + 1))) & (0xFF << (8 - BITS)) & 0xFF
        signed = (top ^ 0x80) - 0x80
        step = tl.load(steps + row * groups + column // group, mask=inside, other=0.0).to(tl.float32)
        value = signed.to(tl.float32) * step
        if out.dtype.element_ty == tl.bfloat16:  # rounded as the processor's kernel does: to nearest, ties to even
            bits = value.to(tl.int32, bitcast=True)
            value = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
        tl.store(out + row * cols + column, value, mask=inside)

    return unpack
