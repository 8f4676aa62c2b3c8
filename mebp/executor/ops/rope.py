"""Rotary embedding and its backward. T positions, H heads, R columns of a head that are rotated."""

import torch
from torch import Tensor

from mebp.executor.env import Io
from mebp.kernel.elementwise import rotate
from mebp.models.kind.rope import RopeParams


def rope(io: Io) -> None:
    """Rotate each pair (x1, x2) of the two halves of a head's first R columns: (x1 c - x2 s, x2 c + x1 s); others stay."""
    if rotate(_heads(io, io["x"]), _heads(io, io["y"]), *_table(io), back=False):
        return
    (x1, x2, rest), (y1, y2, kept) = _halves(io, io["x"]), _halves(io, io["y"])
    c, s = (table[:, None] for table in _table(io))  # (T, 1, R / 2)
    kept.copy_(rest)
    torch.mul(x1, c, out=y1).addcmul_(x2, s, value=-1)
    torch.mul(x2, c, out=y2).addcmul_(x1, s)


def rope_backward(io: Io) -> None:
    """Rotate the gradient back, in place."""
    dy = _heads(io, io["dy"])
    if rotate(dy, dy, *_table(io), back=True):
        io.leave_scratch()
        return
    d1, d2, _ = _halves(io, io["dy"])
    c, s = (table[:, None] for table in _table(io))  # (T, 1, R / 2)
    first = io.take("first").copy_(d1)
    d1.mul_(c).addcmul_(d2, s)
    d2.mul_(c).addcmul_(first, s, value=-1)


def _heads(io: Io, x: Tensor) -> Tensor:
    d = io.dims
    return x.view(d.batch, d.seq, d.heads, d.head_dim)


def _halves(io: Io, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two halves of what is rotated of every head, (batch, T, H, R / 2) each, and the rest of its columns."""
    half = io.params(RopeParams).rope.width(io.dims.head_dim) // 2
    first, second, rest = _heads(io, x).tensor_split((half, 2 * half), dim=-1)
    return first, second, rest


def _table(io: Io) -> tuple[Tensor, Tensor]:
    """cos and sin, (T, R / 2)."""
    d = io.dims
    cos, sin = io.env.tables[io.params(RopeParams).rope]
    return cos[d.first : d.first + d.seq], sin[d.first : d.first + d.seq]
