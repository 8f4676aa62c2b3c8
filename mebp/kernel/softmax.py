"""The head's running softmax by the compiled kernel: one tile of logits at a time, in one pass."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mebp.kernel.library import library


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """By token, fp32: the highest logit so far, the sum of e^(logit - highest), the label's logit. Where dx is wanted, the sum
    (tokens, cols) of the head's rows weighted with e^(logit - highest) times the cap's slope.
    """

    highest: Tensor
    total: Tensor
    picked: Tensor
    weighted: Tensor | None


def softmax_tile(logits: Tensor, low: int, labels: Tensor, sums: Sums, exps: Tensor | None, *, scale: float, cap: float) -> bool:
    """Take logits (tokens, tile) fp32 of the vocabulary from `low` on, times `scale` and capped, into the sums. In their place, or
    in `exps` (tokens, tile) bf16 where that is given, is then e^(logit - highest) times the cap's slope. False where the kernel
    cannot.
    """
    kernels = library().kernels
    if kernels is None or logits.device.type != "cpu" or (exps is not None and exps.dtype is not torch.bfloat16):
        return False
    tokens, count = logits.shape
    weighted, cols = (None, 0) if sums.weighted is None else (sums.weighted.data_ptr(), sums.weighted.shape[1])
    running = (sums.highest.data_ptr(), sums.total.data_ptr(), sums.picked.data_ptr(), weighted, cols)
    typed = None if exps is None else exps.data_ptr()
    kernels.softmax_tile(logits.data_ptr(), tokens, count, low, labels.data_ptr(), *running, typed, scale, cap)
    return True
