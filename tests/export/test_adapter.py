"""Adapters in the forms of PEFT, llama.cpp and mlx-lm: what each makes of them is what was trained."""

import json
import os
from pathlib import Path

import gguf
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from mebp.errors import InputError, MebpError
from mebp.export.base import Base
from mebp.export.gguf_adapter import write_gguf
from mebp.export.lora_set import LoraSet
from mebp.export.mlx_adapter import write_mlx
from mebp.export.peft import SETTINGS, WEIGHTS, base_of, read_peft, write_peft
from mebp.models.config import LINEARS, LinearName, ModelConfig
from mebp.models.huggingface import read_model
from mebp.store.gguf_config import PERMUTED
from mebp.task.model import find_model
from tests.executor.families import FUSED, hf_config, reference_weights, tiny_store, tiny_workload
from tests.store.test_gguf_family import ARCHITECTURES

MODULES: dict[str, dict[str, tuple[str, ...]]] = {
    "phi3": {"self_attn.qkv_proj": ("q", "k", "v"), "mlp.down_proj": ("down",)},
    "others": {"self_attn.q_proj": ("q",), "self_attn.k_proj": ("k",), "mlp.down_proj": ("down",)},
}


def based(adapters: LoraSet, **more: str) -> Base:
    """A base of the adapters' own model."""
    return Base(config=adapters.config, name="base", **more)


def random_set(config: ModelConfig, targets: tuple[LinearName, ...] = LINEARS, layers: range | None = None) -> LoraSet:
    """Pairs whose products are not zero."""
    generator, rank = torch.Generator().manual_seed(1), 3
    names = [f"{layer}.{target}" for layer in layers or range(config.num_layers) for target in targets]
    shapes = config.matrices()
    pairs = {
        name: (
            torch.randn(rank, shapes[name][1], generator=generator) * 0.1,
            torch.randn(shapes[name][0], rank, generator=generator) * 0.1,
        )
        for name in names
    }
    return LoraSet(config=config, rank=rank, alpha=5.0, pairs=pairs)


def updated(family: str, adapters: LoraSet, tmp_path: Path) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A tiny transformers model, and the same with alpha / rank B A added to its weights."""
    plain = AutoModelForCausalLM.from_config(hf_config(family), attn_implementation="eager").float()
    store = tiny_store(adapters.config, tiny_workload(fmt="bf16").weights, tmp_path / "store")
    weights = reference_weights(adapters.config, store)
    plain.load_state_dict(weights, strict=False)
    plain.tie_weights()
    other = AutoModelForCausalLM.from_config(hf_config(family), attn_implementation="eager").float()
    other.load_state_dict(plain.state_dict())
    other.tie_weights()
    for name, module in other.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            layer, role = name.split(".")[2], name.rpartition(".")[2]
            parts = [part.removesuffix("_proj") for part in FUSED.get(role, (role,))]
            deltas = [adapters.delta(f"{layer}.{part}", slice(None)) for part in parts]
            rows = [adapters.config.linear_shape(part)[0] for part in parts]  # type: ignore[arg-type]
            whole = [torch.zeros(n, module.in_features) if d is None else d for n, d in zip(rows, deltas, strict=True)]
            module.weight.data += torch.cat(whole)
    return plain, other


def tiny(family: str, folder: Path) -> ModelConfig:
    hf_config(family).save_pretrained(folder)
    return read_model(folder)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "phi3"])
@pytest.mark.parametrize("targets", [LINEARS, ("q", "v")])
def test_peft_makes_the_same_logits_of_the_folder(family: str, targets: tuple[LinearName, ...], tmp_path: Path) -> None:
    adapters = random_set(tiny(family, tmp_path / "hf"), targets)
    plain, expected = updated(family, adapters, tmp_path)
    write_peft(tmp_path / "adapter", adapters, based(adapters))
    loaded = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    ids = torch.randint(1, 300, (2, 11), generator=torch.Generator().manual_seed(3))
    assert torch.allclose(loaded(input_ids=ids).logits, expected(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
    assert base_of(tmp_path / "adapter") == "base"


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_folder_is_read_back_as_it_was_written(family: str, tmp_path: Path) -> None:
    adapters = random_set(tiny(family, tmp_path / "hf"))
    write_peft(tmp_path / "adapter", adapters, based(adapters))
    found = read_peft(tmp_path / "adapter", adapters.config)
    assert found.pairs.keys() == adapters.pairs.keys()
    for name in adapters.pairs:
        delta = adapters.delta(name, slice(None))
        assert delta is not None
        assert torch.allclose(found.delta(name, slice(None)), delta, atol=1e-6)  # type: ignore[arg-type]


def test_peft_adapts_the_last_layers_alone_where_only_those_were_trained(tmp_path: Path) -> None:
    adapters = random_set(tiny("llama", tmp_path / "hf"), ("q", "down"), range(1, 3))
    plain, expected = updated("llama", adapters, tmp_path)
    write_peft(tmp_path / "adapter", adapters, based(adapters))
    loaded = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    ids = torch.arange(1, 9)[None]
    assert torch.allclose(loaded(input_ids=ids).logits, expected(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
    assert sum("lora_A" in name for name, _ in loaded.named_parameters()) == 4


def as_llama_cpp(file: Path) -> tuple[dict[str, Tensor], gguf.GGUFReader]:
    """What llama.cpp adds to each of a model's tensors: alpha / rank B A, the rank that of the tensors it finds."""
    reader = gguf.GGUFReader(file)
    alpha = reader.get_field(gguf.Keys.Adapter.LORA_ALPHA).contents()  # type: ignore[union-attr]
    found = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    names = {name.removesuffix(".lora_a") for name in found if name.endswith(".lora_a")}
    assert found.keys() == {f"{name}.lora_{part}" for name in names for part in "ab"}
    return {
        name: alpha / len(found[f"{name}.lora_a"]) * found[f"{name}.lora_b"] @ found[f"{name}.lora_a"] for name in names
    }, reader


