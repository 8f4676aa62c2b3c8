"""Adapters as mlx-lm's folder: adapters.safetensors with lora_a (in, rank) and lora_b (rank, out), and adapter_config.json."""

import json
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from mebp.export.base import Base
from mebp.export.folder import new_folder
from mebp.export.lora_set import LoraSet

WEIGHTS, SETTINGS = "adapters.safetensors", "adapter_config.json"
LAYER = re.compile(r"\.layers\.[0-9]+\.")


def write_mlx(folder: Path, adapters: LoraSet, base: Base) -> None:
    """Write `adapters` as a new folder that mlx-lm loads with `--adapter-path` on `base`; InputError where there is something
    already.

    mlx-lm has one rank for all modules, and adapts the last layers: smaller pairs are filled up with zeros, as are those of layers
    that have none.
    """
    config, locations = adapters.config, base.mlx_locations()
    by_module = {location.module: pair for location, pair in adapters.by_tensor(locations)}
    rank = max(len(A) for A, _ in by_module.values())
    kinds = sorted({LAYER.split(module, maxsplit=1)[1] for module in by_module})
    outer = LAYER.split(next(iter(by_module)), maxsplit=1)[0]
    shapes = {
        location.module: (location.total, config.matrices()[name][1])
        for name, location in locations.items()
        if name in config.matrices()
    }
    first = adapters.layers[0]
    tensors: dict[str, Tensor] = {}
    for module in (f"{outer}.layers.{layer}.{kind}" for layer in range(first, config.num_layers) for kind in kinds):
        rows, cols = shapes[module]
        A, B = by_module.get(module) or _zero_pair(rank, rows, cols)
        tensors[f"{module}.lora_a"] = F.pad(A, (0, 0, 0, rank - len(A))).T.contiguous()
        tensors[f"{module}.lora_b"] = F.pad(B, (0, rank - len(A))).T.contiguous()
    settings = {
        "fine_tune_type": "lora",
        "model": base.name,
        "num_layers": config.num_layers - first,
        "lora_parameters": {"rank": rank, "scale": adapters.scale, "dropout": 0.0, "keys": kinds},
    }
    with new_folder(folder) as part:
        (part / WEIGHTS).write_bytes(save(tensors, {"format": "mlx"}))
        (part / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _zero_pair(rank: int, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(rank, cols), torch.zeros(rows, rank)
