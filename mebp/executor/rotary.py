"""Tables of rotary embedding: cos and sin of position x frequency, with the scalings that the catalogue's families use."""

import math

import torch
from torch import Tensor

from mebp.executor.arena import TYPES
from mebp.models.config import Rope
from mebp.models.graph import Graph
from mebp.models.kind.rope import RopeParams
from mebp.models.op import float_type


def rope_tables(graph: Graph, device: torch.device) -> dict[Rope, tuple[Tensor, Tensor]]:
    """(cos, sin), each (seq, head_dim / 2) in the activations' type, for every rotary embedding that an op of the graph uses."""
    dims = {op.params.rope: op.dims for op in graph.ops if isinstance(op.params, RopeParams)}
    return {rope: _table(rope, d.head_dim, d.seq, TYPES[float_type(d.itemsize)], device) for rope, d in dims.items()}


def inverse_frequencies(rope: Rope, head_dim: int) -> Tensor:
    """(head_dim / 2,) fp32: theta^(-2i/D), divided by `factor` (linear), or only where wavelengths are long (Llama 3.1)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / rope.theta**exponents
    if rope.scaling == "linear":
        return frequencies / rope.factor
    if rope.scaling == "llama3":
        turns = rope.original_context * frequencies / (2 * math.pi)  # rotations within the original context
        smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        smooth = smooth.clamp(0.0, 1.0)
        return (1 - smooth) * frequencies / rope.factor + smooth * frequencies
    return frequencies


def _table(rope: Rope, head_dim: int, seq: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    angles = torch.arange(seq, dtype=torch.float32)[:, None] * inverse_frequencies(rope, head_dim)
    return angles.cos().to(dtype).to(device), angles.sin().to(dtype).to(device)
