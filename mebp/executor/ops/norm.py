"""RMSNorm in fp32, a tile of rows at a time: y = x rsqrt(mean(x^2) + eps) (w + offset). Rows R, columns C."""

import torch
from torch import Tensor

from mebp.executor.env import Io
from mebp.kernel import elementwise as kernel
from mebp.models.kind.norm import NormParams, norm_rows


def norm(io: Io) -> None:
    C, params = io.dims.cols, io.params(NormParams)
    x, y = io["x"].view(-1, C), io["y"].view(-1, C)
    if kernel.norm(x, io.vector(), y, params.eps, params.offset):
        io.leave_scratch()
        return
    w, rows = _weight(io), norm_rows(io.dims)
    x32, square, r = (io.take(name) for name in ("x", "square", "r"))  # (rows, C), (rows, C), (rows, 1)
    for start in range(0, len(x), rows):
        end = min(start + rows, len(x))
        n = end - start
        _normalise(io, x[start:end], x32[:n], square[:n], r[:n])
        y[start:end].copy_(x32[:n].mul_(w))


def norm_backward(io: Io) -> None:
    """dx = r (g - xhat mean(g xhat)) with g = dy w and xhat = x r. Fresh, added to the stream's gradient, or in dy's place."""
    C, params = io.dims.cols, io.params(NormParams)
    x, dy = io["x"].view(-1, C), io["dy"].view(-1, C)
    dx = (io["dx"] if io.has("dx") else io["dy"]).view(-1, C)
    if kernel.norm_backward(x, io.vector(), dy, dx, params.eps, params.offset, add="dx" in io.op.updates):
        io.leave_scratch()
        return
    w, rows = _weight(io), norm_rows(io.dims)
    xhat, g, product = (io.take(name) for name in ("x", "g", "product"))  # (rows, C)
    r, mean = io.take("r"), io.take("mean")  # (rows, 1)
    for start in range(0, len(x), rows):
        end = min(start + rows, len(x))
        n = end - start
        _normalise(io, x[start:end], xhat[:n], product[:n], r[:n])
        g[:n].copy_(dy[start:end]).mul_(w)
        torch.mul(g[:n], xhat[:n], out=product[:n])
        torch.mean(product[:n], dim=1, keepdim=True, out=mean[:n])
        g[:n].addcmul_(xhat[:n], mean[:n], value=-1).mul_(r[:n])
        if "dx" in io.op.updates:
            g[:n].add_(product[:n].copy_(dx[start:end]))
        dx[start:end].copy_(g[:n])


def _normalise(io: Io, x: Tensor, xhat: Tensor, square: Tensor, r: Tensor) -> None:
    """xhat = x r in fp32, with r = rsqrt(mean(x^2) + eps)."""
    xhat.copy_(x)
    torch.mul(xhat, xhat, out=square)
    torch.mean(square, dim=1, keepdim=True, out=r).add_(io.params(NormParams).eps).rsqrt_()
    xhat.mul_(r)


def _weight(io: Io) -> Tensor:
    """The norm's weight in fp32, the family's offset added."""
    return io.take("weight").copy_(io.vector()).add_(io.params(NormParams).offset)
