"""Scratch of every kind of op, as named buffers: declared here once for cost, plan and executor. Tiles are sized here too.

An op takes its buffers by name (mebp/executor/env.py); what it does not declare it does not have.
"""

from collections.abc import Callable

from mebp.models.format import WeightFormat
from mebp.models.op import Buffer, Dims, DType, Op, Scratch, WeightUse, float_type
from mebp.models.tensor import Weight

STREAM_WEIGHTS = 1 << 20  # weights of one streamed tile: up to 8192 columns it stays in a 2 MiB cache
BLOCK_ROWS, LEAST_ROWS = 64, 128
NORM_ELEMENTS = 1 << 17  # elements of one fp32 tile of a norm
SCORE_ELEMENTS = 1 << 20  # attention scores of one tile
GATHER_ROWS = 256  # rows of the embedding unpacked at a time


def stream_rows(cols: int) -> int:
    """Rows of a weight of `cols` columns that are unpacked at a time when it is streamed: whole blocks of the product's kernel. On
    tiles that are no multiple of 64 rows, or narrower than 128, that takes up to 1.4 x as long (EPYC, torch 2.13).
    """
    return max(LEAST_ROWS, STREAM_WEIGHTS // cols // BLOCK_ROWS * BLOCK_ROWS)


def norm_rows(dims: Dims) -> int:
    """Rows of one fp32 tile of a norm."""
    return min(dims.rows, max(16, NORM_ELEMENTS // dims.cols))


def score_rows(dims: Dims) -> int:
    """Query positions of one attention tile."""
    return min(dims.seq, dims.window or dims.seq, max(1, SCORE_ELEMENTS // (dims.heads // dims.kv_heads) // score_span(dims)))


def score_span(dims: Dims) -> int:
    """Most keys that one attention tile reads: the window of its first row up to its last row."""
    return min(dims.seq, 2 * dims.window) if dims.window else dims.seq


def reads_in_place(fmt: WeightFormat, itemsize: int) -> bool:
    """Whether a product reads the stored weight itself, nothing unpacked: bf16 weights under bf16 products."""
    return not fmt.compressed and itemsize == 2


def whole_scratch(weight: Weight) -> int:
    """Bytes of scratch to unpack a whole weight, a tile of rows at a time: the codes' temporary."""
    rows = min(stream_rows(weight.cols), weight.rows)
    return sum(buffer.nbytes for buffer in _code_bits("codes", weight.format, rows, weight.cols))


def no_scratch(op: Op, use: WeightUse) -> Scratch:
    """An op that works on its tensors alone."""
    return Scratch()


def embed_scratch(op: Op, use: WeightUse) -> Scratch:
    """The rows that are gathered, and the same unpacked."""
    assert use.weight is not None
    return Scratch(always=_gathered(use.weight, op.dims) if use.streamed else ())


def linear_scratch(op: Op, use: WeightUse) -> Scratch:
    """A tile of the weight, or, once that is done with, the adapter's pair in the activations' type and h = x A^T."""
    return Scratch(either=(_streamed(use, op.dims), _adapter_pair(op.dims)))


def linear_backward_scratch(op: Op, use: WeightUse) -> Scratch:
    """A tile of the weight, or the adapter's pair, h = x A^T, dh = s dy B, and the products that dA and dB are made of."""
    d = op.dims
    gradients = (
        Buffer(name="dh", shape=(d.rows, d.rank), dtype=d.activation),
        Buffer(name="dA", shape=(d.rank, d.cols), dtype=d.activation),
        Buffer(name="dB", shape=(d.rank, d.outs), dtype=d.activation),
    )
    return Scratch(either=(_streamed(use, d), (*_adapter_pair(d), *gradients)))


def norm_scratch(*tiles: str, sums: tuple[str, ...]) -> Callable[[Op, WeightUse], Scratch]:
    """fp32 `tiles` of some rows, `sums` of one value a row, and the norm's weight in fp32."""

    def scratch(op: Op, use: WeightUse) -> Scratch:
        rows, cols = norm_rows(op.dims), op.dims.cols
        wide = (Buffer(name=name, shape=(rows, cols), dtype="fp32") for name in tiles)
        narrow = (Buffer(name=name, shape=(rows, 1), dtype="fp32") for name in sums)
        return Scratch(always=(Buffer(name="weight", shape=(cols,), dtype="fp32"), *wide, *narrow))

    return scratch


def attention_scratch(op: Op, use: WeightUse) -> Scratch:
    """One tile of queries with its scores, and what it attends to."""
    return Scratch(always=(*_score_tile(op.dims), *_query_tiles(op.dims, "q", "y")))


def attention_backward_scratch(op: Op, use: WeightUse) -> Scratch:
    """The same with a second tile of scores for their gradient, fp32 sums over keys, and a product to be added to them."""
    d = op.dims
    tile_rows = score_rows(d) * (d.heads // d.kv_heads)
    sums = (Buffer(name=name, shape=(d.seq, d.head_dim), dtype="fp32") for name in ("dk sum", "dv sum"))
    return Scratch(
        always=(
            *_score_tile(d),
            Buffer(name="ds", shape=(tile_rows * score_span(d),), dtype="fp32"),
            Buffer(name="row", shape=(tile_rows,), dtype="fp32"),
            *_query_tiles(d, "q", "dy", "dq"),
            *sums,
            Buffer(name="product", shape=(score_span(d), d.head_dim), dtype=d.activation),
        )
    )


def rope_backward_scratch(op: Op, use: WeightUse) -> Scratch:
    """The first half of every head, which the second is rotated with."""
    d = op.dims
    return Scratch(always=(Buffer(name="first", shape=(d.batch, d.seq, d.heads, d.head_dim // 2), dtype=d.activation),))


def update_scratch(op: Op, use: WeightUse) -> Scratch:
    """fp32 values of the largest adapter matrix: a denominator, or noise."""
    return Scratch(always=(Buffer(name="values", shape=(op.dims.cols,), dtype="fp32"),))


def head_scratch(op: Op, use: WeightUse) -> Scratch:
    """A tile of fp32 logits, what a tile of weights makes of them in the activations' type, fp32 sums by token; where dx is wanted
    the weighted sum of the head's rows. A tile of the weight is gone when the labels' rows are gathered.
    """
    assert use.weight is not None
    d, weight = op.dims, use.weight
    rows = min(use.tile, stream_rows(d.cols))
    sums = (Buffer(name=name, shape=(d.rows,), dtype="fp32") for name in ("highest", "total", "picked", "row"))
    logits = (
        Buffer(name="logits", shape=(d.rows * use.tile,), dtype="fp32"),
        Buffer(name="typed", shape=(d.rows * rows,), dtype=d.activation),
    )
    accumulator = (
        Buffer(name="weighted", shape=(d.rows, d.cols), dtype="fp32"),
        Buffer(name="product", shape=(d.rows, d.cols), dtype=d.activation),
    )
    tile = _unpacked("", weight.format, min(rows, weight.rows), weight.cols, d.itemsize) if use.streamed else ()
    gathered = _gathered(weight, d) if op.makes_dx else ()
    return Scratch(always=(*sums, *logits, *(accumulator if op.makes_dx else ())), either=(tile, gathered))


def _unpacked(prefix: str, fmt: WeightFormat, rows: int, cols: int, itemsize: int) -> tuple[Buffer, ...]:
    """(rows, cols) weights unpacked, and their codes' temporary; nothing where the product reads them as they are stored."""
    if reads_in_place(fmt, itemsize):
        return ()
    tile = Buffer(name=f"{prefix}tile", shape=(rows, cols), dtype=float_type(itemsize))
    return (tile, *_code_bits(f"{prefix}codes", fmt, rows, cols))


def _code_bits(name: str, fmt: WeightFormat, rows: int, cols: int) -> tuple[Buffer, ...]:
    """One signed byte for each byte of codes, where several codes share a byte."""
    return (Buffer(name=name, shape=(fmt.code_bytes(rows, cols),), dtype="int8"),) if fmt.bits < 8 else ()


def _streamed(use: WeightUse, dims: Dims) -> tuple[Buffer, ...]:
    """One tile of a streamed weight."""
    weight = use.weight
    if weight is None or not use.streamed:
        return ()
    return _unpacked("", weight.format, min(stream_rows(weight.cols), weight.rows), weight.cols, dims.itemsize)


def _gathered(weight: Weight, dims: Dims) -> tuple[Buffer, ...]:
    """Some rows of a weight gathered as they are stored, codes and steps, and the same unpacked."""
    fmt, rows = weight.format, min(GATHER_ROWS, dims.rows)
    dtype: DType = "int8" if fmt.compressed else "bf16"
    stored = [Buffer(name="gathered rows", shape=(rows, fmt.code_elements(dims.cols)), dtype=dtype)]
    if fmt.compressed:
        stored.append(Buffer(name="gathered steps", shape=(rows, dims.cols // fmt.group_cols(dims.cols)), dtype="bf16"))
    return (*stored, *_unpacked("gathered ", fmt, rows, dims.cols, dims.itemsize))


def _adapter_pair(dims: Dims) -> tuple[Buffer, ...]:
    shapes = {"A": (dims.rank, dims.cols), "B": (dims.outs, dims.rank), "h": (dims.rows, dims.rank)}
    return tuple(Buffer(name=name, shape=shape, dtype=dims.activation) for name, shape in shapes.items())


def _score_tile(dims: Dims) -> tuple[Buffer, ...]:
    """Scores of R queries of the G heads that share a key head, (R x G, S), in fp32 and in the activations' type, and a mask (R,
    S).
    """
    rows, span = score_rows(dims), score_span(dims)
    count = rows * (dims.heads // dims.kv_heads) * span
    return (
        Buffer(name="scores", shape=(count,), dtype="fp32"),
        Buffer(name="typed", shape=(count,), dtype=dims.activation),
        Buffer(name="mask", shape=(rows * span,), dtype="bool"),
    )


def _query_tiles(dims: Dims, *names: str) -> tuple[Buffer, ...]:
    shape = (score_rows(dims) * (dims.heads // dims.kv_heads), dims.head_dim)
    return tuple(Buffer(name=name, shape=shape, dtype=dims.activation) for name in names)
