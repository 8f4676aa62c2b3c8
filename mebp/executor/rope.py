"""Tables of rotary embedding: cos and sin of position x frequency, with the scalings that the catalogue's families use."""

import math

import torch
from torch import Tensor

from mebp.models.config import ModelConfig, Rope
from mebp.models.workload import ITEMSIZE, Workload


def rope_tables(config: ModelConfig, workload: Workload, device: torch.device) -> dict[bool, tuple[Tensor, Tensor]]:
    """Local? -> (cos, sin), each (seq, head_dim / 2) in the activations' type; one pair where both ropes are the same."""
    full = _table(config.rope, config.head_dim, workload, device)
    return {
        False: full,
        True: full if config.rope == config.local_rope else _table(config.local_rope, config.head_dim, workload, device),
    }


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


def _table(rope: Rope, head_dim: int, workload: Workload, device: torch.device) -> tuple[Tensor, Tensor]:
    dtype = torch.bfloat16 if ITEMSIZE[workload.precision] == 2 else torch.float32
    angles = torch.arange(workload.seq_len, dtype=torch.float32)[:, None] * inverse_frequencies(rope, head_dim)
    return angles.cos().to(dtype).to(device), angles.sin().to(dtype).to(device)
