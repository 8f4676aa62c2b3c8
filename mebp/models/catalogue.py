"""Models known by name: the dimensions of each, as its published config.json has them, and short aliases.

Dimensions were cross-read from litgpt's and torchtune's model builders, google-deepmind/gemma and the models' own config files;
tests compare the parameter counts with the published ones and with modules that transformers builds.
"""

import difflib
import os
import re
from pathlib import Path
from typing import Any

from mebp.errors import ModelError
from mebp.models.config import ModelConfig
from mebp.models.huggingface import config_from_dict, read_model
from mebp.unit import require_kind

ALIASES = {
    "0.5b": "qwen2.5-0.5b",
    "1.5b": "qwen2.5-1.5b",
    "3b": "qwen2.5-3b",
    "1b": "gemma-3-1b",
    "4b": "gemma-3-4b",
}


HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
HUB_SUFFIX = re.compile(r"(-(it|pt|instruct|base|bf16|bnb|4bit|8bit))*$")  # of other training or storage, not other dimensions


def _qwen2(sizes: dict[str, int], *, vocab: int = 151_936, tied: bool = True) -> dict[str, Any]:
    return {"model_type": "qwen2", "vocab_size": vocab, "rope_theta": 1e6, "tie_word_embeddings": tied} | sizes


def _qwen3(sizes: dict[str, int]) -> dict[str, Any]:
    fixed = {"vocab_size": 151_936, "head_dim": 128, "num_key_value_heads": 8, "rope_theta": 1e6}
    return {"model_type": "qwen3", "tie_word_embeddings": True} | fixed | sizes


def _gemma3(sizes: dict[str, int], *, window: int, vocab: int = 262_144, scaling: dict[str, Any] | None = None) -> dict[str, Any]:
    fixed = {"head_dim": 256, "query_pre_attn_scalar": 256, "rope_theta": 1e6, "rope_local_base_freq": 1e4}
    return {"model_type": "gemma3_text", "vocab_size": vocab, "sliding_window": window, "rope_scaling": scaling} | fixed | sizes


def _llama3(sizes: dict[str, int], *, head_dim: int) -> dict[str, Any]:
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    fixed = {"head_dim": head_dim, "vocab_size": 128_256, "rms_norm_eps": 1e-5, "rope_theta": 5e5, "rope_scaling": scaling}
    return {"model_type": "llama", "tie_word_embeddings": True} | fixed | sizes


def _smollm2(sizes: dict[str, int], *, theta: float = 1e5) -> dict[str, Any]:
    fixed = {"vocab_size": 49_152, "rms_norm_eps": 1e-5, "rope_theta": theta}
    return {"model_type": "llama", "tie_word_embeddings": True} | fixed | sizes


def _sizes(d: int, ffn: int, layers: int, heads: int, kv: int) -> dict[str, int]:
    return {
        "hidden_size": d,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
    }


CATALOGUE: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": _qwen2(_sizes(896, 4864, 24, 14, 2)),
    "qwen2.5-1.5b": _qwen2(_sizes(1536, 8960, 28, 12, 2)),
    "qwen2.5-3b": _qwen2(_sizes(2048, 11008, 36, 16, 2)),
    "qwen2.5-7b": _qwen2(_sizes(3584, 18944, 28, 28, 4), vocab=152_064, tied=False),
    "qwen3-0.6b": _qwen3(_sizes(1024, 3072, 28, 16, 8)),
    "qwen3-1.7b": _qwen3(_sizes(2048, 6144, 28, 16, 8)),
    "qwen3-4b": _qwen3(_sizes(2560, 9728, 36, 32, 8)),
    "gemma-3-270m": _gemma3(_sizes(640, 2048, 18, 4, 1), window=512),
    "gemma-3-1b": _gemma3(_sizes(1152, 6912, 26, 4, 1), window=512),
    # the 4B checkpoint pads its vocabulary to 262,208 and scales its global rope by 8
    "gemma-3-4b": _gemma3(
        _sizes(2560, 10240, 34, 8, 4), window=1024, vocab=262_208, scaling={"rope_type": "linear", "factor": 8.0}
    ),
    "llama-3.2-1b": _llama3(_sizes(2048, 8192, 16, 32, 8), head_dim=64),
    "llama-3.2-3b": _llama3(_sizes(3072, 8192, 28, 24, 8), head_dim=128),
    "smollm2-135m": _smollm2(_sizes(576, 1536, 30, 9, 3)),
    "smollm2-360m": _smollm2(_sizes(960, 2560, 32, 15, 5)),
    "smollm2-1.7b": _smollm2(_sizes(2048, 8192, 24, 32, 32), theta=1.3e5),
}


def catalogue_model(name: str) -> ModelConfig:
    """Build a catalogue entry by its full name (KeyError if there is none)."""
    return config_from_dict(CATALOGUE[name], name=name, source=f"catalogue entry {name}")


def hub_name(spec: str) -> str | None:
    """The catalogue model behind a Hugging Face id such as `google/gemma-3-4b-it`: tuned or not, it has the same dimensions."""
    if not HUB_ID.fullmatch(spec):
        return None
    plain = HUB_SUFFIX.sub("", spec.partition("/")[2].lower())
    return plain if plain in CATALOGUE else None


def load_model(spec: str) -> ModelConfig:
    """Find the model that `spec` names: an alias, a catalogue name, the Hugging Face id of a catalogue model, or a config.json or
    folder in Hugging Face form.
    """
    require_kind("`model`", spec, str, remedy="name a model, or the path of a config.json")
    if not spec.strip():
        raise ModelError("`model` is empty: take a name that `mebp-plan models` lists, or a folder with config.json")
    name = ALIASES.get(spec.lower(), spec.lower())
    if name in CATALOGUE:
        return catalogue_model(name)
    there = os.path.exists(spec)  # False for what no path can be
    if not there and (known := hub_name(spec)):
        return catalogue_model(known)
    if there or spec.endswith(".json") or ("/" in spec and not HUB_ID.fullmatch(spec)):
        return read_model(Path(spec))
    near = difflib.get_close_matches(name.rpartition("/")[2], [*CATALOGUE, *ALIASES], n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ModelError(f"unknown model {spec!r:.80}: {hint}take a name that `mebp-plan models` lists, or a folder with config.json")
