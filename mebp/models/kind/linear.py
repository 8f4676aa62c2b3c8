"""Products with a layer's frozen weight, LoRA included, and their backward."""

from dataclasses import dataclass

from mebp.models.op import Buffer, Dims, Kind, Op, Part, Rate, Scratch, WeightUse, one_kernel
from mebp.models.tile import product_scratch

DROPOUT_ROWS = 64  # rows of the input whose mask is drawn at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearParams:
    """y = x W^T + b + lora_scale (d(x) A^T) B^T, where d leaves out the part `dropout` of x and scales the rest up. With `copied`
    the compressed weight is first read into the process's own memory.
    """

    lora_scale: float
    copied: bool
    dropout: float = 0.0


def _flops(op: Op) -> int:
    d = op.dims
    return 2 * d.rows * (d.outs * d.cols + d.rank * (d.outs + d.cols))


def _backward_flops(op: Op) -> int:
    """dx = dy W + s (dy B) A, h = x A^T, dB = h^T s dy, dA = (s dy B)^T x; each only where it is wanted."""
    d = op.dims
    adapters = 2 * d.rows * d.rank * (2 * d.outs + 2 * d.cols)
    return adapters + (2 * d.rows * (d.outs * d.cols + d.rank * d.cols) if op.makes_dx else 0)


def _moved(op: Op) -> int:
    d = op.dims
    return d.rows * (d.cols + d.outs) * d.itemsize + d.outs * d.cols * d.itemsize


def _products(op: Op) -> tuple[bool, ...]:
    """x W^T."""
    return (True,)


def _backward_products(op: Op) -> tuple[bool, ...]:
    """dy W."""
    return (False,) if op.makes_dx else ()


def _scratch(op: Op, use: WeightUse) -> Scratch:
    """A tile of the weight or the kernel's room, or, once that is done with, the adapter's pair in the activations' type and
    h = x A^T.
    """
    return Scratch(always=_dropout(op), either=(product_scratch(use, op.dims), _adapter_pair(op.dims)))


def _backward_scratch(op: Op, use: WeightUse) -> Scratch:
    """A tile of the weight or the kernel's room, or the adapter's pair, h = x A^T, dh = s dy B, and the products that dA and dB are
    made of.
    """
    d = op.dims
    gradients = (
        Buffer(name="dh", shape=(d.rows, d.rank), dtype=d.activation),
        Buffer(name="dA", shape=(d.rank, d.cols), dtype=d.activation),
        Buffer(name="dB", shape=(d.rank, d.outs), dtype=d.activation),
    )
    return Scratch(always=_dropout(op), either=(product_scratch(use, d), (*_adapter_pair(d), *gradients)))


def _dropout(op: Op) -> tuple[Buffer, ...]:
    """The input as the adapter sees it, and for some rows at a time random bits and the mask that they make."""
    d = op.dims
    if not (d.rank and isinstance(op.params, LinearParams) and op.params.dropout):
        return ()
    return (
        Buffer(name="seen", shape=(d.rows, d.cols), dtype=d.activation),
        Buffer(name="bits", shape=(DROPOUT_ROWS, d.cols), dtype="int16"),
        Buffer(name="mask", shape=(DROPOUT_ROWS, d.cols), dtype=d.activation),
    )


def _adapter_pair(dims: Dims) -> tuple[Buffer, ...]:
    shapes = {"A": (dims.rank, dims.cols), "B": (dims.outs, dims.rank), "h": (dims.rows, dims.rank)}
    return tuple(Buffer(name=name, shape=shape, dtype=dims.activation) for name, shape in shapes.items())


KINDS = (
    Kind(
        name="linear",
        part=Part.PRODUCTS,
        rate=Rate.FORWARD_PRODUCT,
        flops=_flops,
        moved=_moved,
        scratch=_scratch,
        products=_products,
        kernels=one_kernel,
        saves=("x",),
    ),
    Kind(
        name="linear_backward",
        part=Part.PRODUCTS,
        rate=Rate.BACKWARD_PRODUCT,
        flops=_backward_flops,
        moved=_moved,
        scratch=_backward_scratch,
        products=_backward_products,
        kernels=one_kernel,
        optional=("dx", "x"),
        backward=True,
        may_add_dx=True,
    ),
)
