"""The table of op kinds: FLOPs, bytes moved, scratch, and what each one's backward reads. One entry a kind.

Adding a kind is adding an entry here and one under the same name in mebp/executor/ops; a test compares the two. FLOPs count a
multiply-add as two. Scratch is the op's own workspace in the arena: it lives while the op runs, no longer.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from mebp.models.format import WeightFormat
from mebp.models.graph import Dims, Op, Weight

FLOAT_BYTES = 4
ALIGNMENT = 64
STREAM_WEIGHTS = 1 << 20  # weights of one streamed tile: up to 8192 columns it stays in a 2 MiB cache
BLOCK_ROWS, LEAST_ROWS = 64, 128
NORM_ELEMENTS = 1 << 17  # elements of one fp32 tile of a norm
SCORE_ELEMENTS = 1 << 20  # attention scores of one tile
CHANGES_ADAPTERS = ("update", "accumulate", "apply", "perturb", "mezo_update")
GATHER_ROWS = 256  # rows of the embedding unpacked at a time


class Part(StrEnum):
    """Where time goes, as the time breakdown names it."""

    PRODUCTS = "products"
    ATTENTION = "attention"
    ELEMENTWISE = "element-wise"
    HEAD = "head"
    UPDATE = "updates"
    UNPACK = "unpack"
    LAUNCH = "launches"
    FLASH = "flash wait"
    WAIT = "unpack wait"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Shape-only facts of an op kind; `saves` names the forward slots that its backward reads."""

    part: Part
    flops: Callable[[Op], int]
    moved: Callable[[Op], int]
    scratch: Callable[[Op], int]
    saves: tuple[str, ...] = ()


def align(nbytes: int) -> int:
    """Round up to the arena's alignment."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def stream_rows(cols: int) -> int:
    """Rows of a weight of `cols` columns that are unpacked at a time when it is streamed: whole blocks of the product's kernel. On
    tiles that are no multiple of 64 rows, or narrower than 128, that takes up to 1.4 x as long (EPYC, torch 2.13).
    """
    return max(LEAST_ROWS, STREAM_WEIGHTS // cols // BLOCK_ROWS * BLOCK_ROWS)


LINEAR_KINDS = ("linear", "linear_backward")
ATTENTION_KINDS = ("attention", "attention_backward")
PRODUCT_KINDS = (*LINEAR_KINDS, "head", *ATTENTION_KINDS)


def num_kernels(ops: Iterable[Op]) -> int:
    """Shapes of products in a step, as a library meets them that compiles and keeps a kernel for each: one an op's shape, and one
    more for each further tile of attention, which sees more keys than the last.
    """
    shapes = {(op.kind, op.dims) for op in ops if op.kind in PRODUCT_KINDS}
    tiles = [-(-dims.seq // score_rows(dims)) for kind, dims in shapes if kind == "attention"]
    return len(shapes) + sum(tiles) - len(tiles)


def norm_rows(dims: Dims) -> int:
    """Rows of one fp32 tile of a norm."""
    return min(dims.rows, max(16, NORM_ELEMENTS // dims.cols))


def score_rows(dims: Dims) -> int:
    """Query positions of one attention tile."""
    return min(dims.seq, dims.window or dims.seq, max(1, SCORE_ELEMENTS // (dims.heads // dims.kv_heads) // score_span(dims)))


def score_span(dims: Dims) -> int:
    """Most keys that one attention tile reads: the window of its first row up to its last row."""
    return min(dims.seq, 2 * dims.window) if dims.window else dims.seq


def attended_pairs(seq: int, window: int) -> int:
    """(query, key) pairs under a causal mask, with a sliding window of `window` keys where that is not 0."""
    width = min(window or seq, seq)
    return width * (width + 1) // 2 + (seq - width) * width


def unpack_scratch(fmt: WeightFormat, rows: int, cols: int) -> int:
    """Bytes of the codes' temporary while (rows, cols) weights are unpacked: one signed byte for each byte of codes."""
    return align(fmt.code_bytes(rows, cols)) if fmt.bits < 8 else 0


def reads_in_place(fmt: WeightFormat, itemsize: int) -> bool:
    """Whether a product reads the stored weight itself, nothing unpacked: bf16 weights under bf16 products."""
    return not fmt.packed and itemsize == 2


def tile_bytes(weight: Weight, rows: int, itemsize: int) -> int:
    """Scratch of one streamed tile of `rows` rows of a weight."""
    rows = min(rows, weight.rows)
    if reads_in_place(weight.format, itemsize):
        return 0
    return align(rows * weight.cols * itemsize) + unpack_scratch(weight.format, rows, weight.cols)


