"""Products of bf16 activations with a weight, which the compiled kernel unpacks block by block as it multiplies, where it is
compressed.
"""

import torch
from torch import Tensor

from mebp.kernel.library import extent, library

RESULTS = (torch.bfloat16, torch.float32)


def multiply(
    x: Tensor,
    codes: Tensor,
    steps: Tensor | None,
    bits: int,
    out: Tensor,
    room: Tensor,
    *,
    transposed: bool,
    add: bool = False,
    bias: Tensor | None = None,
    adapter: tuple[Tensor, Tensor] | None = None,
) -> bool:
    """out (tokens, rows) = x (tokens, cols) W^T + bias where `transposed`, else out (tokens, cols) = x (tokens, rows) W; added to
    `out` with `add`. W (rows, cols) is codes (rows, bytes) int8 and steps (rows, groups) bf16, or `codes` itself in bf16 where
    `bits` are 16; sums are fp32, rounded once where `out` is bf16.

    `adapter` adds left (tokens, r) times right^T, right (rows, r), or times right (r, cols). `room` is a contiguous buffer that
    the threads share. False, and nothing computed, where the kernel cannot.
    """
    found = library()
    if not found.multiplies or found.kernels is None or any(operand.device.type != "cpu" for operand in (x, out, codes, room)):
        return False
    rows, cols = codes.shape[0], codes.shape[1] * 8 * codes.itemsize // bits
    if x.dtype is not torch.bfloat16 or out.dtype not in RESULTS or (bias is not None and bias.dtype is not torch.bfloat16):
        return False
    if steps is None and codes.dtype is not torch.bfloat16:
        return False
    if x.stride(-1) != 1 or out.stride(-1) != 1 or not all(t.is_contiguous() for t in (codes, steps, room) if t is not None):
        return False
    tokens = len(x)
    scale = (None, rows, cols, cols) if steps is None else (steps.data_ptr(), rows, cols, cols // steps.shape[1])
    weight = (codes.data_ptr(), *scale, bits)
    added = None if bias is None else bias.data_ptr()
    target = (out.data_ptr(), out.stride(0), out.dtype is torch.float32, add, added)
    left, right = adapter or (None, None)
    low_rank = (None, None, 0) if left is None or right is None else (left.data_ptr(), right.data_ptr(), left.shape[1])
    return bool(found.kernels.multiply(*weight, transposed, x.data_ptr(), x.stride(0), tokens, *target, *low_rank, *extent(room)))


def multiply_dense(x: Tensor, b: Tensor, out: Tensor, *, add: bool = False) -> None:
    """out (N, n) = x (N, k) b (k, n), or added to `out`: by the kernel where torch's bf16 products crawl, else in torch."""
    if not (library().own and all(t.dtype is torch.bfloat16 and t.device.type == "cpu" for t in (x, b, out))):
        out.addmm_(x, b, beta=int(add))
        return
    transposed = b.stride(-1) != 1
    rows = b.T if transposed else b
    kernels = library().kernels
    assert kernels is not None
    assert x.stride(-1) == rows.stride(-1) == out.stride(-1) == 1
    operands = (x.data_ptr(), x.stride(0), rows.data_ptr(), rows.stride(0))
    kernels.multiply_dense(*operands, len(x), b.shape[1], b.shape[0], transposed, out.data_ptr(), out.stride(0), add)
