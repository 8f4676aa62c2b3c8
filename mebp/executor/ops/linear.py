"""Frozen linears with LoRA: y = x W^T + b + s (x A^T) B^T, and their backward. N tokens, k in, n out, r rank."""

import torch
from torch import Tensor

from mebp.executor.env import Io
from mebp.executor.ops.dropout import drop, seen
from mebp.executor.ops.product import times, times_transposed
from mebp.kernel.lora import lora_down, lora_gradients
from mebp.kernel.product import multiply_dense
from mebp.models.kind.linear import LinearParams


def linear(io: Io) -> None:
    x, y = io["x"], io["y"]  # (N, k), (N, n)
    bias = io.vector() if io.op.vectors else None
    if _fused(io, x, y, bias):
        return
    times_transposed(io, x, y, bias)
    if io.op.adapters:
        A, B = _cast_adapter(io)
        h = io.take("h")  # (N, r)
        multiply_dense(seen(io, x), A.T, h)
        multiply_dense(h, B.T, y, add=True)


def linear_backward(io: Io) -> None:
    """dx = dy W + s (dy B) A; dA = s (dy B)^T x; dB = s dy^T (x A^T). h = x A^T is recomputed: r is tiny. With dropout x is what
    the adapter sees of it, and what it adds to dx passes through the same mask.
    """
    dy, dx = io["dy"], _dx(io)  # (N, n), (N, k)
    scale = io.params(LinearParams).lora_scale
    if _fused_backward(io, dy, dx, scale):
        return
    if io.op.adapters:  # first: dx may take the place of x
        _adapter_gradients(io, dy, scale)
    if dx is not None:
        _input_gradient(io, dy, dx)


def _input_gradient(io: Io, dy: Tensor, dx: Tensor) -> None:
    """dx, piece by piece."""
    times(io, dy, dx, add="dx" in io.op.updates)
    if io.op.adapters:
        A, B = _cast_adapter(io)  # once more: the weight's tile lies where they were
        dh = io.take("dh")  # (N, r)
        multiply_dense(dy, B, dh)
        _add_adapter(io, dh, A, dx)


def _dx(io: Io) -> Tensor | None:
    """Where dx goes, if it is wanted: a tensor of its own, one that it is added to, or the place of x."""
    if io.op.is_in_place:
        return io["x"]
    return io["dx"] if io.has("dx") else None


def _adapter_gradients(io: Io, dy: Tensor, scale: float) -> None:
    x = seen(io, io["x"])  # (N, k)
    A, B = _cast_adapter(io)
    h, dh = io.take("h"), io.take("dh")  # (N, r)
    multiply_dense(x, A.T, h)
    multiply_dense(dy, B, dh)
    dA, dB, adds = io["dA"], io["dB"], "dA" in io.op.updates  # (r, k), (n, r)
    part_A, part_B = torch.mm(dh.T, x, out=io.take("dA")), torch.mm(h.T, dy, out=io.take("dB"))  # three times as fast as dy^T h
    if adds:
        dA.add_(part_A)
        dB.add_(part_B.T, alpha=scale)
    else:
        dA.copy_(part_A)
        dB.copy_(part_B.T).mul_(scale)


def _add_adapter(io: Io, dh: Tensor, A: Tensor, dx: Tensor) -> None:
    """dx += dh A, through the mask of the input where there is dropout."""
    if not io.params(LinearParams).dropout:
        multiply_dense(dh, A, dx, add=True)
        return
    added = io.take("seen")
    multiply_dense(dh, A, added)
    dx.add_(drop(io, added, added))


def _fused(io: Io, x: Tensor, y: Tensor, bias: Tensor | None) -> bool:
    """The product with its adapter, in the kernel."""
    if not (io.op.adapters and io.multiplies):
        return False
    A, B = _cast_adapter(io)
    h, room = io.take("h"), io.room(behind=("A", "B", "h"))
    return lora_down(seen(io, x), A, h, room) and io.multiply(x, y, transposed=True, bias=bias, adapter=(h, B), room=room)


def _fused_backward(io: Io, dy: Tensor, dx: Tensor | None, scale: float) -> bool:
    """The same backward, where dx is wanted."""
    if dx is None or not (io.op.adapters and io.multiplies):
        return False
    x = seen(io, io["x"])
    A, B = _cast_adapter(io)
    h, dh, room = io.take("h"), io.take("dh"), io.room(behind=("A", "B", "h", "dh"))
    adds = "dA" in io.op.updates
    if not lora_gradients((x, dy, A, B), (h, dh), (io["dA"], io["dB"]), scale, room, add=adds):
        return False
    add, masked = "dx" in io.op.updates, bool(io.params(LinearParams).dropout)
    if not io.multiply(dy, dx, transposed=False, add=add, adapter=None if masked else (dh, A), room=room):
        _input_gradient(io, dy, dx)  # dA and dB are there: added once more they would count twice
    elif masked:
        _add_adapter(io, dh, A, dx)
    return True


def _cast_adapter(io: Io) -> tuple[Tensor, Tensor]:
    """A (r, k) and s B (n, r) in the activations' type."""
    adapter = io.adapter()
    return io.take("A").copy_(adapter.A), io.take("B").copy_(adapter.B).mul_(io.params(LinearParams).lora_scale)
