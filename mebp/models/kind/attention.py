"""Causal grouped-query attention, with or without a sliding window, a tile of queries at a time, and its backward."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from mebp.models.op import Buffer, Dims, Kind, Op, Part, Rate, Scratch, WeightUse
from mebp.models.tensor import FLOAT_BYTES

SCORE_ELEMENTS = 1 << 20  # attention scores of one tile
SPANS = 8  # different numbers of keys that tiles see: for each a library compiles and keeps kernels


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionParams:
    """softmax(s) v of scores s = scale q k^T, which become cap tanh(s / cap) where `cap` is not 0; which keys a query sees is part
    of the op's dims.
    """

    scale: float
    cap: float


def num_keys(dims: Dims) -> int:
    """Keys of a sequence up to its last query."""
    return dims.first + dims.seq


def score_rows(dims: Dims) -> int:
    """Query positions of one attention tile."""
    return min(dims.seq, dims.window or dims.seq, max(1, SCORE_ELEMENTS // (dims.heads // dims.kv_heads) // score_span(dims)))


def score_span(dims: Dims) -> int:
    """Most keys that one attention tile reads: the window of its first row up to its last row."""
    return min(num_keys(dims), 2 * dims.window) if dims.window else num_keys(dims)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryTile:
    """Queries [start, end) of one key head in one sequence, and the keys [low, high) that are multiplied with them: all that they
    see, and some more that are masked.
    """

    start: int
    end: int
    low: int
    high: int


def query_tiles(dims: Dims, rows: int) -> Iterator[QueryTile]:
    """Tiles of `rows` positions each, their numbers of keys rounded up to one of a few."""
    unit = -(-score_span(dims) // SPANS)
    for start in range(dims.first, num_keys(dims), rows):
        end = min(start + rows, num_keys(dims))
        low = max(0, start - dims.window + 1) if dims.window else 0
        span = min(score_span(dims), -(-(end - low) // unit) * unit)
        low = min(low, num_keys(dims) - span)
        yield QueryTile(start=start, end=end, low=low, high=low + span)


def attended_pairs(seq: int, window: int) -> int:
    """(query, key) pairs under a causal mask, with a sliding window of `window` keys where that is not 0."""
    width = min(window or seq, seq)
    return width * (width + 1) // 2 + (seq - width) * width


def _flops(products: int) -> Callable[[Op], int]:
    def flops(op: Op) -> int:
        d = op.dims
        return products * 2 * d.batch * d.heads * d.pairs * d.head_dim

    return flops


def _moved(op: Op) -> int:
    d = op.dims
    return d.batch * d.heads * d.pairs * FLOAT_BYTES


@cache
def _tile_shapes(dims: Dims) -> int:
    """Numbers of queries and of keys that tiles have."""
    return len({(tile.end - tile.start, tile.high - tile.low) for tile in query_tiles(dims, score_rows(dims))})


def _kernels(op: Op) -> int:
    """q k^T and p v, for every shape of a tile."""
    return 2 * _tile_shapes(op.dims)


def _backward_kernels(op: Op) -> int:
    """p^T dy and ds^T q, which have one shape; the other products have those of the forward."""
    return _tile_shapes(op.dims)


def _scratch(op: Op, use: WeightUse) -> Scratch:
    """One tile of queries with its scores, and what it attends to."""
    return Scratch(always=(*_score_tile(op.dims), _tile_row(op.dims, "sums"), *_query_tiles(op.dims, "q", "y")))


def _backward_scratch(op: Op, use: WeightUse) -> Scratch:
    """The same with a second tile of scores for their gradient, fp32 sums over keys where dk and dv are none themselves, and a
    product to be added to them; a third tile for the slopes of capped scores.
    """
    d = op.dims
    tile_rows = score_rows(d) * (d.heads // d.kv_heads)
    capped = isinstance(op.params, AttentionParams) and op.params.cap > 0
    slopes = (Buffer(name="slopes", shape=(tile_rows * score_span(d),), dtype="fp32"),) if capped else ()
    sums = (Buffer(name=name, shape=(num_keys(d), d.head_dim), dtype="fp32") for name in ("dk sum", "dv sum"))
    return Scratch(
        always=(
            *_score_tile(d),
            Buffer(name="ds", shape=(tile_rows * score_span(d),), dtype="fp32"),
            *slopes,
            *_query_tiles(d, "q", "dy", "dq"),
            *(() if "dk" in op.updates else sums),
            Buffer(name="product", shape=(score_span(d), d.head_dim), dtype=d.activation),
        )
    )


def _score_tile(dims: Dims) -> tuple[Buffer, ...]:
    """Scores of R queries of the G heads that share a key head, (R x G, S), in fp32 and in the activations' type; a mask (R, S); a
    number a row.
    """
    rows, span = score_rows(dims), score_span(dims)
    count = rows * (dims.heads // dims.kv_heads) * span
    return (
        Buffer(name="scores", shape=(count,), dtype="fp32"),
        Buffer(name="typed", shape=(count,), dtype=dims.activation),
        Buffer(name="mask", shape=(rows * span,), dtype="bool"),
        _tile_row(dims, "row"),
    )


def _tile_row(dims: Dims, name: str) -> Buffer:
    return Buffer(name=name, shape=(score_rows(dims) * (dims.heads // dims.kv_heads),), dtype="fp32")


def _query_tiles(dims: Dims, *names: str) -> tuple[Buffer, ...]:
    shape = (score_rows(dims) * (dims.heads // dims.kv_heads), dims.head_dim)
    return tuple(Buffer(name=name, shape=shape, dtype=dims.activation) for name in names)


KINDS = (
    Kind(
        name="attention",
        part=Part.ATTENTION,
        rate=Rate.ATTENTION,
        flops=_flops(2),
        moved=_moved,
        scratch=_scratch,
        kernels=_kernels,
        saves=("q", "k", "v", "y", "lse"),
        keys=("k", "v"),
    ),
    Kind(
        name="attention_backward",
        part=Part.ATTENTION,
        rate=Rate.ATTENTION,
        flops=_flops(5),
        moved=_moved,
        scratch=_backward_scratch,
        kernels=_backward_kernels,
        backward=True,
        keys=("k", "v", "dk", "dv"),
    ),
)
