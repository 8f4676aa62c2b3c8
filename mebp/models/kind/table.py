"""The table of op kinds, and sums over a step that every kind has its part in.

Adding a kind is adding an entry to a module here, and a function of the same name to the module of the same name in
mebp/executor/ops; a test compares the two tables. FLOPs count a multiply-add as two.
"""

from collections.abc import Iterable, Iterator

from mebp.models.kind import attention, chunked, elementwise, embed, head, linear, norm, rope, update
from mebp.models.op import Kind, Op, flat

AREAS = (embed, norm, linear, rope, attention, elementwise, head, update, chunked)
KINDS: dict[str, Kind] = {kind.name: kind for area in AREAS for kind in area.KINDS}


def distinct_products(ops: Iterable[Op]) -> list[Op]:
    """An op of each kind and extents for which a library of products may compile and keep kernels."""
    return list({(op.kind.name, op.dims): op for _, op in flat(ops) if op.kind.kernels(op)}.values())


def num_kernels(ops: Iterable[Op]) -> int:
    """Shapes of products in a step, as a library meets them that compiles and keeps a kernel for each."""
    return sum(op.kind.kernels(op) for op in distinct_products(ops))


def dense_flops(ops: Iterable[Op]) -> int:
    """FLOPs of all products with frozen weights, forward and backward once: the floor of a step."""
    return sum(count * 2 * op.dims.rows * op.dims.cols * op.dims.outs * len(op.kind.products(op)) for count, op in first_runs(ops))


def first_runs(ops: Iterable[Op]) -> Iterator[tuple[int, Op]]:
    """Every op of a step with its count, without the forward ops that chunked backward ops recompute."""
    for op in ops:
        yield from ((count, inner) for count, inner in flat((op,)) if inner.backward or not op.backward)
