"""Products with an op's frozen weight W (rows, cols): by the compiled kernel, or in torch a tile of rows at a time."""

from torch import Tensor

from mebp.executor.env import Io
from mebp.kernel.product import multiply_dense


def times_transposed(io: Io, x: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
    """out (N, rows) = x (N, cols) W^T + bias."""
    if io.multiply(x, out, transposed=True, bias=bias):
        return
    for start, end, tile in io.weight_tiles():  # (end - start, cols)
        multiply_dense(x, tile.T, out[:, start:end])
    if bias is not None:
        out.add_(bias)


def times(io: Io, x: Tensor, out: Tensor, *, add: bool) -> None:
    """out (N, cols) = x (N, rows) W, or added to what is there."""
    if io.multiply(x, out, transposed=False, add=add):
        return
    for start, end, tile in io.weight_tiles():
        multiply_dense(x[:, start:end], tile, out, add=add or start > 0)
