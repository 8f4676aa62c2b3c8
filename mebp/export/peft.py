"""Adapters as PEFT's folder: adapter_model.safetensors and adapter_config.json, written and read."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mebp.errors import InputError
from mebp.export.base import Base
from mebp.export.folder import new_folder, read_object
from mebp.export.lora_set import LoraSet, Pair
from mebp.models.config import ModelConfig
from mebp.store.checkpoint import checkpoint_locations
from mebp.text import shortened

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."  # before every module's name
TENSOR = re.compile(
    r"base_model\.model\.((model|language_model)\.)*(?P<module>layers\.[0-9]+\..+)\.lora_(?P<part>[AB])(\.default)?\.weight"
)
LARGEST_ALPHA = 1e6
UNSUPPORTED = (  # fields whose adapters are more than pairs of linears, or change the base
    *("use_dora", "use_qalora", "use_bdlora", "modules_to_save", "trainable_token_indices", "target_parameters", "lora_bias"),
    *("fan_in_fan_out", "layer_replication", "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config"),
)
PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")  # of `init_lora_weights`: the base stays as it is
EXPECTED = "a PEFT adapter's folder"


def write_peft(folder: Path, adapters: LoraSet, base: Base) -> None:
    """Write `adapters` as a new folder that PEFT loads on `base`; InputError where there is something already."""
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for location, (A, B) in adapters.by_tensor(base.peft_locations()):
        module = PREFIX + location.module
        tensors |= {f"{module}.lora_A.weight": A.contiguous(), f"{module}.lora_B.weight": B.contiguous()}
        ranks[location.module.rpartition(".")[2]] = len(A)
    other_ranks = {module: rank for module, rank in ranks.items() if rank != adapters.rank}
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": adapters.rank,
        "lora_alpha": adapters.alpha,
        "lora_dropout": 0.0,
        "target_modules": _targets(sorted(ranks), base),
        "rank_pattern": other_ranks,
        "alpha_pattern": {module: adapters.alpha * rank / adapters.rank for module, rank in other_ranks.items()},
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "inference_mode": True,
    }
    if len(adapters.layers) < adapters.config.num_layers and not base.wrapper:
        settings |= {"layers_to_transform": list(adapters.layers), "layers_pattern": "layers"}
    with new_folder(folder) as part:
        (part / WEIGHTS).write_bytes(save(tensors, {"format": "pt"}))
        (part / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _targets(modules: list[str], base: Base) -> list[str] | str:
    """The linears by name; in a vision model by an expression that its vision part does not match."""
    return rf".*language_model\.layers\.[0-9]+\..*\.({'|'.join(modules)})" if base.wrapper else modules


def base_of(folder: Path) -> str:
    """What an adapter says that it was trained on; an empty text where it does not."""
    return str(read_object(folder / SETTINGS, EXPECTED).get("base_model_name_or_path") or "")


def read_peft(folder: Path, config: ModelConfig) -> LoraSet:
    """Read the adapters of `config` from PEFT's folder; InputError in one line for one that is damaged, of another model, or more
    than LoRA pairs of linears. Where scales or ranks differ between modules, B is scaled and pairs are filled up with zeros.
    """
    settings = read_object(folder / SETTINGS, EXPECTED)
    _require_lora(settings, folder)
    modules = _modules(folder)
    matrices, everywhere = config.matrices(), checkpoint_locations(config)
    locations = {name: everywhere[name] for name in matrices if everywhere[name].module in modules}
    unknown = modules.keys() - {location.module for location in locations.values()}
    if unknown:
        raise InputError(f"{folder}: {min(unknown)} is no linear of {config.name}: name the model that it was trained on")
    if not locations:
        raise InputError(f"{folder / WEIGHTS} holds no adapter: copy it again")
    rank = max(len(A) for A, _ in modules.values())
    scales = {module: _scale(settings, module, len(A), folder) for module, (A, _) in modules.items()}
    common = max(scales.values())
    pairs: dict[str, Pair] = {}
    for name, location in locations.items():
        A, B = modules[location.module]
        own = B[location.first : location.first + matrices[name][0]]
        if (scales[location.module], len(A)) != (common, rank):  # else as they are: adapters are large
            own = F.pad(own * (scales[location.module] / common), (0, rank - len(A)))
            A = F.pad(A, (0, 0, 0, rank - len(A)))
        pairs[name] = A, own
    return LoraSet(config=config, rank=rank, alpha=common * rank, pairs=pairs)


def _require_lora(settings: Mapping[str, Any], folder: Path) -> None:
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise InputError(f"{folder} is an adapter of type {shortened(str(kind))}, which is not read: PEFT's LORA is")
    for name in UNSUPPORTED:
        if settings.get(name):
            raise InputError(f"{folder}: {name} is not read: LoRA pairs of linears are")
    start = settings.get("init_lora_weights")
    if start not in PLAIN_STARTS:
        raise InputError(f"{folder}: init_lora_weights = {shortened(repr(start))} changes the base's weights, which is not read")
    if settings.get("bias", "none") != "none" or settings.get("use_rslora") not in (None, True, False):
        raise InputError(f"{folder / SETTINGS}: bias must be none and use_rslora true or false: LoRA pairs of linears are read")


def _modules(folder: Path) -> dict[str, Pair]:
    """A and B in fp32 by the name of their module in a plain decoder."""
    found: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (no mapping)
                match = TENSOR.fullmatch(name)
                parts = {} if match is None else found.setdefault(f"model.{match['module']}", {})
                if match is None or match["part"] in parts:
                    raise InputError(f"{folder / WEIGHTS}: {shortened(name)} is no LoRA pair of a decoder's linear, which are read")
                parts[match["part"]] = opened.get_tensor(name).float()
    except (SafetensorError, OSError) as error:
        raise InputError(f"cannot read {folder / WEIGHTS}: {error}: copy the adapter again") from None
    for module, parts in found.items():
        fit = set(parts) == {"A", "B"} and all(part.ndim == 2 for part in parts.values())
        if not fit or not 0 < len(parts["A"]) == parts["B"].shape[1]:
            raise InputError(f"{folder / WEIGHTS}: {module} has no pair of A and B that fit: copy the adapter again")
    return {module: (parts["A"], parts["B"]) for module, parts in found.items()}


def _scale(settings: Mapping[str, Any], module: str, rank: int, folder: Path) -> float:
    """alpha / rank of a module, whose A has `rank` rows."""
    named, alpha = _setting(settings, "alpha", "lora_alpha", module, folder)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= LARGEST_ALPHA:
        raise InputError(f"{folder / SETTINGS}: {named} = {shortened(repr(alpha))}: expected a number above 0")
    named, said = _setting(settings, "rank", "r", module, folder)
    if isinstance(said, bool) or said != rank:
        raise InputError(
            f"{folder / SETTINGS}: {named} = {shortened(repr(said))}, but {module} has rank {rank}: copy the adapter again"
        )
    return float(alpha) / (rank**0.5 if settings.get("use_rslora") else rank)


def _setting(settings: Mapping[str, Any], pattern: str, common: str, module: str, folder: Path) -> tuple[str, object]:
    """A module's own value, where an expression of `{pattern}_pattern` matches the end of its name, else the `common` one; and what
    it is called.
    """
    name = f"{pattern}_pattern"
    try:
        found = [value for key, value in (settings.get(name) or {}).items() if re.match(rf"(.*\.)?({key})$", module)]
    except (AttributeError, re.error):
        raise InputError(f"{folder / SETTINGS}: {name} is no object of expressions and numbers") from None
    return (name, found[0]) if found else (common, settings.get(common))
