"""The floor of a step: the time of its dense products, forward and backward once, nothing decompressed and nothing recomputed.

What remains above it is what a plan pays for compressed weights, recomputation, attention and the rest. Measured in the process
that ran the step, with weights of the right shapes and random values, and MOST_ROWS tokens at a time: the floor does not depend on
the chunks that a step runs in.
"""

import time
from statistics import median

import torch

from mebp.executor.env import dtype_of
from mebp.kernel.library import library
from mebp.models.graph import Graph
from mebp.models.kind.table import first_runs

REPEATS = 5
ENOUGH_S = 0.5  # of one product: what takes longer is timed less often
MOST_ROWS = 1024
LARGEST_BYTES = 32 << 20  # a weight larger than this is measured in slices


def floor_seconds(graph: Graph) -> float:
    """Seconds of all dense products of one step: x W^T and dy W of every linear, logits and their product with the head. Where
    torch's bf16 products crawl, those in fp32.
    """
    dtype = torch.float32 if library().own else dtype_of(graph)
    known: dict[tuple[int, int, int, bool], float] = {}
    total = 0.0
    for count, op in first_runs(graph.ops):
        rows = min(MOST_ROWS, count * op.dims.rows)
        for transposed in op.kind.products(op):
            key = (rows, op.dims.cols, op.dims.outs, transposed)
            if key not in known:
                known[key] = _product_seconds(*key, dtype)
            total += count * op.dims.rows / rows * known[key]
    return total


def _product_seconds(rows: int, cols: int, outs: int, transposed: bool, dtype: torch.dtype) -> float:
    """(rows, cols) x (outs, cols)^T, or (rows, outs) x (outs, cols); the median of a few, fewer where one takes long."""
    slice_outs = max(1, min(outs, LARGEST_BYTES // (cols * dtype.itemsize)))
    weight = torch.empty(slice_outs, cols, dtype=dtype).normal_()
    given = torch.empty(rows, cols if transposed else slice_outs, dtype=dtype).normal_()
    made = torch.empty(rows, slice_outs if transposed else cols, dtype=dtype)
    factor = weight.T if transposed else weight
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        torch.mm(given, factor, out=made)
        seconds.append(time.perf_counter() - begin)
        if sum(seconds) > ENOUGH_S:
            break
    return median(seconds) * outs / slice_outs
