"""Causal grouped-query attention and its backward by the compiled kernel: scores never leave a thread's part of the room, and keys
that no query of a block sees are skipped.
"""

from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from mebp.kernel.library import extent, fit, library


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Extents: queries [first, first + count) of each sequence and keys [0, first + count). q and y are (batch x count, heads x
    width), k and v (batch x (first + count), kv_heads x width). A query at t sees keys (t - window, t], all up to t where `window`
    is 0; scores are multiplied by `scale`, and become cap tanh(score / cap) where `cap` is not 0.
    """

    batch: int
    first: int
    count: int
    heads: int
    kv_heads: int
    width: int
    window: int
    scale: float
    cap: float

    def forward(self, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, room: Tensor) -> bool:
        """y = softmax(scale q k^T) v, and `lse` (batch x count, heads) the logarithm of the sum of e^score, fp32. `room` is a
        contiguous buffer that the threads share. False, and nothing computed, where the kernel cannot.
        """
        found = library()
        if found.kernels is None or not found.multiplies:
            return False
        if not fit((q, k, v, y), torch.bfloat16) or not fit((lse,), torch.float32):
            return False
        return bool(found.kernels.attention(*_pointers(q, k, v, y, lse), *astuple(self), *extent(room)))

    def backward(self, operands: tuple[Tensor, ...], dk: Tensor, dv: Tensor, room: Tensor) -> bool:
        """Of operands q, k, v, dy, y and lse: dq in the place of q, and dk and dv, or, where these are fp32, added to them. As
        `forward`.
        """
        found, add = library(), dk.dtype is torch.float32
        *typed, lse = operands
        kind = torch.float32 if add else torch.bfloat16
        if found.kernels is None or not found.multiplies:
            return False
        if not (fit(typed, torch.bfloat16) and fit((lse,), torch.float32) and fit((dk, dv), kind)):
            return False
        pointers = _pointers(*operands, dk, dv)
        return bool(found.kernels.attention_backward(*pointers, add, *astuple(self), *extent(room)))


def _pointers(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in tensors)
