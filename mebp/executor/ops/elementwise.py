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


def glu(io: Io) -> None:
    gate, up, y = io["gate"], io["up"], io["y"]  # (N, f)
    if kernel.glu(gate, up, y, io.params(GluParams).activation):
        return
    _activate(io, gate, y)
    y.mul_(up)


def glu_backward(io: Io) -> None:
    """dup = dy act(gate); dgate = dy up act'(gate)."""
    dy, gate, up, dgate, dup = (io[slot] for slot in ("dy", "gate", "up", "dgate", "dup"))
    if kernel.glu_backward(dy, gate, up, dgate, dup, io.params(GluParams).activation):
        return
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
