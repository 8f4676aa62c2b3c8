"""Every architecture's GGUF file, written as llama.cpp's converter writes one, is read as the checkpoint that it was made of."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH, GGUFWriter
from torch import Tensor

from mebp.errors import ModelError
from mebp.models.config import ModelConfig, Rope
from mebp.store.checkpoint import Checkpoint
from mebp.store.gguf_file import GgufFile
from tests.executor.families import FAMILIES, VARIANTS, hf_config, tiny_config
from tests.store.test_checkpoint import checkpoint

FOUR_LAYERS = {"num_hidden_layers": 4, "no_rope_layer_interval": 4, "head_dim": None}
ARCHITECTURES: dict[str, MODEL_ARCH] = {
    "llama": MODEL_ARCH.LLAMA,
    "llama-biased": MODEL_ARCH.LLAMA,
    "llama-yarn": MODEL_ARCH.LLAMA,
    "smollm2": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen2-untied": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
    "ministral3": MODEL_ARCH.MISTRAL3,
    "gemma": MODEL_ARCH.GEMMA,
    "gemma2": MODEL_ARCH.GEMMA2,
    "gemma3": MODEL_ARCH.GEMMA3,
    "phi3": MODEL_ARCH.PHI3,
    "phi3-short": MODEL_ARCH.PHI3,
    "smollm3": MODEL_ARCH.SMOLLM3,
    "granite": MODEL_ARCH.GRANITE,
    "minicpm": MODEL_ARCH.MINICPM,
    "olmo2": MODEL_ARCH.OLMO2,
    "olmo3": MODEL_ARCH.OLMO2,
    "exaone4": MODEL_ARCH.EXAONE4,
    "exaone4-global": MODEL_ARCH.EXAONE4,
}
CHANGED = {  # what a file cannot say is what these models always have
    "smollm3": FOUR_LAYERS,
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3": {"query_pre_attn_scalar": 32, "layer_types": ["sliding_attention"] * 3},
    "ministral3": {"max_position_embeddings": 128},
}
NORM_MODE = ("llama", "mistral3", "smollm3", "granite", "minicpm")  # rotates neighbours, where transformers rotates halves


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head's two halves, one of each in turn."""
    return weight.view(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def convert(family: str, folder: Path, path: Path) -> None:
    """The checkpoint in `folder` as a GGUF file in single precision."""
    hf, source, arch = hf_config(family), Checkpoint(folder), ARCHITECTURES[family]
    config, name = source.config, gguf.MODEL_ARCH_NAMES[arch]
    writer = GGUFWriter(str(path), name)
    describe(writer, hf, config, name)
    names = gguf.get_tensor_name_map(arch, config.num_layers)
    for theirs, tensor in source_tensors(source).items():
        called = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        assert called is not None, theirs
        values = tensor.float()
        if name in NORM_MODE and ("q_proj" in theirs or "k_proj" in theirs):
            values = interleaved(values, config.num_heads if "q_proj" in theirs else config.num_kv_heads)
        if name.startswith("gemma") and "norm" in theirs:
            values = values + 1
        writer.add_tensor(called, values.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def source_tensors(source: Checkpoint) -> dict[str, Tensor]:
    """All tensors of a checkpoint under its own names."""
    tensors = source._tensors
    return {name: tensors.read(name) for name in tensors.names}


def describe(writer: GGUFWriter, hf: Any, config: ModelConfig, name: str) -> None:
    """The metadata that converters write."""
    writer.add_context_length(hf.max_position_embeddings)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.ffn)
    writer.add_block_count(config.num_layers)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_rope_dimension_count(config.rope.width(config.head_dim))
    if name not in ("phi3", "granite"):
        writer.add_key_length(config.head_dim)
    if any(config.windows) and name in ("gemma2", "gemma3", "phi3", "olmo2", "exaone4"):
        writer.add_sliding_window(max(config.windows))
    if any(config.windows) and name in ("olmo2", "exaone4"):
        writer.add_sliding_window_pattern([window > 0 for window in config.windows])
    rope(writer, config.rope, config.head_dim)
    special: dict[str, Callable[[], None]] = {
        "gemma2": lambda: caps(writer, config),
        "granite": lambda: scales(writer, config, with_attention=True),
        "minicpm": lambda: scales(writer, config, with_attention=False),
        "mistral3": lambda: writer.add_float32("mistral3.attention.temperature_scale", config.rope.query_growth),
    }
    special.get(name, lambda: None)()


def caps(writer: GGUFWriter, config: ModelConfig) -> None:
    writer.add_attn_logit_softcapping(config.attention_cap)
    writer.add_final_logit_softcapping(config.logit_cap)


def scales(writer: GGUFWriter, config: ModelConfig, *, with_attention: bool) -> None:
    writer.add_embedding_scale(config.embedding_scale)
    writer.add_residual_scale(config.residual_scale)
    writer.add_logit_scale(1 / config.logit_scale)
    if with_attention:
        writer.add_attention_scale(config.attention_scale)


def rope(writer: GGUFWriter, found: Rope, head_dim: int) -> None:
    match found.scaling:
        case "yarn":
            writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(found.factor)
            writer.add_rope_scaling_orig_ctx_len(found.original_context)
            if found.query_growth:
                writer.add_rope_scaling_yarn_log_mul(1.0)
        case "longrope":
            writer.add_rope_scaling_orig_ctx_len(found.original_context)
            writer.add_rope_scaling_attn_factors(found.magnitude)
            for name, factors in (("long", found.long), ("short", found.short)):
                writer.add_tensor(f"rope_factors_{name}.weight", np.array(factors, dtype=np.float32))
        case "llama3":
            factors = 1 / (llama3(found, head_dim) / found.theta ** -(torch.arange(0, head_dim, 2) / head_dim))
            writer.add_tensor("rope_freqs.weight", factors.float().round(decimals=4).numpy())


def llama3(found: Rope, head_dim: int) -> Tensor:
    from mebp.executor.rotary import inverse_frequencies  # noqa: PLC0415

    return inverse_frequencies(found, head_dim, 16)


@pytest.fixture
def changed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The family's name, its tiny config as a file of it can say."""
    family = str(request.param)
    table = FAMILIES if family in FAMILIES else VARIANTS
    fields = table[family] | CHANGED.get(family, {})
    if "rope_parameters" in fields and "rope_type" in fields["rope_parameters"]:  # type: ignore[operator]
        fields["rope_parameters"] = {**fields["rope_parameters"]}  # type: ignore[dict-item]
        if fields["rope_parameters"]["rope_type"] == "llama3":
            fields["rope_parameters"]["original_max_position_embeddings"] = 8192
    monkeypatch.setitem(table, family, fields)
    return family


@pytest.mark.parametrize("changed", ARCHITECTURES, indirect=True)
def test_a_file_is_read_as_the_checkpoint_that_it_was_made_of(changed: str, tmp_path: Path) -> None:
    checkpoint(changed, tmp_path / "hf")
    tiny_config(changed, tmp_path / "hf")  # writes what transformers cannot
    convert(changed, tmp_path / "hf", tmp_path / "m.gguf")
    found, expected = GgufFile(tmp_path / "m.gguf"), Checkpoint(tmp_path / "hf")
    assert in_single(asdict(found.config)) == in_single(asdict(expected.config))
    for name in (*expected.config.matrices(), *expected.config.vectors()):
        ours, theirs = (torch.cat([rows.float() for rows in source.rows(name)]) for source in (found, expected))
        assert torch.allclose(ours, theirs, atol=1e-7), name


def in_single(value: object) -> object:
    """Numbers in single precision, as a file keeps them, of a config without its name."""
    if isinstance(value, dict):
        return {key: in_single(part) for key, part in value.items() if key != "name"}
    if isinstance(value, tuple):
        return tuple(in_single(part) for part in value)
    return float(np.float32(value)) if isinstance(value, float) else value


def test_factors_of_another_scaling_than_llamas_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = FAMILIES["llama"] | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    monkeypatch.setitem(FAMILIES, "llama", fields)
    checkpoint("llama", tmp_path / "hf")
    other = np.full(16, 8.0, np.float32)
    monkeypatch.setattr("tests.store.test_gguf_family.rope", lambda writer, *_: writer.add_tensor("rope_freqs.weight", other))
    convert("llama", tmp_path / "hf", tmp_path / "m.gguf")
    with pytest.raises(ModelError, match="scaling that is not known here"):
        GgufFile(tmp_path / "m.gguf")
