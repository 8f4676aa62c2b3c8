"""Adapters as mlx-lm's folder: adapters.safetensors with lora_a (in, rank) and lora_b (rank, out), and adapter_config.json."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from mebp.export.folder import new_folder
from mebp.export.lora_set import LoraSet
from mebp.store.checkpoint import checkpoint_places

WEIGHTS, SETTINGS = "adapters.safetensors", "adapter_config.json"


def write_mlx(folder: Path, adapters: LoraSet, base: str) -> None:
    """Write `adapters` as a new folder that mlx-lm loads with `--adapter-path` on `base`; InputError where there is something
    already.

    mlx-lm has one rank for all modules, and adapts the last layers: smaller pairs are filled up with zeros, as are those of layers
    that have none.
    """
    config, places = adapters.config, checkpoint_places(adapters.config)
    by_module = {place.module: pair for place, pair in adapters.by_tensor(places)}
    rank = max(len(A) for A, _ in by_module.values())
    kinds = sorted({module.split(".", 3)[3] for module in by_module})
    shapes = {
        place.module: (place.total, config.matrices()[name][1]) for name, place in places.items() if name in config.matrices()
    }
    first = adapters.layers[0]
    tensors: dict[str, Tensor] = {}
    for module in (f"model.layers.{layer}.{kind}" for layer in range(first, config.num_layers) for kind in kinds):
        rows, cols = shapes[module]
        A, B = by_module.get(module) or _nothing(rank, rows, cols)
        tensors[f"{module}.lora_a"] = F.pad(A, (0, 0, 0, rank - len(A))).T.contiguous()
        tensors[f"{module}.lora_b"] = F.pad(B, (0, rank - len(A))).T.contiguous()
    settings = {
        "fine_tune_type": "lora",
        "model": base,
        "num_layers": config.num_layers - first,
        "lora_parameters": {"rank": rank, "scale": adapters.scale, "dropout": 0.0, "keys": kinds},
    }
    with new_folder(folder) as part:
        (part / WEIGHTS).write_bytes(save(tensors, {"format": "mlx"}))
        (part / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _nothing(rank: int, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(rank, cols), torch.zeros(rows, rank)
