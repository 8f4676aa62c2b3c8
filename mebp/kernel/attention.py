"""Causal grouped-query attention and its backward by the compiled kernel: scores never leave a thread's part of the room, and keys
that no query of a block sees are skipped.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mebp.kernel.library import extent, fit, library


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Extents: q and y are (batch x seq, heads x width), k and v (batch x seq, kv_heads x width). A query at t sees keys
    (t - window, t], all up to t where `window` is 0; scores are multiplied by `scale`, and become cap tanh(score / cap) where `cap`
    is not 0.
    """

    batch: int
    seq: int
    heads: int
    kv_heads: int
    width: int
    window: int
    scale: float
    cap: float

    def forward(self, q: Tensor, k: Tensor, v: Tensor, y: Tensor, room: Tensor) -> bool:
        """y = softmax(scale q k^T) v; `room` is a contiguous buffer that the threads share. False, and nothing computed, where the
        kernel cannot.
        """
        return self._run("attention", (q, k, v, y), room)

    def backward(self, operands: tuple[Tensor, ...], room: Tensor) -> bool:
        """dq, dk and dv of (q, k, v, dy, dq, dk, dv). As `forward`."""
        return self._run("attention_backward", operands, room)

    def _run(self, name: str, operands: tuple[Tensor, ...], room: Tensor) -> bool:
        found = library()
        if not found.multiplies or not fit(operands, torch.bfloat16):
            return False
        extents = (self.batch, self.seq, self.heads, self.kv_heads, self.width, self.window, self.scale, self.cap)
        return bool(getattr(found.kernels, name)(*(o.data_ptr() for o in operands), *extents, *extent(room)))
