"""Frozen linears with LoRA: y = x W^T + b + s (x A^T) B^T, and their backward. N tokens, k in, n out, r rank."""

import torch
from torch import Tensor

from mebp.executor.env import Io
from mebp.executor.ops.product import times, times_transposed
from mebp.models.kind.linear import LinearParams


def linear(io: Io) -> None:
    x, y = io["x"], io["y"]  # (N, k), (N, n)
    times_transposed(io, x, y, io.vector() if io.op.vectors else None)
    if io.op.adapters:
        A, B = _cast_adapter(io)
        h = torch.mm(x, A.T, out=io.take("h"))  # (N, r)
        y.addmm_(h, B.T, alpha=io.params(LinearParams).lora_scale)


def linear_backward(io: Io) -> None:
    """dx = dy W + s (dy B) A; dA = s (dy B)^T x; dB = s dy^T (x A^T). h = x A^T is recomputed: r is tiny."""
    dy = io["dy"]  # (N, n)
    scale = io.params(LinearParams).lora_scale
    if io.has("dx"):
        times(io, dy, io["dx"], add="dx" not in io.op.writes)
    if not io.op.adapters:
        return
    x = io["x"]  # (N, k)
    A, B = _cast_adapter(io)
    h = torch.mm(x, A.T, out=io.take("h"))  # (N, r)
    dh = torch.mm(dy, B, out=io.take("dh"))  # (N, r)
    if io.has("dx"):
        io["dx"].addmm_(dh, A, alpha=scale)
    dA, dB = io["dA"], io["dB"]  # (r, k), (n, r)
    dA.copy_(torch.mm(dh.T, x, out=io.take("dA"))).mul_(scale)
    dB.copy_(torch.mm(h.T, dy, out=io.take("dB")).T).mul_(scale)  # three times as fast as dy^T h


def _cast_adapter(io: Io) -> tuple[Tensor, Tensor]:
    """A (r, k) and B (n, r) in the activations' type."""
    adapter = io.adapter()
    return io.take("A").copy_(adapter.A), io.take("B").copy_(adapter.B)
