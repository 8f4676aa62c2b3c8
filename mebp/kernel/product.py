"""Products of bf16 activations with a weight, which the compiled kernel unpacks block by block as it multiplies, where it is
compressed.
"""

from ctypes import byref

import torch
from torch import Tensor

from mebp.kernel.library import extent, library
from mebp.kernel.weight import Frozen, kernel_weight

RESULTS = (torch.bfloat16, torch.float32)


def multiply(
    x: Tensor,
    frozen: Frozen,
    out: Tensor,
    room: Tensor,
    *,
    transposed: bool,
    add: bool = False,
    bias: Tensor | None = None,
    adapter: tuple[Tensor, Tensor] | None = None,
) -> bool:
    """out (tokens, rows) = x (tokens, cols) W^T + bias where `transposed`, else out (tokens, cols) = x (tokens, rows) W; added to
    `out` with `add`. W (rows, cols) is `frozen`; sums are fp32, rounded once where `out` is bf16.

    `adapter` adds left (tokens, r) times right^T, right (rows, r), or times right (r, cols). `room` is a contiguous buffer that
    the threads share. False, and nothing computed, where the kernel cannot.
    """
    found = library()
    if not found.multiplies or found.kernels is None or any(operand.device.type != "cpu" for operand in (x, out, room)):
        return False
    if x.dtype is not torch.bfloat16 or out.dtype not in RESULTS or (bias is not None and bias.dtype is not torch.bfloat16):
        return False
    weight = kernel_weight(frozen)
    if weight is None or x.stride(-1) != 1 or out.stride(-1) != 1 or not room.is_contiguous():
        return False
    added = None if bias is None else bias.data_ptr()
    target = (out.data_ptr(), out.stride(0), out.dtype is torch.float32, add, added)
    left, right = adapter or (None, None)
    low_rank = (None, None, 0) if left is None or right is None else (left.data_ptr(), right.data_ptr(), left.shape[1])
    operands = (x.data_ptr(), x.stride(0), len(x))
    return bool(found.kernels.multiply(byref(weight), transposed, *operands, *target, *low_rank, *extent(room)))


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
