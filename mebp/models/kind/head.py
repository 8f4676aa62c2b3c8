"""The head and the loss in one pass over the vocabulary, a tile of logits at a time; dL/dx comes out with the loss."""

from dataclasses import dataclass, replace

from mebp.models.op import Buffer, Kind, Op, Part, Rate, Scratch, WeightUse, one_kernel
from mebp.models.tensor import FLOAT_BYTES
from mebp.models.tile import gathered, product_scratch, stream_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadParams:
    """Logits are scale x W^T, and where `cap` is not 0 cap tanh(that / cap). With `labelled` only rows with a label are computed,
    at most so many; 0: all of them.
    """

    scale: float
    cap: float
    labelled: int = 0


def _flops(op: Op) -> int:
    d = op.dims
    return 2 * d.rows * d.outs * d.cols * (2 if op.makes_dx else 1)


def _moved(op: Op) -> int:
    """fp32 logits, written once and read three times: maximum, exponential, sum."""
    return 4 * op.dims.rows * op.dims.outs * FLOAT_BYTES


def _products(op: Op) -> tuple[bool, ...]:
    """Logits, and their exponentials with the head."""
    return (True, False) if op.makes_dx else (True,)


def _passes(op: Op, tile: int) -> int:
    """The head is unpacked twice where a tile of logits outgrows a tile of weights."""
    return 2 if op.makes_dx and tile > stream_rows(op.dims.cols) else 1


def _scratch(op: Op, use: WeightUse) -> Scratch:
    """A tile of fp32 logits, what a tile of weights makes of them in the activations' type, fp32 sums by token; where dx is wanted
    the weighted sum of the head's rows; the labelled rows, where no others are computed. A tile of the weight (or the kernel's
    room) is gone when the labels' rows are gathered.
    """
    assert use.weight is not None
    d = replace(op.dims, rows=most_rows(op))
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
    picked = (Buffer(name="rows", shape=(d.rows, d.cols), dtype=d.activation),) if _labelled(op) else ()
    tile = product_scratch(use, d, rows) if rows else ()
    label_rows = gathered(use.weight, d) if op.makes_dx else ()
    return Scratch(always=(*sums, *logits, *picked, *(accumulator if op.makes_dx else ())), either=(tile, label_rows))


def _labelled(op: Op) -> bool:
    return isinstance(op.params, HeadParams) and op.params.labelled > 0


def most_rows(op: Op) -> int:
    """Rows that a head computes at most; its dims have those that it computes on average."""
    assert isinstance(op.params, HeadParams)
    return op.params.labelled or op.dims.rows


KINDS = (
    Kind(
        name="head",
        part=Part.HEAD,
        rate=Rate.HEAD,
        flops=_flops,
        moved=_moved,
        scratch=_scratch,
        products=_products,
        kernels=one_kernel,
        passes=_passes,
        makes_loss=True,
    ),
)