@pytest.mark.parametrize("family", ["llama", "granite", "qwen3", "phi3", "gemma2"])
def test_llama_cpp_adds_the_same_to_its_own_tensors(family: str, tmp_path: Path) -> None:
    adapters = random_set(tiny(family, tmp_path / "hf"))
    config, arch = adapters.config, ARCHITECTURES[family]
    base = based(adapters)
    architecture = base.llama_cpp_architecture
    assert architecture == gguf.MODEL_ARCH_NAMES[arch]
    write_gguf(tmp_path / "a.gguf", adapters, base)
    found, reader = as_llama_cpp(tmp_path / "a.gguf")
    said = {key: reader.get_field(f"{key}").contents() for key in ("general.type", "general.architecture", "adapter.type")}  # type: ignore[union-attr]
    assert said == {"general.type": "adapter", "general.architecture": architecture, "adapter.type": "lora"}
    names = gguf.get_tensor_name_map(arch, config.num_layers)
    deltas = {name: adapters.delta(name, slice(None)) for name in adapters.pairs}
    for layer in range(config.num_layers):
        for module, parts in MODULES["phi3" if family == "phi3" else "others"].items():
            theirs = names.get_name(f"model.layers.{layer}.{module}.weight", try_suffixes=(".weight",))
            assert theirs in found
            expected = torch.cat([deltas[f"{layer}.{part}"] for part in parts])  # type: ignore[misc]
            if architecture in PERMUTED and module != "mlp.down_proj":
                heads = config.num_heads if module.endswith("q_proj") else config.num_kv_heads
                expected = expected.view(heads, 2, -1, expected.shape[1]).transpose(1, 2).reshape(expected.shape)
            assert torch.allclose(found[theirs], expected, atol=1e-6)
    assert len(found) == config.num_layers * (4 if family == "phi3" else 7)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_mlx_adds_the_same(family: str, tmp_path: Path) -> None:
    adapters = random_set(tiny(family, tmp_path / "hf"), LINEARS, range(1, 3))
    write_mlx(tmp_path / "adapter", adapters, based(adapters))
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    tensors, lora = load_file(tmp_path / "adapter" / "adapters.safetensors"), settings["lora_parameters"]
    assert settings["num_layers"] == 2
    for key, parts in MODULES["phi3" if family == "phi3" else "others"].items():
        assert key in lora["keys"]
        a, b = (tensors[f"model.layers.2.{key}.lora_{part}"] for part in "ab")
        assert a.shape[1] == lora["rank"] == b.shape[0]
        expected = torch.cat([adapters.delta(f"2.{part}", slice(None)) for part in parts])  # type: ignore[misc]
        assert torch.allclose(lora["scale"] * (a @ b).T, expected, atol=1e-6)


CHANGES: dict[str, dict[str, object]] = {  # of an adapter's settings
    "dora": {"use_dora": True},
    "type": {"peft_type": "IA3"},
    "alpha": {"lora_alpha": "much"},
    "pattern": {"alpha_pattern": ["q_proj"]},
    "rank": {"r": 6},
    "ranks": {"rank_pattern": [1]},
    "bias": {"bias": "all"},
    "start": {"init_lora_weights": "pissa"},
}


