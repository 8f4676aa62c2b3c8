"""Reading config.json: what is refused, in one line that names field, value and bound."""

import json
from pathlib import Path
from typing import Any

import pytest

from mebp.errors import ModelError
from mebp.models.catalogue import CATALOGUE, load_model
from mebp.models.huggingface import config_from_dict, read_model

QWEN = CATALOGUE["qwen2.5-0.5b"]


def refusal(**changes: Any) -> str:
    """The one line that refuses a Qwen config with `changes` (None removes a field)."""
    raw = {key: value for key, value in (QWEN | changes).items() if value is not None}
    with pytest.raises(ModelError) as caught:
        config_from_dict(raw, name="x", source="config.json")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not a family"),
        ({"model_type": None}, "model_type None"),
        ({"model_type": ["llama"]}, "model_type ['llama'] is not a family"),
        ({"rope_scaling": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is not supported"),
        ({"model_type": "gemma2", "sliding_window_pattern": 0}, "sliding_window_pattern"),
        ({"model_type": "exaone4", "sliding_window": 9, "sliding_window_pattern": "LGX"}, "sliding_window_pattern"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, "no_rope_layers has 2 entries for 24 layers"),
        ({"hidden_size": None}, "hidden_size: field required"),
        ({"hidden_size": -5}, "hidden_size = -5"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000"),
        ({"vocab_size": "many"}, "vocab_size = 'many'"),
        ({"num_key_value_heads": 5}, "num_attention_heads = 14 is not a multiple of num_key_value_heads = 5"),
        ({"head_dim": 63}, "head_dim = 63"),
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"model_type": "granite", "use_sliding_window": True}, "use_sliding_window"),
        ({"use_sliding_window": True, "sliding_window": 16, "layer_types": ["full_attention"]}, "layer_types has 1 entries"),
        ({"attn_logit_softcapping": 30.0}, "attn_logit_softcapping is not supported for qwen2"),
        ({"model_type": "gemma2", "hidden_act": "silu"}, "activation 'silu'"),
        ({"model_type": "qwen3_moe"}, "needs a mixture of experts"),
        ({"model_type": "falcon_mamba"}, "needs state-space layers"),
        ({"model_type": "lfm2"}, "needs short convolutions"),
        ({"model_type": "qwen3_next"}, "needs delta-net layers"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_experts": 8}, "num_experts"),
        ({"rope_scaling": {"rope_type": "linear", "factor": float("inf")}}, "out of range"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope type 'yarn' lacks 'max_position_embeddings'"),
        ({"rope_scaling": {"rope_type": "ntk", "factor": 4}}, "rope type 'ntk' is not supported"),
        ({"model_type": "phi3", "partial_rotary_factor": 0.01}, "rotates 0 of 64 columns"),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1], "long_factor": [1]}, "max_position_embeddings": 9},
            "short_factor has 1 entries: expected 32",
        ),
        ({"rope_scaling": {"rope_type": "llama3"}}, "lacks 'factor'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "x"}}, "rope parameters"),
    ],
)
def test_absurd_or_unsupported_fields_are_refused(changes: dict[str, Any], says: str) -> None:
    assert says in refusal(**changes)


def test_gemma_vision_config_is_read_for_its_text_part() -> None:
    text = {k: v for k, v in CATALOGUE["gemma-3-4b"].items() if k not in ("vocab_size", "head_dim", "num_attention_heads")}
    config = config_from_dict({"model_type": "gemma3", "text_config": text}, name="4b", source="x")
    assert config.num_parameters == load_model("4b").num_parameters


@pytest.mark.parametrize(
    ("wrapper", "text", "same"),
    [("qwen2_5_vl", "qwen2_5_vl_text", "qwen2"), ("qwen3_vl", "qwen3_vl_text", "qwen3"), ("mistral3", "ministral3", "ministral3")],
)
def test_the_decoder_in_a_vision_model_is_the_plain_one(wrapper: str, text: str, same: str) -> None:
    """Text has one position for each of mrope's three."""
    fields = QWEN | {"head_dim": 64, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6}
    inner = fields | {"model_type": text, "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]}}
    inner |= {"rope_scaling": None} if text == same else {}
    found = config_from_dict({"model_type": wrapper, "tie_word_embeddings": True, "text_config": inner}, name="a", source="x")
    assert found == config_from_dict(fields | {"model_type": same}, name="a", source="x")


def test_both_spellings_of_rope_mean_the_same() -> None:
    old = config_from_dict(CATALOGUE["gemma-3-4b"], name="a", source="x")
    raw = {k: v for k, v in CATALOGUE["gemma-3-4b"].items() if not k.startswith("rope")}
    raw["rope_parameters"] = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert config_from_dict(raw, name="a", source="x") == old


@pytest.mark.parametrize("content", ["", "[1, 2]", "{", "\xff"])
def test_files_that_are_no_config_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ModelError, match=r"config\.json"):
        read_model(tmp_path)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model at"):
        load_model(str(tmp_path))


def test_a_folder_names_its_model(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN))
    assert load_model(str(folder)).name == "my-model"
