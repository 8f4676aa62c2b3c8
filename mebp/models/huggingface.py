"""Read a Hugging Face config.json into a ModelConfig, refusing what would change the mathematics unseen.

Spelled both ways that transformers writes: `rope_theta` with `rope_scaling`, and `rope_parameters` (5.x). Weights are not read.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mebp.errors import ModelError
from mebp.models.config import Family, ModelConfig, Rope
from mebp.text import read_text, resolved, shortened

CONFIG, ADAPTER_CONFIG, GGUF = "config.json", "adapter_config.json", b"GGUF"
FAMILY_NAMES = "qwen2, qwen3, gemma3 (text), llama (SmolLM2 too)"
LANGUAGE_MODELS = ("ForCausalLM", "ForConditionalGeneration")  # ends of the names of what has a head over the vocabulary
SLIDING_PATTERN = 6  # Gemma 3: five local layers, then a global one


class HFConfig(BaseModel):
    """The fields of a config.json that are read, with their bounds."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model_type: str
    hidden_size: int = Field(ge=8, le=65536)
    intermediate_size: int = Field(ge=8, le=1 << 20)
    num_hidden_layers: int = Field(ge=1, le=512)
    num_attention_heads: int = Field(ge=1, le=1024)
    num_key_value_heads: int | None = Field(default=None, ge=1, le=1024)
    head_dim: int | None = Field(default=None, ge=2, le=4096, multiple_of=2)
    vocab_size: int = Field(ge=2, le=1 << 22)
    rms_norm_eps: float = Field(default=1e-6, gt=0, lt=0.1)
    tie_word_embeddings: bool | None = None
    hidden_act: str | None = None
    hidden_activation: str | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = Field(default=None, ge=1)
    use_sliding_window: bool = False
    sliding_window_pattern: int = Field(default=SLIDING_PATTERN, ge=1)
    layer_types: list[Literal["full_attention", "sliding_attention"]] | None = None
    query_pre_attn_scalar: float | None = Field(default=None, ge=1e-3, le=1e6)
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    use_bidirectional_attention: bool | None = False
    is_causal: bool | None = None
    architectures: list[str] | None = None
    partial_rotary_factor: float | None = None
    num_experts: int | None = None
    num_local_experts: int | None = None
    rope_theta: float | None = Field(default=None, gt=1)
    rope_local_base_freq: float = Field(default=10_000.0, gt=1)
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None


GEMMA3_DEFAULTS = {  # transformers leaves these out of gemma-3-4b's text_config
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "rope_theta": 1_000_000.0,
}


def read_model(path: Path) -> ModelConfig:
    """Read `path`, a config.json or a folder with one; the model is named after the folder or file.

    Raises ModelError in one line for a folder without config, a family that is not known, a missing or absurd field.
    """
    file = path / CONFIG if path.is_dir() else path
    if path.is_dir() and not file.is_file() and (path / ADAPTER_CONFIG).is_file():
        raise ModelError(f"{path} holds a PEFT adapter, not a model: name the folder of the model that it was trained on")
    if not file.is_file():
        raise ModelError(f"no model at {path}: expected a {CONFIG}, or a folder that holds one")
    raw = read_config(file)
    name = resolved(file.parent).name if file.name == CONFIG else file.stem
    return config_from_dict(raw, name=shortened(name), source=str(file))


def read_config(file: Path) -> dict[str, Any]:
    """The fields of a config.json; ModelError in one line for a file that is none."""
    try:
        with file.open("rb") as opened:
            if opened.read(len(GGUF)) == GGUF:
                raise ModelError(f"{file} is a GGUF file, which is not read: take the model's {CONFIG}, or its folder")
        raw = json.loads(read_text(file))
    except (OSError, ValueError, RecursionError) as error:
        said = shortened(getattr(error, "strerror", None) or str(error), 120)
        raise ModelError(f"{file} is not readable JSON ({said}): take a model's {CONFIG}, or its folder") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{file} holds a {type(raw).__name__}, not an object: expected a model's {CONFIG}")
    if "peft_type" in raw:
        base = shortened(str(raw.get("base_model_name_or_path")))
        raise ModelError(f"{file} is the config of a PEFT adapter, not of a model: name that of its base model ({base})")
    return raw


