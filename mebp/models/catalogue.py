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


def _exaone4(sizes: dict[str, int]) -> dict[str, Any]:
    scaling = {
        "rope_type": "llama3",
        "factor": 16.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    fixed = {"vocab_size": 102_400, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "rope_scaling": scaling, "sliding_window": None}
    kinds = {"layer_types": ["full_attention"] * sizes["num_hidden_layers"]}
    return {"model_type": "exaone4", "tie_word_embeddings": True, "head_dim": 64} | fixed | kinds | sizes


def _phi4_mini(sizes: dict[str, int]) -> dict[str, Any]:
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": list(PHI4_LONG)}
    contexts = {"max_position_embeddings": 131_072, "original_max_position_embeddings": 4096, "sliding_window": 262_144}
    fixed = {"vocab_size": 200_064, "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.75, "rope_scaling": scaling}
    return {"model_type": "phi3", "tie_word_embeddings": True} | fixed | contexts | sizes


PHI4_LONG = (
    *(1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649, 2.446418898, 2.735880826),
    *(3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533, 5.984965424, 6.693110555, 7.485043894),
    *(8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651, 14.64173252, 16.37415215, 18.31155283, 20.47818807),
    *(22.90118105, 25.61086418, 28.64115884, 32.03, 32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97),
    *(33.28, 33.49, 33.5, 44.16, 47.77),
)
MINISTRAL_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16_384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
OLMO3_ROPES = {
    "full_attention": {
        "rope_type": "yarn",
        "rope_theta": 5e5,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "attention_factor": 1.2079441541679836,
    },
    "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
}
GRANITE_SCALES = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.015625,
    "logits_scaling": 8.0,
}
MINICPM_SCALES = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256}

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
    "smollm3-3b": {"model_type": "smollm3", "vocab_size": 128_256, "rope_theta": 5e6} | _sizes(2048, 11008, 36, 16, 4),
    "mistral-7b": {"model_type": "mistral", "vocab_size": 32_768, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None}
    | _sizes(4096, 14336, 32, 32, 8),
    "ministral-3-3b": {"model_type": "ministral3", "vocab_size": 131_072, "head_dim": 128, "tie_word_embeddings": True}
    | {"rms_norm_eps": 1e-5, "rope_parameters": MINISTRAL_ROPE, "max_position_embeddings": 262_144}
    | _sizes(3072, 9216, 26, 32, 8),
    "gemma-2b": {"model_type": "gemma", "vocab_size": 256_000, "head_dim": 256} | _sizes(2048, 16384, 18, 8, 1),
    "gemma-2-2b": {"model_type": "gemma2", "vocab_size": 256_000, "head_dim": 256} | _sizes(2304, 9216, 26, 8, 4),
    "phi-3-mini": {"model_type": "phi3", "vocab_size": 32_064, "rms_norm_eps": 1e-5, "sliding_window": 2047}
    | _sizes(3072, 8192, 32, 32, 32),
    "phi-4-mini": _phi4_mini(_sizes(3072, 8192, 32, 24, 8)),
    "granite-3.3-2b": {"model_type": "granite", "vocab_size": 49_159, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}
    | {"rope_theta": 1e7, **GRANITE_SCALES}
    | _sizes(2048, 8192, 40, 32, 8),
    "minicpm-2b": {"model_type": "minicpm", "vocab_size": 122_753, "rms_norm_eps": 1e-5, **MINICPM_SCALES}
    | _sizes(2304, 5760, 40, 36, 36),
    "olmo-2-1b": {"model_type": "olmo2", "vocab_size": 100_352, "rope_theta": 5e5, "rms_norm_eps": 1e-6}
    | _sizes(2048, 8192, 16, 16, 16),
    "olmo-3-7b": {"model_type": "olmo3", "vocab_size": 100_278, "rms_norm_eps": 1e-6, "rope_parameters": OLMO3_ROPES}
    | _sizes(4096, 11008, 32, 32, 32),
    "exaone-4-1.2b": _exaone4(_sizes(2048, 4096, 30, 32, 8)),
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


def is_known(spec: str) -> bool:
    """Whether `spec` is a name of the catalogue, or an alias."""
    return ALIASES.get(spec.lower(), spec.lower()) in CATALOGUE


def load_model(spec: str) -> ModelConfig:
    """Find the model that `spec` names: an alias, a catalogue name, the Hugging Face id of a catalogue model, or a config.json or
    folder in Hugging Face form.
    """
    require_kind("`model`", spec, str, remedy="name a model, or the path of a config.json")
    if not spec.strip():
        raise ModelError("`model` is empty: take a name that `mebp-plan models` lists, or a folder with config.json")
    if is_known(spec):
        return catalogue_model(ALIASES.get(spec.lower(), spec.lower()))
    there = os.path.exists(spec)  # False for what no path can be
    if not there and (known := hub_name(spec)):
        return catalogue_model(known)
    if there or spec.endswith(".json") or ("/" in spec and not HUB_ID.fullmatch(spec)):
        return read_model(Path(spec))
    near = difflib.get_close_matches(spec.lower().rpartition("/")[2], [*CATALOGUE, *ALIASES], n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ModelError(f"unknown model {spec!r:.80}: {hint}take a name that `mebp-plan models` lists, or a folder with config.json")
