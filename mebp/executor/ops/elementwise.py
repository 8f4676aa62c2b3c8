"""Ops that touch each element once or twice: embedding, rotary, residual, gated activation. N tokens, H heads, D head_dim."""

import torch
from torch import Tensor

from mebp.executor.env import Io
from mebp.models.params import EmbedParams, GluParams, RopeParams

aten = torch.ops.aten


def embed(io: Io) -> None:
    """Decompress only the rows of the tokens that occur, and scale them."""
    y = io["y"]  # (N, d)
    io.gather(io.env.ids, y)
    scale = io.params(EmbedParams).scale
    if scale != 1.0:
        y.mul_(scale)


def residual(io: Io) -> None:
    torch.add(io["x"], io["branch"], out=io["y"])


def rope(io: Io) -> None:
    """Rotate each pair (x1, x2) of a head's two halves: (x1 c - x2 s, x2 c + x1 s)."""
    (x1, x2), (y1, y2) = _halves(io, io["x"]), _halves(io, io["y"])
    c, s = _table(io)
    torch.mul(x1, c, out=y1).addcmul_(x2, s, value=-1)
    torch.mul(x2, c, out=y2).addcmul_(x1, s)


def rope_backward(io: Io) -> None:
    """Rotate the gradient back, in place."""
    d1, d2 = _halves(io, io["dy"])
    c, s = _table(io)
    first = io.take("first").copy_(d1)
    d1.mul_(c).addcmul_(d2, s)
    d2.mul_(c).addcmul_(first, s, value=-1)


def glu(io: Io) -> None:
    gate, up, y = io["gate"], io["up"], io["y"]  # (N, f)
    _activate(io, gate, y)
    y.mul_(up)


def glu_backward(io: Io) -> None:
    """dup = dy act(gate); dgate = dy up act'(gate)."""
    dy, gate, up, dgate, dup = (io[slot] for slot in ("dy", "gate", "up", "dgate", "dup"))
    _activate(io, gate, dup)
    dup.mul_(dy)
    torch.mul(dy, up, out=dgate)
    if io.params(GluParams).activation == "silu":
        aten.silu_backward.grad_input(dgate, gate, grad_input=dgate)
    else:
        aten.gelu_backward.grad_input(dgate, gate, approximate="tanh", grad_input=dgate)


def _activate(io: Io, x: Tensor, out: Tensor) -> None:
    if io.params(GluParams).activation == "silu":
        aten.silu.out(x, out=out)
    else:
        aten.gelu.out(x, approximate="tanh", out=out)


def _halves(io: Io, x: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves of every head: (batch, T, H, D / 2) each."""
    d = io.dims
    heads = x.view(d.batch, d.seq, d.heads, d.head_dim)
    return heads[..., : d.head_dim // 2], heads[..., d.head_dim // 2 :]


def _table(io: Io) -> tuple[Tensor, Tensor]:
    """cos and sin as (T, 1, D / 2)."""
    cos, sin = io.env.tables[io.params(RopeParams).rope]
    return cos[:, None], sin[:, None]
