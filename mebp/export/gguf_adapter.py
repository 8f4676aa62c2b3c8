"""Adapters as the GGUF file that llama.cpp loads beside a model (`--lora`): lora_a (rank, in) and lora_b (out, rank) under the name
of the model's own tensor, and alpha.
"""

from pathlib import Path

import torch
from gguf import GGUFWriter, Keys
from torch import Tensor

from mebp.errors import InputError
from mebp.export.base import Base
from mebp.export.folder import new_file
from mebp.export.lora_set import LoraSet
from mebp.models.config import LinearName, ModelConfig
from mebp.store.gguf_config import MODEL_TYPES, PERMUTED, gguf_locations


def write_gguf(file: Path, adapters: LoraSet, base: Base) -> None:
    """Write `adapters` as a new GGUF file for `base`; InputError where there is something already, or the
    architecture is not known.
    """
    architecture = base.llama_cpp_architecture
    if architecture not in MODEL_TYPES:
        raise InputError(f"architecture {architecture!r} is not known here: {', '.join(MODEL_TYPES)}")
    locations = gguf_locations(adapters.config, architecture)
    with new_file(file) as part:
        writer = GGUFWriter(str(part), architecture)
        writer.add_type("adapter")
        writer.add_string(Keys.Adapter.TYPE, "lora")
        writer.add_float32(Keys.Adapter.LORA_ALPHA, adapters.alpha)
        writer.add_string(Keys.General.NAME, f"{adapters.config.name} LoRA")
        moved = LoraSet(
            config=adapters.config,
            rank=adapters.rank,
            alpha=adapters.alpha,
            pairs={name: (A, _permuted(B, name, adapters.config, architecture)) for name, (A, B) in adapters.pairs.items()},
        )
        for location, (A, B) in moved.by_tensor(locations):
            # llama.cpp divides alpha by the rank that it finds
            scaled = B.float() * (len(A) / adapters.rank)
            writer.add_tensor(f"{location.tensor}.lora_a", A.float().contiguous().numpy())
            writer.add_tensor(f"{location.tensor}.lora_b", scaled.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _permuted(B: Tensor, name: str, config: ModelConfig, architecture: str) -> Tensor:
    """Rows of q's and k's B in the order that the file has the matrix's rows in: a head's two halves interleaved."""
    linear: LinearName = name.rpartition(".")[2]  # type: ignore[assignment]
    if architecture not in PERMUTED or linear not in ("q", "k"):
        return B
    heads = config.num_heads if linear == "q" else config.num_kv_heads
    return torch.stack(B.view(heads, 2, -1, B.shape[1]).unbind(1), dim=2).view(B.shape)
