"""A recipe: what is decided about every activation and every weight. Fixed strategies write one down, the solver finds one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from mebp.models.graph import Graph, TensorId, WeightId
from mebp.models.kind import BLOCK_ROWS, stream_rows


class Saving(StrEnum):
    """What becomes of an activation between forward and backward.

    What is to RECOMPUTE stays, once made again, until its last backward use; a REMAKE stays only for the layer at hand, so
    that layers above, which may have to run it again too, do not pay for it with memory.
    """

    KEEP = "keep"
    STORE = "store"
    RECOMPUTE = "recompute"
    REMAKE = "remake"


class Unpacking(StrEnum):
    """How the uses of a weight read it.

    STREAM tile by tile inside each op; UNPACK whole, anew for each use; AHEAD the same, chosen where an engine of its own does it
    beside the processor; HOLD streamed in forward, and unpacked once for recomputation and backward together; RESIDENT unpacked
    once before the first step.
    """

    STREAM = "stream"
    UNPACK = "unpack"
    AHEAD = "ahead"
    HOLD = "hold"
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


HEAD_BYTES = 8 << 20  # scratch that a tile of logits should not exceed


def head_tile(graph: Graph) -> int:
    """Logits of one tile of the head: as many rows as one streamed tile, fewer where tokens are many."""
    config = graph.config
    per_column = graph.workload.tokens * (4 + graph.workload.itemsize)
    return whole_blocks(min(stream_rows(config.hidden), config.vocab, max(16, HEAD_BYTES // per_column)))


def whole_blocks(rows: int) -> int:
    """Rows of a tile rounded down to whole blocks of the product's kernel, or, where there are few, to 16."""
    block = BLOCK_ROWS if rows >= 2 * BLOCK_ROWS else 16
    return rows // block * block or rows


def backward_reads(graph: Graph) -> frozenset[TensorId]:
    """Activations that some backward op reads."""
    return frozenset(
        tensor
        for op in graph.ops
        if op.backward
        for tensor in op.reads.values()
        if not graph.producer[tensor].backward and graph.producer[tensor].kind != "head"
    )


def layer_inputs(graph: Graph) -> list[TensorId]:
    """The residual stream at the input of every layer, and at the end."""
    inputs = [TensorId("embed.out")]
    return inputs + [TensorId(f"{layer}.residual2.out") for layer in range(graph.config.num_layers)]
