"""What a GGUF file's metadata say of its model: the fields of the config.json that they stand for, as llama.cpp's converter turns
one into the other, and where each tensor is.
"""

from collections.abc import Callable, Mapping
from typing import Any

from mebp.models.config import LinearName, ModelConfig
from mebp.store.location import Location, locations

Metadata = Callable[[str], Any]  # metadata by key without the architecture, None where there are none
MODEL_TYPES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen2vl": "qwen2_5_vl_text",
    "qwen3": "qwen3",
    "qwen3vl": "qwen3_vl_text",
    "mistral3": "mistral",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
    "smollm3": "smollm3",
    "granite": "granite",
    "minicpm": "minicpm",
    "olmo2": "olmo2",
    "exaone4": "exaone4",
}
PERMUTED = ("llama", "mistral3", "smollm3", "granite", "minicpm")  # q and k with the halves of a head's rows interleaved
WINDOWED = ("phi3", "gemma2", "gemma3", "olmo2", "exaone4")  # architectures whose windows llama.cpp reads
WIDE_QUERIES = {"gemma2": 46, "gemma3": 62}  # layers of the 27B: its queries are scaled by hidden / heads, others' by head_dim
OUTER = {"embedding": "token_embd", "head": "output", "final_norm": "output_norm"}
LINEARS: dict[LinearName, str] = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
FUSED: dict[str, tuple[LinearName, ...]] = {"attn_qkv": ("q", "k", "v"), "ffn_up": ("gate", "up")}  # of Phi-3
NORMS = {
    "norm1": "attn_norm",
    "norm2": "ffn_norm",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "post_attention_norm": "post_attention_norm",
    "post_ffn_norm": "post_ffw_norm",
}
ROPE_FACTORS = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # of every model so far


def gguf_locations(config: ModelConfig, architecture: str) -> dict[str, Location]:
    """The store's names to where a file of this architecture keeps the tensors."""
    return locations(config, OUTER, "blk.{}.", LINEARS, NORMS, FUSED if architecture == "phi3" else {})


def config_fields(
    architecture: str, field: Metadata, tensors: Mapping[str, tuple[int, ...]], factors: Mapping[str, list[float]]
) -> dict[str, Any]:
    """The fields of config.json. `tensors` are the file's, name to shape, `factors` the values of those that scale the rotary
    embedding.
    """
    head_dim = field("attention.key_length")
    fields = {
        "model_type": MODEL_TYPES[architecture],
        "hidden_size": field("embedding_length"),
        "intermediate_size": field("feed_forward_length"),
        "num_hidden_layers": field("block_count"),
        "num_attention_heads": field("attention.head_count"),
        "num_key_value_heads": field("attention.head_count_kv"),
        "head_dim": head_dim or (None if architecture == "phi3" else field("rope.dimension_count")),
        "max_position_embeddings": field("context_length"),
        "rms_norm_eps": field("attention.layer_norm_rms_epsilon"),
        "rope_theta": field("rope.freq_base"),
        "rope_scaling": _rope_scaling(field, factors),
        "vocab_size": tensors["token_embd.weight"][0],
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_output.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
        "num_experts": field("expert_count") or None,
        "sliding_window": (field("attention.sliding_window") or None) if architecture in WINDOWED else None,
        "layer_types": _layer_types(field),
        "sliding_window_pattern": _period(field),
    }
    return fields | _FAMILIES.get(architecture, _nothing)(field, fields)


def _layer_types(field: Metadata) -> list[str] | None:
    """Of an array that says which layers have a window."""
    pattern = field("attention.sliding_window_pattern")
    if not isinstance(pattern, list):
        return None  # a number is a period, which has a field of its own
    return ["sliding_attention" if local else "full_attention" for local in pattern]


def _period(field: Metadata) -> int | None:
    """Of a number that says which layers have no window: every so manyth."""
    pattern = field("attention.sliding_window_pattern")
    return pattern if isinstance(pattern, int) and not isinstance(pattern, bool) else None


def _rope_scaling(field: Metadata, factors: Mapping[str, list[float]]) -> dict[str, Any] | None:
    original = field("rope.scaling.original_context_length")
    if ROPE_FACTORS in factors:
        return {"rope_type": "llama3", "factor": max(factors[ROPE_FACTORS]), **LLAMA3}
    if LONG in factors and SHORT in factors:
        lists = {"long_factor": factors[LONG], "short_factor": factors[SHORT], "original_max_position_embeddings": original}
        return {"rope_type": "longrope", "attention_factor": field("rope.scaling.attn_factor"), **lists}
    kind, factor = field("rope.scaling.type"), field("rope.scaling.factor")
    if kind in (None, "none", "longrope"):
        return None
    found = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        grown = field("rope.scaling.yarn_log_multiplier")
        turns = {"beta_fast": field("rope.scaling.yarn_beta_fast"), "beta_slow": field("rope.scaling.yarn_beta_slow")}
        found |= {"original_max_position_embeddings": original, "mscale": grown, "mscale_all_dim": grown, **turns}
        found |= {"attention_factor": field("rope.scaling.attn_factor")} if grown is None else {}
    return found


def _nothing(field: Metadata, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {}


def _mistral(field: Metadata, fields: Mapping[str, Any]) -> dict[str, Any]:
    beta = field("attention.temperature_scale")
    if not beta:
        return {}
    return {"model_type": "ministral3", "rope_scaling": (fields["rope_scaling"] or {}) | {"llama_4_scaling_beta": beta}}


def _gemma(architecture: str) -> Callable[[Metadata, Mapping[str, Any]], dict[str, Any]]:
    def fields_of(field: Metadata, fields: Mapping[str, Any]) -> dict[str, Any]:
        wide = fields["num_hidden_layers"] == WIDE_QUERIES[architecture]
        heads, hidden = fields["num_attention_heads"], fields["hidden_size"]
        caps = {
            "attn_logit_softcapping": field("attn_logit_softcapping"),
            "final_logit_softcapping": field("final_logit_softcapping"),
        }
        return {"query_pre_attn_scalar": hidden / heads if wide else fields["head_dim"], **caps}

    return fields_of


def _phi(field: Metadata, fields: Mapping[str, Any]) -> dict[str, Any]:
    rotated, original = field("rope.dimension_count"), field("rope.scaling.original_context_length")
    width = fields["hidden_size"] // fields["num_attention_heads"]
    share = rotated / width if rotated and rotated != width else None
    return {"partial_rotary_factor": share, "original_max_position_embeddings": original}


def _granite(field: Metadata, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "embedding_multiplier": field("embedding_scale"),
        "residual_multiplier": field("residual_scale"),
        "attention_multiplier": field("attention.scale"),
        "logits_scaling": field("logit_scale"),
    }


def _minicpm(field: Metadata, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Files of before these keys were written have the numbers of the first models."""
    depth, hidden = fields["num_hidden_layers"] ** 0.5, fields["hidden_size"]
    residual, logit = field("residual_scale"), field("logit_scale")
    return {
        "scale_emb": field("embedding_scale") or 12.0,
        "scale_depth": residual * depth if residual else 1.4,
        "dim_model_base": hidden / logit if logit else 256.0,
    }


def _olmo(field: Metadata, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"model_type": "olmo3"} if fields["sliding_window"] else {}


_FAMILIES: dict[str, Callable[[Metadata, Mapping[str, Any]], dict[str, Any]]] = {
    "mistral3": _mistral,
    "gemma2": _gemma("gemma2"),
    "gemma3": _gemma("gemma3"),
    "phi3": _phi,
    "granite": _granite,
    "minicpm": _minicpm,
    "olmo2": _olmo,
}
