"""Products with an op's frozen weight W (rows, cols): by the compiled kernel, or in torch a tile of rows at a time."""

import torch
from torch import Tensor

from mebp.executor.env import Io


def times_transposed(io: Io, x: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
    """out (N, rows) = x (N, cols) W^T + bias."""
    if io.multiply(x, out, transposed=True, bias=bias):
        return
    for start, end, tile in io.weight_tiles():  # (end - start, cols)
        torch.mm(x, tile.T, out=out[:, start:end])
    if bias is not None:
        out.add_(bias)


def times(io: Io, x: Tensor, out: Tensor, *, add: bool) -> None:
    """out (N, cols) = x (N, rows) W, or added to what is there."""
    if io.multiply(x, out, transposed=False, add=add):
        return
    for start, end, tile in io.weight_tiles():
        out.addmm_(x[:, start:end], tile, beta=1 if add or start else 0)
