"""Tiles of weights: how many rows are unpacked at a time, and the scratch that this takes."""

from mebp.models.format import WeightFormat
from mebp.models.op import Buffer, Dims, Op, Scratch, WeightUse, float_type
from mebp.models.tensor import Weight

STREAM_WEIGHTS = 1 << 20  # weights of one streamed tile: up to 8192 columns it stays in a 2 MiB cache
BLOCK_ROWS, LEAST_ROWS = 64, 128
GATHER_ROWS = 256  # rows of the embedding unpacked at a time


def stream_rows(cols: int) -> int:
    """Rows of a weight of `cols` columns that are unpacked at a time when it is streamed: whole blocks of the product's kernel. On
    tiles that are no multiple of 64 rows, or narrower than 128, that takes up to 1.4 x as long (EPYC, torch 2.13).
    """
    return max(LEAST_ROWS, STREAM_WEIGHTS // cols // BLOCK_ROWS * BLOCK_ROWS)


def reads_in_place(fmt: WeightFormat, itemsize: int) -> bool:
    """Whether a product reads the stored weight itself, nothing unpacked: bf16 weights under bf16 products."""
    return not fmt.compressed and itemsize == 2


def product_scratch(use: WeightUse, dims: Dims, rows: int = 0) -> tuple[Buffer, ...]:
    """Scratch of a product with a weight: `tile` (of `rows` rows where a number is given) where it is streamed and has to be
    unpacked; else, for bf16 products, `room` for the blocks of the product's kernel, which it lays in the tile where there is one.
    It is planned whether or not there is a kernel: a plan does not know where it runs.
    """
    weight = use.weight
    if weight is None:
        return ()
    if use.streamed and not reads_in_place(weight.format, dims.itemsize):
        return _unpacked("", weight.format, min(rows or stream_rows(weight.cols), weight.rows), weight.cols, dims.itemsize)
    if dims.itemsize != 2:
        return ()
    return (Buffer(name="room", shape=(min(STREAM_WEIGHTS, weight.count),), dtype="bf16"),)


def gathered(weight: Weight, dims: Dims) -> tuple[Buffer, ...]:
    """Buffers for some rows of a weight gathered as they are stored, each part of its format, and the same unpacked."""
    fmt, rows = weight.format, min(GATHER_ROWS, dims.rows)
    stored = (Buffer(name=f"gathered {part.name}", shape=(rows, part.per_row), dtype=part.dtype) for part in fmt.parts(dims.cols))
    return (*stored, *_unpacked("gathered ", fmt, rows, dims.cols, dims.itemsize))


def no_scratch(op: Op, use: WeightUse) -> Scratch:
    """An op that works on its tensors alone."""
    return Scratch()


def _unpacked(prefix: str, fmt: WeightFormat, rows: int, cols: int, itemsize: int) -> tuple[Buffer, ...]:
    """(rows, cols) weights unpacked; nothing where the product reads them as they are stored."""
    if reads_in_place(fmt, itemsize):
        return ()
    return (Buffer(name=f"{prefix}tile", shape=(rows, cols), dtype=float_type(itemsize)),)