def quantisation_of(raw: Mapping[str, Any]) -> str | None:
    """How the weights of a checkpoint are quantised, by its config.json: `gptq, 4 bits`; None where they are not."""
    found = raw.get("quantization_config") or raw.get("quantization")
    if not isinstance(found, dict):
        return None
    method, bits = found.get("quant_method", "MLX"), found.get("bits")
    return f"{shortened(str(method))}{f', {bits} bits' if isinstance(bits, int) else ''}"


def config_from_dict(raw: dict[str, Any], *, name: str, source: str) -> ModelConfig:
    """Turn the fields of a config.json into a ModelConfig; `source` names it in errors."""
    if raw.get("model_type") == "gemma3" and isinstance(raw.get("text_config"), dict):
        raw = {"tie_word_embeddings": True} | raw["text_config"] | {"model_type": "gemma3_text"}
    family = _family(raw, source)
    if family is Family.GEMMA3:
        raw = GEMMA3_DEFAULTS | raw
    try:
        hf = HFConfig.model_validate(raw, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        given = "" if first["type"] == "missing" else f" = {shortened(repr(first['input']))}"
        raise ModelError(f"{source}: {field}{given}: {first['msg'].lower()}") from None
    _refuse_unsupported(hf, family, source)
    return _build(hf, family, name, source)


def _family(raw: dict[str, Any], source: str) -> Family:
    model_type = raw.get("model_type")
    try:
        return Family(str(model_type))
    except ValueError:
        raise ModelError(f"{source}: model_type {shortened(repr(model_type))} is not a family known here: {FAMILY_NAMES}") from None


def _refuse_unsupported(hf: HFConfig, family: Family, source: str) -> None:
    wanted = ("gelu_pytorch_tanh",) if family is Family.GEMMA3 else ("silu", "swish")
    act = (hf.hidden_activation or hf.hidden_act) if family is Family.GEMMA3 else hf.hidden_act
    refusals = {
        f"activation {act!r} (expected {wanted[0]})": act is not None and act not in wanted,
        "attention_bias": hf.attention_bias,
        "mlp_bias": hf.mlp_bias,
        "use_sliding_window": hf.use_sliding_window and family is not Family.GEMMA3,
        "attn_logit_softcapping": hf.attn_logit_softcapping is not None,
        "final_logit_softcapping": hf.final_logit_softcapping is not None,
        "use_bidirectional_attention": bool(hf.use_bidirectional_attention),
        "is_causal = false (attention in both directions)": hf.is_causal is False,
        "partial_rotary_factor": hf.partial_rotary_factor not in (None, 1.0),
        "num_experts": bool(hf.num_experts or hf.num_local_experts),
    }
    architecture = next(iter(hf.architectures or ()), None)
    if architecture is not None and not architecture.endswith(LANGUAGE_MODELS):
        raise ModelError(
            f"{source}: architectures = {shortened(architecture)} is no causal language model: take a checkpoint of one"
        )
    for what, refused in refusals.items():
        if refused:
            raise ModelError(f"{source}: {what} is not supported for {family}: its gradients would not be exact")


def _build(hf: HFConfig, family: Family, name: str, source: str) -> ModelConfig:
    gemma = family is Family.GEMMA3
    num_kv_heads = hf.num_key_value_heads or hf.num_attention_heads
    if hf.num_attention_heads % num_kv_heads:
        raise ModelError(
            f"{source}: num_attention_heads = {hf.num_attention_heads} is not a multiple of num_key_value_heads = {num_kv_heads}"
        )
    default_dim = 128 if family is Family.QWEN3 else hf.hidden_size // hf.num_attention_heads
    head_dim = hf.head_dim or default_dim
    if head_dim < 2 or head_dim % 2:
        raise ModelError(f"{source}: head_dim = {head_dim} (from hidden_size / num_attention_heads) must be even")
    rope, local_rope = _ropes(hf, family, source)
    return ModelConfig(
        name=name,
        family=family,
        hidden=hf.hidden_size,
        ffn=hf.intermediate_size,
        num_heads=hf.num_attention_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab=hf.vocab_size,
        windows=_windows(hf, family, source),
        rope=rope,
        local_rope=local_rope,
        norm_eps=hf.rms_norm_eps,
        norm_offset=1.0 if gemma else 0.0,
        attention_scale=(hf.query_pre_attn_scalar or head_dim) ** -0.5 if gemma else head_dim**-0.5,
        embedding_scale=hf.hidden_size**0.5 if gemma else 1.0,
        activation="gelu_tanh" if gemma else "silu",
        tied=gemma if hf.tie_word_embeddings is None else hf.tie_word_embeddings,
        qkv_bias=family is Family.QWEN2,
        qk_norm=family in (Family.QWEN3, Family.GEMMA3),
        four_norms=gemma,
    )


def _windows(hf: HFConfig, family: Family, source: str) -> tuple[int, ...]:
    if family is not Family.GEMMA3:
        return (0,) * hf.num_hidden_layers
    kinds = hf.layer_types or [
        "full_attention" if (layer + 1) % hf.sliding_window_pattern == 0 else "sliding_attention"
        for layer in range(hf.num_hidden_layers)
    ]
    if len(kinds) != hf.num_hidden_layers:
        raise ModelError(f"{source}: layer_types has {len(kinds)} entries for num_hidden_layers = {hf.num_hidden_layers}")
    if "sliding_attention" in kinds and hf.sliding_window is None:
        raise ModelError(f"{source}: sliding_window is missing, and layer_types has sliding_attention")
    return tuple((hf.sliding_window or 0) if kind == "sliding_attention" else 0 for kind in kinds)


def _ropes(hf: HFConfig, family: Family, source: str) -> tuple[Rope, Rope]:
    default_theta = 1_000_000.0 if family is Family.GEMMA3 else 10_000.0
    parameters, scaling = hf.rope_parameters or {}, hf.rope_scaling or {}
    by_layer = "full_attention" in parameters
    _require_spelling(parameters, scaling, by_layer=by_layer, gemma=family is Family.GEMMA3, source=source)
    if by_layer:
        full = _rope(parameters["full_attention"], hf.rope_theta or default_theta, source)
        local = _rope(parameters.get("sliding_attention") or {}, hf.rope_local_base_freq, source)
        return full, local
    full = _rope(parameters or scaling, hf.rope_theta or default_theta, source)
    return full, (Rope(theta=hf.rope_local_base_freq) if family is Family.GEMMA3 else full)


def _require_spelling(
    parameters: Mapping[str, Any], scaling: Mapping[str, Any], *, by_layer: bool, gemma: bool, source: str
) -> None:
    """Refuse spellings of the rotary embedding that transformers reads in another way than they are meant."""
    if parameters and scaling:
        raise ModelError(f"{source}: both rope_parameters and rope_scaling are given: leave one of them out")
    if gemma and parameters and not by_layer:
        raise ModelError(f"{source}: rope_parameters must name full_attention and sliding_attention for gemma3_text")
    if not gemma and {"full_attention", "sliding_attention"} & parameters.keys():
        raise ModelError(f"{source}: rope_parameters by kind of attention are gemma3_text's alone: name rope_type and rope_theta")
    if gemma and "type" in scaling and "rope_type" not in scaling:
        raise ModelError(f"{source}: rope_scaling has type, which gemma3_text does not read: call it rope_type")


def _rope(fields: Any, theta: float, source: str) -> Rope:
    if not isinstance(fields, dict):
        raise ModelError(f"{source}: rope parameters are a {type(fields).__name__}, not an object")
    kind = fields.get("rope_type", fields.get("type", "default"))
    try:
        theta = float(fields.get("rope_theta", theta))
        match kind:
            case "default":
                rope = Rope(theta=theta)
            case "linear":
                rope = Rope(theta=theta, scaling="linear", factor=float(fields["factor"]))
            case "llama3":
                rope = Rope(
                    theta=theta,
                    scaling="llama3",
                    factor=float(fields["factor"]),
                    low_freq_factor=float(fields["low_freq_factor"]),
                    high_freq_factor=float(fields["high_freq_factor"]),
                    original_context=int(fields["original_max_position_embeddings"]),
                )
            case _:
                raise ModelError(f"{source}: rope type {kind!r} is not supported: default, linear and llama3 are")
    except KeyError as error:
        raise ModelError(f"{source}: rope type {kind!r} lacks {error}") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{source}: rope parameters {fields!r}: {error}") from None
    sane = 1 < rope.theta <= 1e12 and 1e-3 <= rope.factor <= 1e6 and 1 <= rope.original_context <= 1 << 30
    if not (sane and 0 < rope.low_freq_factor < rope.high_freq_factor <= 1e6):
        bounds = "theta in (1, 1e12], factor in [1e-3, 1e6], 0 < low < high, a context of 1 or more"
        raise ModelError(f"{source}: rope parameters {fields!r} (theta {theta:g}) are out of range: {bounds}")
    return rope