def spoil(folder: Path, how: str) -> None:
    settings, tensors = json.loads((folder / SETTINGS).read_text()), load_file(folder / WEIGHTS)
    first = next(name for name in tensors if "lora_A" in name)
    match how:
        case "vision":
            tensors[first.replace("model.layers", "model.vision_tower.encoder.layers")] = tensors.pop(first)
        case "no rank":
            for name in (first, first.replace("lora_A", "lora_B")):
                tensors[name] = tensors[name][:0] if "lora_A" in name else tensors[name][:, :0].contiguous()
        case "half a pair":
            del tensors[first]
        case "not finite":
            tensors[first][0, 0] = float("inf")
        case "embedding":
            tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.zeros(2, 2)
        case "cut":
            (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9])
            return
        case "no settings":
            (folder / SETTINGS).unlink()
            return
        case "list":
            (folder / SETTINGS).write_text("[]")
            return
    save_file(tensors, folder / WEIGHTS)
    (folder / SETTINGS).write_text(json.dumps(settings | CHANGES.get(how, {})))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("dora", "use_dora is not read"),
        ("type", "type IA3, which is not read"),
        ("alpha", "lora_alpha = 'much'"),
        ("pattern", "alpha_pattern is no object"),
        ("rank", "r = 6, but model.layers.0."),
        ("ranks", "rank_pattern is no object"),
        ("bias", "bias must be none"),
        ("start", "init_lora_weights = 'pissa' changes the base"),
        ("vision", "is no LoRA pair of a decoder's linear"),
        ("no rank", "has no pair of A and B"),
        ("half a pair", "has no pair of A and B"),
        ("not finite", "not finite"),
        ("embedding", "is no LoRA pair of a decoder's linear"),
        ("cut", "copy the adapter again"),
        ("no settings", "no adapter_config.json"),
        ("list", "holds a list, not an object"),
    ],
)
def test_a_damaged_or_other_adapter_is_one_clear_line(how: str, says: str, tmp_path: Path) -> None:
    adapters = random_set(tiny("llama", tmp_path / "hf"))
    write_peft(tmp_path / "adapter", adapters, based(adapters))
    spoil(tmp_path / "adapter", how)
    with pytest.raises(MebpError) as caught:
        read_peft(tmp_path / "adapter", adapters.config)
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    adapters = random_set(tiny("llama", tmp_path / "hf"))
    write_peft(tmp_path / "adapter", adapters, based(adapters))
    with pytest.raises(InputError, match="name the model"):
        read_peft(tmp_path / "adapter", tiny("qwen2", tmp_path / "other"))


def test_nothing_is_overwritten_or_left_half_written(tmp_path: Path) -> None:
    adapters = random_set(tiny("llama", tmp_path / "hf"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    for write in (write_peft, write_mlx, write_gguf):
        for name in ("a", "pipe"):
            with pytest.raises(InputError, match="exists already"):
                write(tmp_path / name, adapters, based(adapters))
    with pytest.raises(InputError, match="'bert' is not known"):
        write_gguf(tmp_path / "b.gguf", adapters, based(adapters, architecture="bert"))
    with pytest.raises(InputError, match="there is no folder"):
        write_gguf(tmp_path / "none" / "b.gguf", adapters, based(adapters))
    (tmp_path / "pipe").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "hf"]


def test_scales_that_differ_between_modules_come_together(tmp_path: Path) -> None:
    """As PEFT has them: expressions of modules, each with an alpha."""
    adapters = random_set(tiny("llama", tmp_path / "hf"), ("q", "v"))
    write_peft(tmp_path / "adapter", adapters, based(adapters))
    settings = json.loads((tmp_path / "adapter" / SETTINGS).read_text())
    (tmp_path / "adapter" / SETTINGS).write_text(
        json.dumps(settings | {"alpha_pattern": {r"layers\.(1|2)\.self_attn\.v_proj": 10.0}})
    )
    found = read_peft(tmp_path / "adapter", adapters.config)
    for name, times in (("1.q", 1.0), ("0.v", 1.0), ("1.v", 2.0)):
        assert torch.allclose(found.delta(name, slice(None)), times * adapters.delta(name, slice(None)), atol=1e-6)  # type: ignore[operator,arg-type]


def test_the_decoder_of_a_vision_model_is_found_where_each_tool_has_it(tmp_path: Path) -> None:
    """PEFT on a Gemma 3 with its vision part, whose linears have the same names."""
    text = hf_config("gemma3")
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    whole = AutoConfig.for_model("gemma3", text_config=text.to_dict(), vision_config=vision, mm_tokens_per_image=4)
    whole.save_pretrained(tmp_path / "hf")
    found = find_model(str(tmp_path / "hf"))
    assert found.wrapper == "gemma3"
    adapters = random_set(found.config)
    base = based(adapters, wrapper=found.wrapper)
    write_peft(tmp_path / "adapter", adapters, base)
    model = AutoModelForImageTextToText.from_config(whole, attn_implementation="eager").float()
    before = model.model.language_model.layers[1].mlp.up_proj.weight.detach().clone()
    merged = PeftModel.from_pretrained(model, str(tmp_path / "adapter")).merge_and_unload()
    delta = merged.model.language_model.layers[1].mlp.up_proj.weight - before
    assert torch.allclose(delta, adapters.delta("1.up", slice(None)), atol=1e-5)  # type: ignore[arg-type]
    assert not any("lora" in name for name, _ in merged.named_modules())
    write_mlx(tmp_path / "mlx", adapters, base)
    assert "language_model.model.layers.0.mlp.up_proj.lora_a" in load_file(tmp_path / "mlx" / "adapters.safetensors")
    again = read_peft(tmp_path / "adapter", found.config)
    assert again.pairs.keys() == adapters.pairs.keys()
