"""Rotary embedding and its backward. N tokens, H heads, D head_dim."""

import torch
from torch import Tensor

from mebp.executor.env import Io
from mebp.kernel.elementwise import rotate
from mebp.models.kind.rope import RopeParams


def rope(io: Io) -> None:
    """Rotate each pair (x1, x2) of a head's two halves: (x1 c - x2 s, x2 c + x1 s)."""
    if rotate(_heads(io, io["x"]), _heads(io, io["y"]), *_table(io), back=False):
        return
    (x1, x2), (y1, y2) = _halves(io, io["x"]), _halves(io, io["y"])
    c, s = (table[:, None] for table in _table(io))  # (T, 1, D / 2)
    torch.mul(x1, c, out=y1).addcmul_(x2, s, value=-1)
    torch.mul(x2, c, out=y2).addcmul_(x1, s)


def rope_backward(io: Io) -> None:
    """Rotate the gradient back, in place."""
    dy = _heads(io, io["dy"])
    if rotate(dy, dy, *_table(io), back=True):
        io.leave_scratch()
        return
    d1, d2 = _halves(io, io["dy"])
    c, s = (table[:, None] for table in _table(io))  # (T, 1, D / 2)
    first = io.take("first").copy_(d1)
    d1.mul_(c).addcmul_(d2, s)
    d2.mul_(c).addcmul_(first, s, value=-1)


def _heads(io: Io, x: Tensor) -> Tensor:
    d = io.dims
    return x.view(d.batch, d.seq, d.heads, d.head_dim)


def _halves(io: Io, x: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves of every head: (batch, T, H, D / 2) each."""
    return _heads(io, x).tensor_split(2, dim=-1)  # type: ignore[return-value]


def _table(io: Io) -> tuple[Tensor, Tensor]:
    """cos and sin, (T, D / 2)."""
    return io.env.tables[io.params(RopeParams).rope]