def gather_bytes(weight: Weight, dims: Dims) -> int:
    """Scratch to gather and unpack rows of a weight, `GATHER_ROWS` at a time: their codes, their steps, the unpacked rows."""
    rows = min(GATHER_ROWS, dims.rows)
    codes = align(weight.format.code_bytes(rows, dims.cols))
    steps = align(weight.format.nbytes(rows, dims.cols) - weight.format.code_bytes(rows, dims.cols))
    if reads_in_place(weight.format, dims.itemsize):
        return codes + steps
    return codes + steps + align(rows * dims.cols * dims.itemsize) + unpack_scratch(weight.format, rows, dims.cols)


def op_scratch(op: Op, weight: Weight | None, *, streamed: bool, tile: int) -> int:
    """Bytes of scratch that `op` needs: its kind's own, a streamed weight's tile, the head's tile of `tile` logits."""
    if weight is not None and op.kind == "head":
        return _head_scratch(op, weight, streamed, tile)
    own = KINDS[op.kind].scratch(op)
    if weight is None or not streamed:
        return own
    if op.kind == "embed":
        return gather_bytes(weight, op.dims)
    tile = tile_bytes(weight, stream_rows(weight.cols), op.dims.itemsize)
    return max(own, tile)  # the tile is gone when the adapter's turn comes


def _head_scratch(op: Op, weight: Weight, streamed: bool, tile: int) -> int:
    d = op.dims
    rows = min(tile, stream_rows(d.cols))
    logits = align(d.rows * tile * FLOAT_BYTES) + align(d.rows * rows * d.itemsize)
    sums = 4 * align(d.rows * FLOAT_BYTES)
    accumulator = (align(d.rows * d.cols * FLOAT_BYTES) + align(d.rows * d.cols * d.itemsize)) if "dx" in op.writes else 0
    gathered = gather_bytes(weight, d) if "dx" in op.writes else 0
    tile_scratch = tile_bytes(weight, rows, d.itemsize) if streamed else 0
    return logits + sums + accumulator + max(tile_scratch, gathered)


def head_passes(op: Op, tile: int) -> int:
    """How often each weight of the head is unpacked in a step: twice where a tile of logits outgrows a tile of weights."""
    return 2 if "dx" in op.writes and tile > stream_rows(op.dims.cols) else 1


def dense_products(op: Op) -> tuple[bool, ...]:
    """The products with an op's frozen weight, each with whether that is transposed (forward): x W^T, dy W, the head's two."""
    match op.kind:
        case "linear":
            return (True,)
        case "linear_backward" if "dx" in op.writes or "dx" in op.updates:
            return (False,)
        case "head":
            return (True, False) if "dx" in op.writes else (True,)
        case _:
            return ()


def dense_flops(ops: Iterable[Op]) -> int:
    """FLOPs of all products with frozen weights, forward and backward once: the floor of a step."""
    return sum(2 * op.dims.rows * op.dims.cols * op.dims.outs * len(dense_products(op)) for op in ops)


def _none(op: Op) -> int:
    return 0


def _linear_flops(op: Op) -> int:
    d = op.dims
    return 2 * d.rows * (d.outs * d.cols + d.rank * (d.outs + d.cols))


def _linear_backward_flops(op: Op) -> int:
    """dx = dy W + s (dy B) A, h = x A^T, dB = h^T s dy, dA = (s dy B)^T x; each only where it is wanted."""
    d = op.dims
    has_dx = "dx" in op.writes or "dx" in op.updates
    adapters = 2 * d.rows * d.rank * (2 * d.outs + 2 * d.cols)
    return adapters + (2 * d.rows * (d.outs * d.cols + d.rank * d.cols) if has_dx else 0)


def _linear_moved(op: Op) -> int:
    d = op.dims
    return d.rows * (d.cols + d.outs) * d.itemsize + d.outs * d.cols * d.itemsize


def _linear_scratch(op: Op) -> int:
    d = op.dims
    return align(d.rank * d.cols * d.itemsize) + align(d.rank * d.outs * d.itemsize) + align(d.rows * d.rank * d.itemsize)


def _linear_backward_scratch(op: Op) -> int:
    d = op.dims
    pairs = align(d.rank * d.cols * d.itemsize) + align(d.rank * d.outs * d.itemsize)
    return 2 * (pairs + align(d.rows * d.rank * d.itemsize))


def _norm_scratch(buffers: int, sums: int) -> Callable[[Op], int]:
    def scratch(op: Op) -> int:
        rows = norm_rows(op.dims)
        return (
            buffers * align(rows * op.dims.cols * FLOAT_BYTES)
            + sums * align(rows * FLOAT_BYTES)
            + align(op.dims.cols * FLOAT_BYTES)
        )

    return scratch


def _element_moved(tensors: int) -> Callable[[Op], int]:
    """Bytes of `tensors` passes over (rows, cols) elements."""

    def moved(op: Op) -> int:
        return tensors * op.dims.rows * op.dims.cols * op.dims.itemsize

    return moved


