"""Read a Hugging Face config.json into a ModelConfig, refusing what would change the mathematics unseen. Weights are not read."""

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mebp.errors import ModelError
from mebp.models.config import LinearName, ModelConfig
from mebp.models.family import KNOWN, TRAITS, WRAPPERS, Traits, missing_for
from mebp.models.hf_config import HFConfig
from mebp.models.rope import ropes
from mebp.text import read_text, resolved, shortened

CONFIG, ADAPTER_CONFIG, GGUF = "config.json", "adapter_config.json", b"GGUF"
OWN = {"family", "windows", "local_rope"}  # fields of a store's config.json
LANGUAGE_MODELS = ("ForCausalLM", "ForConditionalGeneration")  # ends of the names of what has a head over the vocabulary


def read_model(path: Path) -> ModelConfig:
    """Read `path`, a config.json or a folder with one, which may be a store; the model is named after the folder or file.

    Raises ModelError in one line for a folder without config, a family that is not known, a missing or absurd field.
    """
    file = path / CONFIG if path.is_dir() else path
    if path.is_dir() and not file.is_file() and (path / ADAPTER_CONFIG).is_file():
        raise ModelError(f"{path} holds a PEFT adapter, not a model: name the folder of the model that it was trained on")
    if not file.is_file():
        raise ModelError(f"no model at {path}: expected a {CONFIG}, or a folder that holds one")
    raw = read_config(file)
    if raw.keys() >= OWN:
        return _own(raw, file)
    name = resolved(file.parent).name if file.name == CONFIG else file.stem
    return config_from_dict(raw, name=shortened(name), source=str(file))


def _own(raw: dict[str, Any], file: Path) -> ModelConfig:
    """The config that a store has of its model."""
    try:
        return TypeAdapter(ModelConfig).validate_python(raw)
    except ValidationError:
        raise ModelError(f"{file} is of a store that another version of mebp-plan wrote: write the store again") from None


def is_gguf(file: Path) -> bool:
    """Whether there is a GGUF file, by its first bytes."""
    try:
        with file.open("rb") as opened:
            return opened.read(len(GGUF)) == GGUF
    except (OSError, ValueError):  # no file, or what no path can be
        return False


def wrapper_of(path: Path) -> str | None:
    """The type of the vision model that a config.json, or a folder with one, is of; None where it is a decoder by itself."""
    file = path / CONFIG if path.is_dir() else path
    kind = read_config(file).get("model_type") if file.is_file() else None
    return kind if isinstance(kind, str) and kind in WRAPPERS else None


def read_config(file: Path) -> dict[str, Any]:
    """The fields of a config.json; ModelError in one line for a file that is none."""
    try:
        if is_gguf(file):
            raise ModelError(f"{file} is a GGUF file: compress it into a store, or take the model's {CONFIG}, or its folder")
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


