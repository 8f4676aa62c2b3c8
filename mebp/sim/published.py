"""The footprint of the published implementations behind the rows `mebp` and `mezo`, at its two fullest moments.

They are at their fullest either at the head or in the backward of a block. At both they have, in addition to the runtime's own, so
many compressed heads; at the head so many full fp32 logits, the adapters and the widest weight, unpacked; in a block's backward the
adapters, their gradients, all weights of the layer unpacked, its activations, and so many of its fp32 attention scores. The numbers
are fitted to measurements (mebp/task/fit) and stand in the profile of the device that they were taken on; 0 elsewhere.
"""

from dataclasses import dataclass

from mebp.models.build import num_trainable
from mebp.models.graph import Graph
from mebp.models.tensor import FLOAT_BYTES, Role, Weight
from mebp.sim.device import Device

UNPACKED_BYTES = 2  # bytes of an unpacked weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Bytes of each thing that is in memory at a moment; `in_block_bytes` is 0 where there is no backward."""

    logits_bytes: int
    head_bytes: int
    scores_bytes: int
    adapter_count: int
    at_head_bytes: int
    in_block_bytes: int


def is_published(graph: Graph) -> bool:
    """Whether a graph is the step of a published implementation that measurements are known of."""
    workload = graph.workload
    return workload.method == "mezo" or (workload.evaluations > 1 and not workload.layer_copies)


def moments(graph: Graph) -> Moments:
    """What is live at a step's two moments; adapters are counted, not sized."""
    head, config = graph.head, graph.config
    weight = graph.weights[head.weights[0]]
    layer = [found for found in graph.weights.values() if found.layer == 0]
    of_layer = (t for t in graph.tensors.values() if t.layer == 0 and t.role is Role.ACTIVATION)
    activations = sum(t.nbytes for t in of_layer if t.name != "attention.lse")  # its scores are counted by themselves
    backward = graph.workload.method == "backprop"
    return Moments(
        logits_bytes=head.dims.rows * weight.rows * FLOAT_BYTES,
        head_bytes=weight.nbytes,
        scores_bytes=graph.workload.batch_size * config.num_heads * graph.workload.seq_len**2 * FLOAT_BYTES,
        adapter_count=num_trainable(config, graph.workload),
        at_head_bytes=max(_unpacked(found) for found in layer),
        in_block_bytes=sum(map(_unpacked, layer)) + activations if backward else 0,
    )


def published_bytes(graph: Graph, device: Device) -> int:
    """The footprint of a published implementation by a profile's numbers; 0 where it has none, or the graph is none of theirs."""
    runtime = device.runtime
    if not is_published(graph) or not runtime.kept_heads + runtime.kept_logits:
        return 0
    found = moments(graph)
    both = runtime.footprint_bytes + runtime.kept_heads * found.head_bytes
    adapters = runtime.kept_adapter_bytes * found.adapter_count
    at_head = both + runtime.kept_logits * found.logits_bytes + adapters + found.at_head_bytes
    in_block = both + runtime.kept_scores * found.scores_bytes + 2 * adapters + found.in_block_bytes
    return round(max(at_head, in_block if found.in_block_bytes else 0.0))


def _unpacked(weight: Weight) -> int:
    return UNPACKED_BYTES * weight.count
