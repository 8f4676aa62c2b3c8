"""What a family of decoders is, beyond the numbers in its config.json: one entry of TRAITS per `model_type`.

A family that is an arrangement of what there is needs an entry here, sizes in catalogue.py, and, where its checkpoints
call their tensors otherwise, their names in mebp/store/checkpoint.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mebp.models.config import Family, LinearName, Norms, QkNorm
from mebp.models.hf_config import HFConfig
from mebp.models.window import (
    all_but_every,
    all_rotated,
    all_windows,
    every_nth_unrotated,
    exaone_windows,
    late_windows,
    no_windows,
    unrotated_windows,
    windowless_unrotated,
)

SILU = ("silu", "swish")
GELU_TANH = ("gelu_pytorch_tanh",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """What embedding, residual branches, attention scores (None: 1 / sqrt(head_dim)) and logits are multiplied by."""

    embedding: float = 1.0
    residual: float = 1.0
    attention: float | None = None
    logit: float = 1.0


def _plain_scales(hf: HFConfig) -> Scales:
    return Scales()


def _gemma_scales(hf: HFConfig) -> Scales:
    query = hf.query_pre_attn_scalar
    return Scales(embedding=hf.hidden_size**0.5, attention=None if query is None else query**-0.5)


def _granite_scales(hf: HFConfig) -> Scales:
    return Scales(
        embedding=hf.embedding_multiplier or 1.0,
        residual=hf.residual_multiplier or 1.0,
        attention=hf.attention_multiplier or 1.0,
        logit=1 / (hf.logits_scaling or 1.0),
    )


def _minicpm_scales(hf: HFConfig) -> Scales:
    depth = hf.num_hidden_layers**0.5
    return Scales(
        embedding=hf.scale_emb or 1.0,
        residual=(hf.scale_depth or depth) / depth,
        logit=(hf.dim_model_base or hf.hidden_size) / hf.hidden_size,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What is common to a family's models. `windows` and `unrotated` say which layers have a sliding window and which no rotary
    embedding; `local_rope` is what layers with a window are rotated by: the same as the others, one of their own, or the same
    without scaling. `partial_rotary` and `caps` say whether config.json's fields of that are read. `defaults` are those of fields
    that config.json may leave out.
    """

    family: Family
    norms: Norms = "before"
    norm_offset: float = 0.0
    qk_norm: QkNorm = "none"
    biases: tuple[LinearName, ...] = ()
    activations: tuple[str, ...] = SILU
    windows: Callable[[HFConfig], list[bool]] = no_windows
    unrotated: Callable[[HFConfig], tuple[int, ...]] = all_rotated
    scales: Callable[[HFConfig], Scales] = _plain_scales
    local_rope: Literal["same", "own", "unscaled"] = "same"
    partial_rotary: bool = False
    caps: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reads_windows(self) -> bool:
        return self.windows is not no_windows


_QWEN2 = Traits(family=Family.QWEN2, biases=("q", "k", "v"), windows=late_windows)
_QWEN3 = Traits(family=Family.QWEN3, qk_norm="head", windows=late_windows, defaults={"head_dim": 128})
_GEMMA_DEFAULTS = {"tie_word_embeddings": True, "head_dim": 256, "hidden_act": GELU_TANH[0]}

TRAITS: dict[str, Traits] = {
    "llama": Traits(family=Family.LLAMA),
    "qwen2": _QWEN2,
    "qwen2_5_vl_text": Traits(
        family=Family.QWEN2, biases=("q", "k", "v"), windows=late_windows, defaults={"rope_theta": 1e6, "max_window_layers": 80}
    ),
    "qwen3": _QWEN3,
    "qwen3_vl_text": Traits(family=Family.QWEN3, qk_norm="head", defaults={"head_dim": 128, "rope_theta": 5e5}),
    "mistral": Traits(family=Family.MISTRAL, windows=all_windows, defaults={"sliding_window": 4096}),
    "ministral3": Traits(family=Family.MINISTRAL3, windows=all_windows, defaults={"head_dim": 128, "rms_norm_eps": 1e-5}),
    "gemma": Traits(
        family=Family.GEMMA,
        norm_offset=1.0,
        activations=(*GELU_TANH, "gelu"),  # which the published configs say, and mean the other
        scales=_gemma_scales,
        defaults=_GEMMA_DEFAULTS,
    ),
    "gemma2": Traits(
        family=Family.GEMMA2,
        norms="both",
        norm_offset=1.0,
        activations=GELU_TANH,
        windows=all_but_every(2),
        scales=_gemma_scales,
        caps=True,
        defaults=_GEMMA_DEFAULTS
        | {"query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3_text": Traits(
        family=Family.GEMMA3,
        norms="both",
        norm_offset=1.0,
        qk_norm="head",
        activations=GELU_TANH,
        windows=all_but_every(6),
        scales=_gemma_scales,
        local_rope="own",
        caps=True,
        defaults=_GEMMA_DEFAULTS  # transformers leaves the others out of gemma-3-4b's text_config
        | {
            "vocab_size": 262_208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "query_pre_attn_scalar": 256,
            "rope_theta": 1e6,
        },
    ),
    "phi3": Traits(family=Family.PHI3, windows=all_windows, partial_rotary=True, defaults={"rms_norm_eps": 1e-5}),
    "smollm3": Traits(
        family=Family.SMOLLM3,
        windows=unrotated_windows,
        unrotated=every_nth_unrotated,
        defaults={"tie_word_embeddings": True, "rope_theta": 2e6},
    ),
    "granite": Traits(family=Family.GRANITE, scales=_granite_scales),
    "minicpm": Traits(family=Family.MINICPM, scales=_minicpm_scales, defaults={"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "olmo2": Traits(family=Family.OLMO2, norms="after", qk_norm="width", defaults={"rms_norm_eps": 1e-5}),
    "olmo3": Traits(
        family=Family.OLMO3,
        norms="after",
        qk_norm="width",
        windows=all_but_every(4),
        local_rope="unscaled",
        defaults={"rms_norm_eps": 1e-5, "rope_theta": 5e5, "sliding_window": 4096},
    ),
    "exaone4": Traits(
        family=Family.EXAONE4,
        norms="after",
        qk_norm="head",
        windows=exaone_windows,
        unrotated=windowless_unrotated,
        defaults={"rms_norm_eps": 1e-5},
    ),
}
WRAPPERS = {"gemma3": "gemma3_text", "qwen2_5_vl": "qwen2_5_vl_text", "qwen3_vl": "qwen3_vl_text", "mistral3": "mistral"}
"""Models whose `text_config` is a decoder, and the type of that where it does not say."""

KNOWN = (
    "llama (SmolLM2 too), qwen2, qwen3, mistral, ministral3, gemma, gemma2, gemma3, phi3, smollm3, granite, minicpm, olmo2, olmo3,"
    " exaone4, and the text part of qwen2_5_vl and qwen3_vl"
)
MISSING = {  # what models of other types would need
    "moe": "a mixture of experts",
    "mixtral": "a mixture of experts",
    "mamba": "state-space layers",
    "hybrid": "state-space layers",
    "lfm2": "short convolutions",
    "next": "delta-net layers",
    "qwen3_5": "delta-net layers",
    "rwkv": "recurrent layers",
    "deepseek": "latent attention",
    "minicpm3": "latent attention",
    "gemma3n": "per-layer embeddings",
    "gemma4": "per-layer embeddings",
}


def missing_for(model_type: str) -> str:
    """What a type of model that is not known would need, in a few words; an empty text where that is not known either."""
    return next((needed for part, needed in MISSING.items() if part in model_type), "")