def config_from_dict(raw: dict[str, Any], *, name: str, source: str) -> ModelConfig:
    """Turn the fields of a config.json into a ModelConfig; `source` names it in errors."""
    raw = _decoder_fields(raw)
    traits = _traits(raw, source)
    try:
        hf = HFConfig.model_validate({**traits.defaults, **raw}, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        given = "" if first["type"] == "missing" else f" = {shortened(repr(first['input']))}"
        raise ModelError(f"{source}: {field}{given}: {first['msg'].lower()}") from None
    if hf.sliding_window_pattern == 0 and hf.sliding_window is not None:
        raise ModelError(f"{source}: sliding_window_pattern = 0: must be 1 or more, or sliding_window null")
    if hf.no_rope_layers is not None and len(hf.no_rope_layers) < hf.num_hidden_layers:
        raise ModelError(f"{source}: no_rope_layers has {len(hf.no_rope_layers)} entries for {hf.num_hidden_layers} layers")
    _refuse_unsupported(hf, traits, source)
    return _build(hf, traits, name, source)


def plain_config(raw: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """The config.json of a decoder by itself, not quantised, that transformers builds `config` from; `raw` may be that of a larger
    model.
    """
    fields = _decoder_fields(raw)
    kept = {name: value for name, value in fields.items() if name not in ("quantization", "quantization_config")}
    if fields["model_type"] != config.family:  # the text part of a vision model, whose mrope is a plain one for text
        kept = {name: value for name, value in kept.items() if name != "architectures"} | {"model_type": str(config.family)}
        for name in ("rope_scaling", "rope_parameters"):
            found = kept.get(name)
            if isinstance(found, dict):
                kept[name] = {key: value for key, value in found.items() if "mrope" not in (key, value) and key != "mrope_section"}
    return kept


def _decoder_fields(raw: dict[str, Any]) -> dict[str, Any]:
    """The fields of the decoder in a larger model's config; empty ones left out, for which defaults stand."""
    kind = str(raw.get("model_type"))
    if kind in WRAPPERS:
        text = raw.get("text_config")
        tied = {"tie_word_embeddings": raw["tie_word_embeddings"]} if isinstance(raw.get("tie_word_embeddings"), bool) else {}
        own = text if isinstance(text, dict) else raw
        inner = str(own.get("model_type"))
        raw = own | tied | {"model_type": inner if inner in TRAITS else WRAPPERS[kind]}
    kept = ("sliding_window",)  # says that there is none, where it is null
    return {name: value for name, value in raw.items() if value is not None or name in kept}


def _traits(raw: dict[str, Any], source: str) -> Traits:
    kind = str(raw.get("model_type"))
    if kind not in TRAITS:
        needed = missing_for(kind)
        said = f", and needs {needed}, which is not supported" if needed else ""
        shown = shortened(repr(raw.get("model_type")))
        raise ModelError(f"{source}: model_type {shown} is not a family known here{said}: {KNOWN}")
    return TRAITS[kind]


def _refuse_unsupported(hf: HFConfig, traits: Traits, source: str) -> None:
    act = hf.hidden_activation or hf.hidden_act
    given = (hf.rope_parameters or {}, hf.rope_scaling or {}, {"partial_rotary_factor": hf.partial_rotary_factor})
    partial = next((fields["partial_rotary_factor"] for fields in given if fields.get("partial_rotary_factor")), None)
    caps = {name: getattr(hf, name) is not None for name in ("attn_logit_softcapping", "final_logit_softcapping")}
    refusals = {
        f"activation {act!r} (expected {traits.activations[0]})": act is not None and act not in traits.activations,
        "use_sliding_window": bool(hf.use_sliding_window) and not traits.reads_windows,
        **{name: given and not traits.caps for name, given in caps.items()},
        "use_bidirectional_attention": bool(hf.use_bidirectional_attention),
        "is_causal = false (attention in both directions)": hf.is_causal is False,
        "partial_rotary_factor": partial not in (None, 1.0) and not traits.partial_rotary,
        "num_experts (a mixture of experts)": bool(hf.num_experts or hf.num_local_experts),
    }
    architecture = next(iter(hf.architectures or ()), None)
    if architecture is not None and not architecture.endswith(LANGUAGE_MODELS):
        raise ModelError(
            f"{source}: architectures = {shortened(architecture)} is no causal language model: take a checkpoint of one"
        )
    for what, refused in refusals.items():
        if refused:
            raise ModelError(f"{source}: {what} is not supported for {traits.family}: its gradients would not be exact")


def _build(hf: HFConfig, traits: Traits, name: str, source: str) -> ModelConfig:
    num_kv_heads = hf.num_key_value_heads or hf.num_attention_heads
    if hf.num_attention_heads % num_kv_heads:
        raise ModelError(
            f"{source}: num_attention_heads = {hf.num_attention_heads} is not a multiple of num_key_value_heads = {num_kv_heads}"
        )
    head_dim = hf.head_dim or hf.hidden_size // hf.num_attention_heads
    if head_dim < 2 or head_dim % 2:
        raise ModelError(f"{source}: head_dim = {head_dim} (from hidden_size / num_attention_heads) must be even")
    rope, local_rope = ropes(hf, traits, source)
    scales = traits.scales(hf)
    return ModelConfig(
        name=name,
        family=traits.family,
        hidden=hf.hidden_size,
        ffn=hf.intermediate_size,
        num_heads=hf.num_attention_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab=hf.vocab_size,
        windows=_windows(hf, traits, source),
        rope=rope,
        local_rope=local_rope,
        unrotated=traits.unrotated(hf),
        norms=traits.norms,
        norm_eps=hf.rms_norm_eps,
        norm_offset=traits.norm_offset,
        qk_norm=traits.qk_norm,
        biases=_biases(hf, traits),
        activation="silu" if "silu" in traits.activations else "gelu_tanh",
        embedding_scale=scales.embedding,
        residual_scale=scales.residual,
        attention_scale=head_dim**-0.5 if scales.attention is None else scales.attention,
        attention_cap=hf.attn_logit_softcapping or 0.0,
        logit_scale=scales.logit,
        logit_cap=hf.final_logit_softcapping or 0.0,
        tied=hf.tie_word_embeddings,
    )


def _biases(hf: HFConfig, traits: Traits) -> tuple[LinearName, ...]:
    attention: tuple[LinearName, ...] = ("q", "k", "v", "o") if hf.attention_bias else traits.biases
    return (*attention, "gate", "up", "down") if hf.mlp_bias else attention


def _windows(hf: HFConfig, traits: Traits, source: str) -> tuple[int, ...]:
    local = traits.windows(hf)
    if len(local) != hf.num_hidden_layers:
        raise ModelError(f"{source}: layer_types has {len(local)} entries for num_hidden_layers = {hf.num_hidden_layers}")
    if any(local) and hf.sliding_window is None:
        raise ModelError(f"{source}: sliding_window is missing, and layer_types has sliding_attention")
    return tuple((hf.sliding_window or 0) if windowed else 0 for windowed in local)
