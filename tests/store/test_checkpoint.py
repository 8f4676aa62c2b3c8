"""Checkpoints that transformers wrote: compressed as the definition says, run end to end, and refused in one line when damaged."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mebp.errors import ModelError, StoreError
from mebp.executor.adapter import new_adapters
from mebp.executor.executor import Executor
from mebp.models.build import build_graph
from mebp.models.format import WEIGHTS_FILE, weight_formats
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.sim.profile import load_device
from mebp.store.codec import quantise, unpack_whole
from mebp.store.compress import compress
from mebp.store.reader import checksum, open_store
from mebp.store.tensor_folder import INDEX_FILE, SINGLE_FILE
from tests.executor.families import FAMILIES, hf_config, reference_weights, tiny_workload


def checkpoint(family: str, folder: Path, *, shard: str = "10GB") -> torch.nn.Module:
    """A tiny model of `family` with random weights, saved in `folder`."""
    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_config(hf_config(family), attn_implementation="eager").float()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:  # ones and zeros would not tell one from another
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
        parameter.data.copy_(parameter.data.bfloat16())
    model.save_pretrained(folder, max_shard_size=shard)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_an_uncompressed_store_holds_every_tensor_and_has_the_models_loss(family: str, tmp_path: Path) -> None:
    model = checkpoint(family, tmp_path / "hf", shard="100KB")
    assert (tmp_path / "hf" / INDEX_FILE).is_file()
    found = compress(tmp_path / "hf", tmp_path / "store", weight_formats("bf16"))
    store = open_store(tmp_path / "store")
    state = model.state_dict()
    for name, tensor in reference_weights(found.config, store).items():
        assert torch.equal(tensor, state[name]), name
    workload = tiny_workload(fmt="bf16")
    graph = build_graph(found.config, workload)
    plan = STRATEGIES["checkpoint-1"].plan(graph, load_device("iphone15promax"), 10**9)
    ids = torch.randint(1, found.config.vocab, (workload.batch_size, workload.seq_len), generator=torch.Generator().manual_seed(3))
    result = Executor(plan, graph, store, new_adapters(graph)).step(ids)
    assert result.loss == pytest.approx(float(model(input_ids=ids, labels=ids).loss.detach()), rel=1e-5)


@pytest.mark.parametrize("fmt", ["int4-g32", "int4-g64", "int8", "ternary"])
def test_codes_are_those_of_whole_weights_and_errors_are_recorded(
    fmt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mebp.store.checkpoint.PIECE_WEIGHTS", 64 * 7)  # pieces that do not divide the rows
    model = checkpoint("llama", tmp_path / "hf")
    found = compress(tmp_path / "hf", tmp_path / "store", weight_formats(fmt))
    store = open_store(tmp_path / "store")
    weight = model.state_dict()["model.layers.1.mlp.up_proj.weight"]
    expected, frozen = quantise(weight, store.formats.of("1.up")), store.matrix("1.up")
    assert all(torch.equal(frozen.parts[name], part) for name, part in expected.parts.items())
    error = float((unpack_whole(frozen, torch.float32) - weight).norm() / weight.norm())
    assert found.errors["1.up"] == pytest.approx(error, rel=1e-4)
    assert float(store.facts["error 1.up"]) == pytest.approx(error, rel=1e-2)
    assert found.worst[1] == max(found.errors.values())
    assert len(store.facts["source_sha256"]) == 64


def test_a_decoder_within_a_larger_model_is_found(tmp_path: Path) -> None:
    checkpoint("gemma3", tmp_path / "hf")
    tensors = {f"language_model.{name}": tensor for name, tensor in load_file(tmp_path / "hf" / SINGLE_FILE).items()}
    save_file(tensors | {"vision_tower.x": torch.zeros(3)}, tmp_path / "hf" / SINGLE_FILE)
    assert compress(tmp_path / "hf", tmp_path / "store", weight_formats("int8")).errors


def damaged(folder: Path, how: str) -> None:
    """Damage a saved checkpoint in one way."""
    file, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if index.is_file():
        content = json.loads(index.read_text())
        first = sorted(set(content["weight_map"].values()))[0]
        if how == "missing shard":
            (folder / first).unlink()
        elif how == "outside":
            content["weight_map"] = {name: f"../{shard}" for name, shard in content["weight_map"].items()}
            index.write_text(json.dumps(content))
        else:
            index.write_text(how)
        return
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    match how:
        case "missing tensor":
            del tensors[name]
        case "extra tensor":
            tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2)
        case "shape":
            tensors[name] = tensors[name][:-1].contiguous()
        case "dtype":
            tensors[name] = tensors[name].to(torch.int32)
        case "not finite":
            tensors[name][3, 5] = float("nan")
        case "cut":
            file.write_bytes(file.read_bytes()[:-1000])
            return
        case "pickle":
            file.unlink()
            (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
            return
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing tensor", "up_proj.weight is missing"),
        ("extra tensor", "layers.9.mlp.up_proj.weight does not belong"),
        ("shape", "has shape"),
        ("dtype", "torch.int32"),
        ("not finite", "not finite"),
        ("cut", "cannot read"),
        ("pickle", "expected safetensors"),
        ("missing shard", "no model-0"),
        ("outside", "points to '../"),
        ("[1]", "not a checkpoint's index"),
    ],
)
def test_a_damaged_checkpoint_is_one_line_and_leaves_nothing(how: str, words: str, tmp_path: Path) -> None:
    sharded = how in ("missing shard", "outside", "[1]")
    checkpoint("llama", tmp_path / "hf", shard="100KB" if sharded else "10GB")
    damaged(tmp_path / "hf", how)
    with pytest.raises(ModelError, match=words) as raised:
        compress(tmp_path / "hf", tmp_path / "store", weight_formats("int8"))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "store").exists()


def test_a_flipped_byte_is_refused_by_name_of_tensor(tmp_path: Path) -> None:
    checkpoint("llama", tmp_path / "hf")
    compress(tmp_path / "hf", tmp_path / "store", weight_formats("int4-g64"))
    before = checksum(open_store(tmp_path / "store").matrix("2.down").codes)
    file = tmp_path / "store" / WEIGHTS_FILE
    content = bytearray(file.read_bytes())
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    begin = header["2.down.codes"]["data_offsets"][0] + 8 + int.from_bytes(content[:8], "little")
    content[begin + 5] ^= 16
    file.write_bytes(content)
    store = open_store(tmp_path / "store")
    assert store.matrix("1.down").codes.numel()
    with pytest.raises(StoreError, match=r"2\.down\.codes is damaged"):
        store.matrix("2.down")
    assert before


def test_an_existing_store_is_not_overwritten(tmp_path: Path) -> None:
    checkpoint("llama", tmp_path / "hf")
    compress(tmp_path / "hf", tmp_path / "store", weight_formats("int8"))
    content = (tmp_path / "store" / WEIGHTS_FILE).read_bytes()
    with pytest.raises(StoreError, match="already"):
        compress(tmp_path / "hf", tmp_path / "store", weight_formats("int4-g64"))
    assert (tmp_path / "store" / WEIGHTS_FILE).read_bytes() == content
