"""Checkpoints to stores: what is warned of, said and refused."""

import json
from pathlib import Path

import pytest

from mebp.models.catalogue import load_model
from tests.cli.typed import TINY, command, refused


def checkpoint(folder: Path, *, prefix: str = "", **tensors: object) -> None:
    """A tiny model with random weights in fp32, some tensors exchanged, every name behind `prefix`."""
    import torch  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    config, draw = load_model(str(folder)), torch.Generator().manual_seed(1)
    names = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj"}
    names |= {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
    found = {
        "model.embed_tokens.weight": torch.randn(config.vocab, config.hidden, generator=draw),
        "model.norm.weight": torch.ones(64),
    }
    for layer in range(config.num_layers):
        for name, shape in config.linear_shapes().items():
            found[f"model.layers.{layer}.{names[name]}.weight"] = torch.randn(shape, generator=draw)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{layer}.{norm}.weight"] = torch.ones(64)
    save_file({f"{prefix}{name}": tensor for name, tensor in (found | tensors).items()}, folder / "model.safetensors")


def test_compress_warns_of_a_format_that_loses_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(tmp_path / "hf")
    assert command("compress", str(tmp_path / "hf"), "-o", str(tmp_path / "store"), "--weights", "ternary") == 0
    assert "warning: ternary loses" in capsys.readouterr().err
    assert command("compress", str(tmp_path / "hf"), "-o", str(tmp_path / "other"), "--weights", "int4-g32") == 0
    assert "warning" not in capsys.readouterr().err


def test_compress_says_what_is_rounded_and_refuses_what_overflows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch  # noqa: PLC0415

    checkpoint(tmp_path / "hf", **{"model.norm.weight": torch.full((64,), 1.001)})
    assert command("compress", str(tmp_path / "hf"), "-o", str(tmp_path / "store"), "--weights", "int8") == 0
    assert "rounded to bf16: 1 tensors, by 0.10% at worst" in capsys.readouterr().err
    checkpoint(tmp_path / "large", **{"model.norm.weight": torch.full((64,), 3.4e38)})
    assert "final_norm are too large for bf16" in refused(capsys, "compress", str(tmp_path / "large"), "-o", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_a_model_that_was_compiled_when_it_was_saved_is_read(tmp_path: Path) -> None:
    checkpoint(tmp_path / "hf", prefix="_orig_mod.")
    assert command("compress", str(tmp_path / "hf"), "-o", str(tmp_path / "store"), "--weights", "bf16") == 0
