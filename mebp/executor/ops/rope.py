"""Rotary embedding and its backward. N tokens, H heads, D head_dim."""

import torch
from torch import Tensor

from mebp.executor.env import Io
from mebp.models.kind.rope import RopeParams


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


def _halves(io: Io, x: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves of every head: (batch, T, H, D / 2) each."""
    d = io.dims
    heads = x.view(d.batch, d.seq, d.heads, d.head_dim)
    return heads[..., : d.head_dim // 2], heads[..., d.head_dim // 2 :]


def _table(io: Io) -> tuple[Tensor, Tensor]:
    """cos and sin as (T, 1, D / 2)."""
    cos, sin = io.env.tables[io.params(RopeParams).rope]
    return cos[:, None], sin[:, None]
