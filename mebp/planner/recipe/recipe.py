"""A recipe: what is decided about every activation and every weight. Fixed strategies write one down, the solver finds one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from mebp.models.graph import Graph
from mebp.models.tensor import TensorId, WeightId
from mebp.models.tile import BLOCK_ROWS, stream_rows

HEAD_BYTES = 8 << 20  # scratch that a tile of logits should not exceed


class Saving(StrEnum):
    """What becomes of an activation between forward and backward.

    RECOMPUTE: recomputed once, then kept until its last backward use. TRANSIENT: dropped after each use and recomputed again in its
    own layer's backward, so that recomputing it on behalf of higher layers takes no memory.
    """

    KEEP = "keep"
    STORE = "store"
    RECOMPUTE = "recompute"
    TRANSIENT = "transient"


class Unpacking(StrEnum):
    """How the uses of a weight read it.

    STREAM tile by tile inside each op; WHOLE unpacked separately for each use; AHEAD the same, chosen where an engine of its own
    unpacks concurrently with the processor; SHARED streamed in forward, and unpacked once for recomputation and backward together;
    RESIDENT unpacked once before the first step.
    """

    STREAM = "stream"
    WHOLE = "whole"
    AHEAD = "ahead"
    SHARED = "shared"
    RESIDENT = "resident"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Decisions; an activation that is not named is recomputed, a weight that is not named is streamed."""

    saving: Mapping[TensorId, Saving] = field(default_factory=dict)
    unpacking: Mapping[WeightId, Unpacking] = field(default_factory=dict)
    head_tile: int

    def saves(self, tensor: TensorId) -> Saving:
        return self.saving.get(tensor, Saving.RECOMPUTE)

    def unpacks(self, weight: WeightId) -> Unpacking:
        return self.unpacking.get(weight, Unpacking.STREAM)


def head_tile(graph: Graph) -> int:
    """Logits of one tile of the head: as many rows as one streamed tile, fewer where tokens are many."""
    dims = graph.head.dims
    per_column = dims.rows * (4 + dims.itemsize)
    return whole_blocks(min(stream_rows(dims.cols), dims.outs, max(16, HEAD_BYTES // per_column)))


def whole_blocks(rows: int) -> int:
    """Rows of a tile rounded down to whole blocks of the product's kernel, or, where there are few, to 16."""
    block = BLOCK_ROWS if rows >= 2 * BLOCK_ROWS else 16
    return rows // block * block or rows


def backward_reads(graph: Graph) -> frozenset[TensorId]:
    """Activations that some backward op reads."""
    read = (tensor for op in graph.ops if op.backward for tensor in op.reads.values())
    return frozenset(tensor for tensor in read if graph.producer[tensor].kind.recomputable)
