"""Adapters out, and merged: what is said, where the model comes from, and what is refused."""

import json
from pathlib import Path

import pytest

from mebp.models.catalogue import load_model
from tests.cli.test_compress import checkpoint
from tests.cli.typed import command, refused


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """An adapter of a tiny checkpoint in `hf`, which it names."""
    import torch  # noqa: PLC0415

    from mebp.export.base import Base  # noqa: PLC0415
    from mebp.export.lora_set import LoraSet  # noqa: PLC0415
    from mebp.export.peft import write_peft  # noqa: PLC0415

    checkpoint(tmp_path / "hf")
    config = load_model(str(tmp_path / "hf"))
    pairs = {name: (torch.ones(2, cols), torch.ones(rows, 2)) for name, (rows, cols) in config.matrices().items() if "." in name}
    base = Base(config=config, name=str(tmp_path / "hf"))
    write_peft(tmp_path / "adapter", LoraSet(config=config, rank=2, alpha=4.0, pairs=pairs), base)
    return tmp_path / "adapter"


@pytest.mark.parametrize("to", ["peft", "gguf", "mlx"])
def test_export_takes_the_model_that_the_adapter_names(
    to: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("export", str(trained), "--to", to, "-o", str(tmp_path / "out")) == 0
    assert "pairs of rank 2" in capsys.readouterr().out
    assert (tmp_path / "out").exists()
    assert "exists already" in refused(capsys, "export", str(trained), "--to", to, "-o", str(tmp_path / "out"))


def test_export_takes_a_store_for_the_model(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("compress", str(tmp_path / "hf"), "-o", str(tmp_path / "store"), "--weights", "int4-g32") == 0
    store = str(tmp_path / "store")
    assert command("export", str(trained), "--to", "gguf", "-o", str(tmp_path / "a.gguf"), "--model", store) == 0
    capsys.readouterr()
    out = str(tmp_path / "b.gguf")
    said = refused(capsys, "export", str(trained), "--to", "gguf", "-o", out, "--model", "smollm2-135m")
    assert "name the model that it was trained on" in said


def test_merge_writes_the_sum(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file  # noqa: PLC0415

    assert command("merge", str(trained), "-o", str(tmp_path / "out")) == 0
    assert "merged in" in capsys.readouterr().out
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "out"))
    name = "model.layers.0.mlp.up_proj.weight"
    assert float((after[name] - before[name] - 4.0).abs().max()) < 1e-5  # alpha / rank x a sum of two ones
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads((tmp_path / "hf" / "config.json").read_text())


def test_what_cannot_be_written_is_one_line(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert "take one of peft, gguf, mlx" in refused(capsys, "export", str(trained), "--to", "onnx", "-o", out)
    assert "no adapter_config.json" in refused(capsys, "export", str(tmp_path / "hf"), "--to", "mlx", "-o", out)
    assert "no model at" in refused(capsys, "merge", str(trained), "-o", out, "--model", str(tmp_path / "none"))
    settings = json.loads((trained / "adapter_config.json").read_text())
    (trained / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "someone/gone"}))
    assert "trained on someone/gone, which is not found here" in refused(capsys, "export", str(trained), "--to", "mlx", "-o", out)
    assert "no model at someone/gone" in refused(capsys, "merge", str(trained), "-o", out)
    (trained / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": ""}))
    assert "the adapter names no model" in refused(capsys, "merge", str(trained), "-o", out)
    assert "the adapter names no model" in refused(capsys, "export", str(trained), "--to", "mlx", "-o", out)
    assert command("compress", str(tmp_path / "hf"), "-o", str(tmp_path / "store"), "--weights", "bf16") == 0
    capsys.readouterr()
    assert "is a store, whose weights are rounded" in refused(
        capsys, "merge", str(trained), "-o", out, "--model", str(tmp_path / "store")
    )
    assert not (tmp_path / "out").exists()
