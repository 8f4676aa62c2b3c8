"""Tables of rotary embedding: cos and sin of position x frequency, with the scalings that the catalogue's families use."""

import math

import torch
from torch import Tensor

from mebp.executor.arena import TYPES
from mebp.models.config import Rope
from mebp.models.graph import Graph
from mebp.models.kind.rope import RopeParams
from mebp.models.op import flat, float_type


def rope_tables(graph: Graph, device: torch.device) -> dict[Rope, tuple[Tensor, Tensor]]:
    """(cos, sin), each (seq, R / 2) in the activations' type with R rotated columns of a head, for every rotary embedding that an
    op of the graph uses.
    """
    dims = {op.params.rope: op.dims for _, op in flat(graph.ops) if isinstance(op.params, RopeParams)}
    return {
        rope: _table(rope, d.head_dim, graph.workload.seq_len, TYPES[float_type(d.itemsize)], device) for rope, d in dims.items()
    }


def inverse_frequencies(rope: Rope, head_dim: int, seq: int) -> Tensor:
    """(R / 2,) fp32: theta^(-2i/R), scaled for contexts of `seq`.

    linear: divided by `factor`. dynamic: of a theta that grows with what `seq` exceeds the original context by. llama3 (Llama 3.1):
    divided where wavelengths are long. yarn (Peng et al. 2023): divided beyond a ramp over columns. longrope (Ding et al. 2024):
    divided each by a number of its own, one of two lists by whether `seq` exceeds the original context.
    """
    width = rope.width(head_dim)
    exponents = torch.arange(0, width, 2, dtype=torch.int64).float() / width
    if rope.scaling == "dynamic":
        stretch = rope.factor * max(seq, rope.original_context) / rope.original_context - (rope.factor - 1)
        theta = rope.theta * stretch ** (width / (width - 2))
        return torch.pow(theta, exponents).reciprocal()
    frequencies = torch.pow(rope.theta, exponents).reciprocal()
    match rope.scaling:
        case "linear":
            return frequencies / rope.factor
        case "llama3":
            turns = rope.original_context * frequencies / (2 * math.pi)  # within the original context
            kept = ((turns - rope.low) / (rope.high - rope.low)).clamp(0.0, 1.0)
            return (1 - kept) * frequencies / rope.factor + kept * frequencies
        case "yarn":
            kept = 1 - _ramp(rope, width)
            return (1 - kept) * frequencies / rope.factor + kept * frequencies
        case "longrope":
            return frequencies / torch.tensor(rope.long if seq > rope.original_context else rope.short)
    return frequencies


def _ramp(rope: Rope, width: int) -> Tensor:
    """(R / 2,) from 0 at the column that turns `high` times within the original context to 1 at that which turns `low` times."""

    def column(turns: float) -> float:
        return width * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = column(rope.high), column(rope.low)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    span = last - first or 0.001
    return ((torch.arange(width // 2, dtype=torch.float32) - first) / span).clamp(0.0, 1.0)


def _table(rope: Rope, head_dim: int, seq: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    positions = torch.arange(seq, dtype=torch.float32)[:, None]
    angles = positions * inverse_frequencies(rope, head_dim, seq)
    grown = 1 + rope.query_growth * torch.log1p(torch.floor(positions / rope.original_context))
    cos, sin = (table * rope.magnitude * grown for table in (angles.cos(), angles.sin()))
    return cos.to(dtype).to(device), sin.to(dtype).to(device)
