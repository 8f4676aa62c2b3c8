"""Ops that touch each element once or twice: the residual sum, the gated activation, and their backward. N tokens."""

import torch
from torch import Tensor

from mebp.executor.env import Io
from mebp.kernel import elementwise as kernel
from mebp.models.kind.elementwise import GluParams, ResidualParams

aten = torch.ops.aten


def residual(io: Io) -> None:
    torch.add(io["x"], io["branch"], alpha=io.params(ResidualParams).scale, out=io["y"])


def residual_backward(io: Io) -> None:
    torch.mul(io["dy"], io.params(ResidualParams).scale, out=io["dx"])


def narrow(io: Io) -> None:
    """fp32 in the activations' type."""
    io["y"].copy_(io["x"])


def glu(io: Io) -> None:
    gate, up, y = io["gate"], io["up"], io["y"]  # (N, f)
    if kernel.glu(gate, up, y, io.params(GluParams).activation):
        return
    _activate(io, gate, y)
    y.mul_(up)


def glu_backward(io: Io) -> None:
    """dup = dy act(gate) in the place of up, dgate = dy up act'(gate) in that of the gate."""
    dy, gate, up = (io[slot] for slot in ("dy", "gate", "up"))  # (N, f)
    if kernel.glu_backward(dy, gate, up, io.params(GluParams).activation):
        io.leave_scratch()
        return
    dup = io.take("dup")  # (rows, f)
    for start in range(0, len(dy), len(dup)):
        rows = slice(start, min(start + len(dup), len(dy)))
        _glu_backward_tile(io, dy[rows], gate[rows], up[rows], dup[: rows.stop - start])


def _glu_backward_tile(io: Io, dy: Tensor, gate: Tensor, up: Tensor, dup: Tensor) -> None:
    _activate(io, gate, dup)
    dup.mul_(dy)
    up.mul_(dy)
    if io.params(GluParams).activation == "silu":
        aten.silu_backward.grad_input(up, gate, grad_input=up)
    else:
        aten.gelu_backward.grad_input(up, gate, approximate="tanh", grad_input=up)
    gate.copy_(up)
    up.copy_(dup)


def _activate(io: Io, x: Tensor, out: Tensor) -> None:
    if io.params(GluParams).activation == "silu":
        aten.silu.out(x, out=out)
    else:
        aten.gelu.out(x, approximate="tanh", out=out)
