"""Norms, gated activations and rotary embedding by the compiled kernel: bf16 in and out, fp32 in between, in one pass each. Every
function returns False, and has computed nothing, where the kernel cannot.
"""

import ctypes

import torch
from torch import Tensor

from mebp.kernel.library import fit, library


def norm(x: Tensor, weight: Tensor, y: Tensor, eps: float, offset: float) -> bool:
    """y (rows, cols) = x / sqrt(mean(x^2) + eps) (weight + offset)."""
    kernels = _kernels(x, weight, y)
    if kernels is None:
        return False
    rows, cols = x.shape
    kernels.norm(x.data_ptr(), weight.data_ptr(), y.data_ptr(), rows, cols, eps, offset)
    return True


def norm_backward(x: Tensor, weight: Tensor, dy: Tensor, dx: Tensor, eps: float, offset: float, *, add: bool) -> bool:
    """dL/dx of `norm` (rows, cols), in `dx`, which may be `dy`, or added to it."""
    kernels = _kernels(x, weight, dy, dx)
    if kernels is None:
        return False
    rows, cols = x.shape
    kernels.norm_backward(x.data_ptr(), weight.data_ptr(), dy.data_ptr(), dx.data_ptr(), rows, cols, eps, offset, add)
    return True


def glu(gate: Tensor, up: Tensor, y: Tensor, activation: str) -> bool:
    """y = activation(gate) up; the activation is `silu` or `gelu_tanh`."""
    kernels = _kernels(gate, up, y)
    if kernels is None:
        return False
    getattr(kernels, f"glu_{activation}")(gate.data_ptr(), up.data_ptr(), y.data_ptr(), gate.numel())
    return True


def glu_backward(dy: Tensor, gate: Tensor, up: Tensor, activation: str) -> bool:
    """dy up activation'(gate) in the place of `gate`, dy activation(gate) in that of `up`."""
    operands = (dy, gate, up)
    kernels = _kernels(*operands)
    if kernels is None:
        return False
    getattr(kernels, f"glu_backward_{activation}")(*(operand.data_ptr() for operand in operands), gate.numel())
    return True


def rotate(x: Tensor, y: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> bool:
    """y = x with the halves of every head's first columns turned by its position's angle, or turned `back`; `y` may be `x`. x is
    (batch, seq, heads, head_dim), cos and sin (seq, half), half of the columns that turn.
    """
    kernels = _kernels(x, y, cos, sin)
    if kernels is None:
        return False
    batch, seq, heads, head_dim = x.shape
    operands = (x.data_ptr(), y.data_ptr(), cos.data_ptr(), sin.data_ptr())
    kernels.rotate(*operands, batch * seq, seq, heads, head_dim, cos.shape[1], -1.0 if back else 1.0)
    return True


def _kernels(*operands: Tensor) -> ctypes.CDLL | None:
    """The library, where all operands are what it takes."""
    return library().kernels if fit(operands, torch.bfloat16) else None