def _attention_flops(products: int) -> Callable[[Op], int]:
    def flops(op: Op) -> int:
        d = op.dims
        return products * 2 * d.batch * d.heads * d.pairs * d.head_dim

    return flops


def _attention_moved(op: Op) -> int:
    d = op.dims
    return d.batch * d.heads * d.pairs * FLOAT_BYTES


def _attention_scratch(scores: int, query_tiles: int, key_sums: int) -> Callable[[Op], int]:
    """`scores` fp32 tiles of scores and one in the activations' type, a mask, tiles of queries, fp32 sums over keys and a
    product.
    """

    def scratch(op: Op) -> int:
        d = op.dims
        rows = score_rows(d)
        group = d.heads // d.kv_heads
        tile = rows * group * score_span(d)
        queries = align(rows * group * d.head_dim * d.itemsize)
        keys = key_sums * align(d.seq * d.head_dim * FLOAT_BYTES)
        keys += align(score_span(d) * d.head_dim * d.itemsize) if key_sums else 0
        per_row = align(rows * group * FLOAT_BYTES) if key_sums else 0
        masks = align(rows * score_span(d))
        shared = align(tile * d.itemsize) + masks + per_row
        return scores * align(tile * FLOAT_BYTES) + shared + query_tiles * queries + keys

    return scratch


def _rope_backward_scratch(op: Op) -> int:
    return align(op.dims.rows * op.dims.cols // 2 * op.dims.itemsize)


def _update_scratch(op: Op) -> int:
    return align(op.dims.cols * FLOAT_BYTES)


def _update_moved(op: Op) -> int:
    return (3 + 2 * op.dims.state) * op.dims.rows * FLOAT_BYTES


def _head_flops(op: Op) -> int:
    d = op.dims
    return 2 * d.rows * d.outs * d.cols * (2 if "dx" in op.writes else 1)


def _head_moved(op: Op) -> int:
    """fp32 logits, written once and read three times: maximum, exponential, sum."""
    return 4 * op.dims.rows * op.dims.outs * FLOAT_BYTES


KINDS: dict[str, Kind] = {
    "embed": Kind(part=Part.ELEMENTWISE, flops=_none, moved=_element_moved(2), scratch=_none),
    "norm": Kind(part=Part.ELEMENTWISE, flops=_none, moved=_element_moved(2), scratch=_norm_scratch(2, 1), saves=("x",)),
    "linear": Kind(part=Part.PRODUCTS, flops=_linear_flops, moved=_linear_moved, scratch=_linear_scratch, saves=("x",)),
    "rope": Kind(part=Part.ELEMENTWISE, flops=_none, moved=_element_moved(2), scratch=_none),
    "attention": Kind(
        part=Part.ATTENTION,
        flops=_attention_flops(2),
        moved=_attention_moved,
        scratch=_attention_scratch(1, 2, 0),
        saves=("q", "k", "v"),
    ),
    "residual": Kind(part=Part.ELEMENTWISE, flops=_none, moved=_element_moved(3), scratch=_none),
    "glu": Kind(part=Part.ELEMENTWISE, flops=_none, moved=_element_moved(3), scratch=_none, saves=("gate", "up")),
    "head": Kind(part=Part.HEAD, flops=_head_flops, moved=_head_moved, scratch=_none),
    "norm_backward": Kind(part=Part.ELEMENTWISE, flops=_none, moved=_element_moved(3), scratch=_norm_scratch(3, 2)),
    "linear_backward": Kind(
        part=Part.PRODUCTS, flops=_linear_backward_flops, moved=_linear_moved, scratch=_linear_backward_scratch
    ),
    "rope_backward": Kind(part=Part.ELEMENTWISE, flops=_none, moved=_element_moved(2), scratch=_rope_backward_scratch),
    "attention_backward": Kind(
        part=Part.ATTENTION,
        flops=_attention_flops(5),
        moved=_attention_moved,
        scratch=_attention_scratch(2, 3, 2),
    ),
    "glu_backward": Kind(part=Part.ELEMENTWISE, flops=_none, moved=_element_moved(5), scratch=_none),
    "update": Kind(part=Part.UPDATE, flops=_none, moved=_update_moved, scratch=_update_scratch),
    "accumulate": Kind(part=Part.UPDATE, flops=_none, moved=_update_moved, scratch=_none),
    "apply": Kind(part=Part.UPDATE, flops=_none, moved=_update_moved, scratch=_update_scratch),
    "perturb": Kind(part=Part.UPDATE, flops=_none, moved=_update_moved, scratch=_update_scratch),
    "mezo_update": Kind(part=Part.UPDATE, flops=_none, moved=_update_moved, scratch=_update_scratch),
}
