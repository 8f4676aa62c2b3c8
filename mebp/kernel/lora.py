"""What an adapter adds to a product, by the compiled kernel. N tokens, k in, n out, r rank; bf16 but for the gradients.

B has the adapter's scale in it. `room` is a contiguous buffer that the threads share. Every function returns False, and has
computed nothing, where the kernel cannot.
"""

import torch
from torch import Tensor

from mebp.kernel.library import extent, fit, library


def lora_down(x: Tensor, A: Tensor, h: Tensor, room: Tensor) -> bool:
    """h (N, r) = x (N, k) A^T, A (r, k)."""
    found = library()
    if found.kernels is None or not found.multiplies or not fit((x, A, h), torch.bfloat16):
        return False
    rank, cols = A.shape
    return bool(found.kernels.lora_down(x.data_ptr(), A.data_ptr(), h.data_ptr(), len(x), cols, rank, *extent(room)))


def lora_gradients(
    operands: tuple[Tensor, Tensor, Tensor, Tensor],
    sums: tuple[Tensor, Tensor],
    gradients: tuple[Tensor, Tensor],
    scale: float,
    room: Tensor,
    *,
    add: bool = False,
) -> bool:
    """Of operands x (N, k), dy (N, n), A (r, k), B (n, r): the sums h = x A^T and dh = dy B, and, in fp32, the gradients
    dA = dh^T x and dB = scale dy^T h, added to what is there with `add`.
    """
    found = library()
    typed = (*operands, *sums)
    if found.kernels is None or not found.multiplies:
        return False
    if not fit(typed, torch.bfloat16) or not fit(gradients, torch.float32):
        return False
    x, _, A, B = operands
    extents = (len(x), A.shape[1], len(B), len(A))
    pointers = (tensor.data_ptr() for tensor in (*typed, *gradients))
    return bool(found.kernels.lora_gradients(*pointers, scale, add, *extents, *extent(room)))
