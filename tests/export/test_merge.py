"""Adapters merged into checkpoints, GGUF files and MLX checkpoints: transformers reads what comes out, with the same logits."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from mebp.errors import MebpError
from mebp.export import merge as merging
from mebp.export.merge import merge
from mebp.models.huggingface import CONFIG
from mebp.store.compress import open_source
from mebp.store.tensor_folder import INDEX_FILE, SINGLE_FILE
from tests.executor.families import FUSED
from tests.export.test_adapter import random_set
from tests.store.test_checkpoint import checkpoint
from tests.store.test_gguf_family import convert
from tests.store.test_packing import quantised

IDS = torch.randint(1, 300, (2, 11), generator=torch.Generator().manual_seed(3))


def merged_by_hand(model: torch.nn.Module, adapters: merging.LoraSet, dtype: torch.dtype) -> torch.nn.Module:
    """The model with every linear's sum in single precision, rounded once."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            layer, role = name.split(".")[2], name.rpartition(".")[2]
            parts = [part.removesuffix("_proj") for part in FUSED.get(role, (role,))]
            deltas = [adapters.delta(f"{layer}.{part}", slice(None)) for part in parts]
            module.weight.data = (module.weight.data.float() + torch.cat(deltas)).to(dtype).float()  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize("family", ["llama", "qwen2-untied", "gemma3", "phi3"])
def test_a_checkpoint_merged_is_what_transformers_would_have_of_it(family: str, tmp_path: Path) -> None:
    checkpoint(family, tmp_path / "hf").bfloat16().save_pretrained(tmp_path / "hf")
    source = open_source(tmp_path / "hf")
    adapters = random_set(source.config)
    merge(source, adapters, tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, attn_implementation="eager")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32, attn_implementation="eager")
    expected = merged_by_hand(plain, adapters, torch.bfloat16)
    assert torch.equal(found(input_ids=IDS).logits, expected(input_ids=IDS).logits)


def test_a_gguf_file_and_a_quantised_checkpoint_come_out_in_bf16(tmp_path: Path) -> None:
    model = checkpoint("smollm2", tmp_path / "hf")
    convert("smollm2", tmp_path / "hf", tmp_path / "m.gguf")
    source = open_source(tmp_path / "m.gguf")
    adapters = random_set(source.config)
    merge(source, adapters, tmp_path / "of-gguf")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "of-gguf", dtype=torch.float32, attn_implementation="eager")
    expected = merged_by_hand(model, adapters, torch.float32)(input_ids=IDS).logits
    assert torch.allclose(found(input_ids=IDS).logits, expected, atol=1e-4)
    packed, _ = quantised("mlx-4", tmp_path / "mlx", "smollm2")
    merge(open_source(tmp_path / "mlx"), adapters, tmp_path / "of-mlx")
    assert "quantization" not in json.loads((tmp_path / "of-mlx" / CONFIG).read_text())
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "of-mlx", dtype=torch.float32, attn_implementation="eager")
    expected = merged_by_hand(packed, adapters, torch.bfloat16)(input_ids=IDS).logits
    assert torch.allclose(found(input_ids=IDS).logits, expected, atol=0.02)


def test_large_models_come_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint("llama", tmp_path / "hf")
    monkeypatch.setattr(merging, "SHARD_BYTES", 100_000)
    source = open_source(tmp_path / "hf")
    seen: list[int] = []
    merge(source, random_set(source.config), tmp_path / "out", lambda done, total: seen.append(done * 100 // total))
    assert not (tmp_path / "out" / SINGLE_FILE).exists()
    assert (tmp_path / "out" / INDEX_FILE).is_file()
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert seen == sorted(seen)
    assert seen[-1] == 100


def test_a_source_that_is_damaged_leaves_nothing(tmp_path: Path) -> None:
    checkpoint("llama", tmp_path / "hf")
    source = open_source(tmp_path / "hf")
    (tmp_path / "hf" / SINGLE_FILE).write_bytes(b"")
    with pytest.raises(MebpError):
        merge(source, random_set(source.config), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
