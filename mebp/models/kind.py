"""The table of op kinds. One entry per kind: its part of a step and the rate that it goes with, FLOPs, bytes moved, scratch, what
its backward reads, and the facts that planner and simulator ask for.

Adding a kind is adding an entry here and a function under the same name in mebp/executor/ops; a test compares the two. FLOPs count
a multiply-add as two.
"""

from collections.abc import Callable, Iterable

from mebp.models.op import Kind, Op, Part, Rate
from mebp.models.scratch import (
    attention_backward_scratch,
    attention_scratch,
    embed_scratch,
    head_scratch,
    linear_backward_scratch,
    linear_scratch,
    no_scratch,
    norm_scratch,
    rope_backward_scratch,
    score_rows,
    stream_rows,
    update_scratch,
)
from mebp.models.tensor import FLOAT_BYTES


def num_kernels(ops: Iterable[Op]) -> int:
    """Shapes of products in a step, as a library meets them that compiles and keeps a kernel for each."""
    shapes = {(op.kind.name, op.dims): op.kind.kernels(op) for op in ops}
    return sum(shapes.values())


def dense_flops(ops: Iterable[Op]) -> int:
    """FLOPs of all products with frozen weights, forward and backward once: the floor of a step."""
    return sum(2 * op.dims.rows * op.dims.cols * op.dims.outs * len(op.kind.products(op)) for op in ops)


def attended_pairs(seq: int, window: int) -> int:
    """(query, key) pairs under a causal mask, with a sliding window of `window` keys where that is not 0."""
    width = min(window or seq, seq)
    return width * (width + 1) // 2 + (seq - width) * width


def _one_kernel(op: Op) -> int:
    return 1


def _score_tiles(op: Op) -> int:
    """One for each tile of attention: it sees more keys than the last."""
    return -(-op.dims.seq // score_rows(op.dims))


def _linear_flops(op: Op) -> int:
    d = op.dims
    return 2 * d.rows * (d.outs * d.cols + d.rank * (d.outs + d.cols))


def _linear_backward_flops(op: Op) -> int:
    """dx = dy W + s (dy B) A, h = x A^T, dB = h^T s dy, dA = (s dy B)^T x; each only where it is wanted."""
    d = op.dims
    adapters = 2 * d.rows * d.rank * (2 * d.outs + 2 * d.cols)
    return adapters + (2 * d.rows * (d.outs * d.cols + d.rank * d.cols) if op.makes_dx else 0)


def _linear_moved(op: Op) -> int:
    d = op.dims
    return d.rows * (d.cols + d.outs) * d.itemsize + d.outs * d.cols * d.itemsize


def _linear_products(op: Op) -> tuple[bool, ...]:
    """x W^T."""
    return (True,)


def _linear_backward_products(op: Op) -> tuple[bool, ...]:
    """dy W."""
    return (False,) if op.makes_dx else ()


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


def _update_moved(op: Op) -> int:
    return (3 + 2 * op.dims.state) * op.dims.rows * FLOAT_BYTES


def _head_flops(op: Op) -> int:
    d = op.dims
    return 2 * d.rows * d.outs * d.cols * (2 if op.makes_dx else 1)


def _head_moved(op: Op) -> int:
    """fp32 logits, written once and read three times: maximum, exponential, sum."""
    return 4 * op.dims.rows * op.dims.outs * FLOAT_BYTES


def _head_products(op: Op) -> tuple[bool, ...]:
    """Logits, and their exponentials with the head."""
    return (True, False) if op.makes_dx else (True,)


def _head_passes(op: Op, tile: int) -> int:
    """The head is unpacked twice where a tile of logits outgrows a tile of weights."""
    return 2 if op.makes_dx and tile > stream_rows(op.dims.cols) else 1


def _changes_adapters(name: str, *, backward: bool, scratch: bool = True) -> Kind:
    return Kind(
        name=name,
        part=Part.UPDATE,
        moved=_update_moved,
        scratch=update_scratch if scratch else no_scratch,
        backward=backward,
        changes_adapters=True,
    )


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(name="embed", part=Part.ELEMENTWISE, moved=_element_moved(2), scratch=embed_scratch, gathers=True),
        Kind(
            name="norm",
            part=Part.ELEMENTWISE,
            moved=_element_moved(2),
            scratch=norm_scratch("x", "square", sums=("r",)),
            saves=("x",),
        ),
        Kind(
            name="linear",
            part=Part.PRODUCTS,
            rate=Rate.FORWARD_PRODUCT,
            flops=_linear_flops,
            moved=_linear_moved,
            scratch=linear_scratch,
            products=_linear_products,
            kernels=_one_kernel,
            saves=("x",),
        ),
        Kind(name="rope", part=Part.ELEMENTWISE, moved=_element_moved(2), scratch=no_scratch),
        Kind(
            name="attention",
            part=Part.ATTENTION,
            rate=Rate.ATTENTION,
            flops=_attention_flops(2),
            moved=_attention_moved,
            scratch=attention_scratch,
            kernels=_score_tiles,
            saves=("q", "k", "v"),
        ),
        Kind(name="residual", part=Part.ELEMENTWISE, moved=_element_moved(3), scratch=no_scratch),
        Kind(name="glu", part=Part.ELEMENTWISE, moved=_element_moved(3), scratch=no_scratch, saves=("gate", "up")),
        Kind(
            name="head",
            part=Part.HEAD,
            rate=Rate.HEAD,
            flops=_head_flops,
            moved=_head_moved,
            scratch=head_scratch,
            products=_head_products,
            kernels=_one_kernel,
            passes=_head_passes,
            makes_loss=True,
        ),
        Kind(
            name="norm_backward",
            part=Part.ELEMENTWISE,
            moved=_element_moved(3),
            scratch=norm_scratch("x", "g", "product", sums=("r", "mean")),
            backward=True,
            may_add_dx=True,
        ),
        Kind(
            name="linear_backward",
            part=Part.PRODUCTS,
            rate=Rate.BACKWARD_PRODUCT,
            flops=_linear_backward_flops,
            moved=_linear_moved,
            scratch=linear_backward_scratch,
            products=_linear_backward_products,
            kernels=_one_kernel,
            optional=("dx",),
            backward=True,
            may_add_dx=True,
        ),
        Kind(name="rope_backward", part=Part.ELEMENTWISE, moved=_element_moved(2), scratch=rope_backward_scratch, backward=True),
        Kind(
            name="attention_backward",
            part=Part.ATTENTION,
            rate=Rate.ATTENTION,
            flops=_attention_flops(5),
            moved=_attention_moved,
            scratch=attention_backward_scratch,
            kernels=_one_kernel,
            backward=True,
        ),
        Kind(name="glu_backward", part=Part.ELEMENTWISE, moved=_element_moved(5), scratch=no_scratch, backward=True),
        _changes_adapters("update", backward=True),
        _changes_adapters("accumulate", backward=True, scratch=False),
        _changes_adapters("apply", backward=True),
        _changes_adapters("perturb", backward=False),
        _changes_adapters("mezo_update", backward=False),
    )
}
