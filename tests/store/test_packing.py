"""Checkpoints that MLX, GPTQ and AWQ have quantised: what each tool's own formula says, bit for bit; or refused in a line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mebp.errors import ModelError
from mebp.executor.adapter import new_adapters
from mebp.executor.executor import Executor
from mebp.models.build import build_graph
from mebp.models.huggingface import CONFIG
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.sim.profile import load_device
from mebp.store.codec import unpack_whole
from mebp.store.compress import compress
from mebp.store.reader import open_store
from mebp.store.tensor_folder import SINGLE_FILE
from tests.executor.families import hf_config, tiny_workload
from tests.store.test_checkpoint import checkpoint

Tensors = dict[str, Tensor]
GENERATOR = torch.Generator().manual_seed(9)
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # of a word's nibbles, from the low one up, as AutoAWQ's gemm kernels have them


def drawn(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=GENERATOR, dtype=torch.int64)


def scales(dtype: torch.dtype, *shape: int) -> Tensor:
    return (torch.rand(shape, generator=GENERATOR) * 0.01 + 0.002).to(dtype)


def words(codes: Tensor, bits: int) -> Tensor:
    """Codes along the last axis joined in 32-bit words, the first in the lowest bits."""
    count = 32 // bits
    shifted = codes.view(*codes.shape[:-1], -1, count) << (bits * torch.arange(count))
    return shifted.sum(dim=-1).to(torch.uint32)


def mlx(bits: int, group: int, dtype: torch.dtype) -> Callable[[int, int], tuple[Tensors, Tensor]]:
    def make(rows: int, cols: int) -> tuple[Tensors, Tensor]:
        codes, scale = drawn(2**bits, rows, cols), scales(dtype, rows, cols // group)
        bias = (-scale.float() * 2 ** (bits - 1) * 0.9).to(dtype)
        wide = [t.float().repeat_interleave(group, dim=1) for t in (scale, bias)]
        return {"weight": words(codes, bits), "scales": scale, "biases": bias}, codes.float() * wide[0] + wide[1]

    return make


def gptq(group: int, *, symmetric: bool, first: int = 1) -> Callable[[int, int], tuple[Tensors, Tensor]]:
    def make(rows: int, cols: int) -> tuple[Tensors, Tensor]:
        codes, scale = drawn(16, cols, rows), scales(torch.float16, cols // group, rows)
        zeros = torch.full((cols // group, rows), 8) if symmetric else drawn(15, cols // group, rows) + 1
        index = torch.arange(cols, dtype=torch.int32) // group
        weight = (codes - zeros[index]).float() * scale[index].float()
        parts = {
            "qweight": words(codes.T, 4).T.contiguous().view(torch.int32),
            "qzeros": words(zeros - first, 4).view(torch.int32),
            "scales": scale,
            "g_idx": index,
        }
        return parts, weight.T

    return make


def awq(group: int, *, symmetric: bool) -> Callable[[int, int], tuple[Tensors, Tensor]]:
    def make(rows: int, cols: int) -> tuple[Tensors, Tensor]:
        codes, scale = drawn(16, cols, rows), scales(torch.float16, cols // group, rows)
        zeros = torch.full((cols // group, rows), 8) if symmetric else drawn(16, cols // group, rows)
        weight = (codes - zeros.repeat_interleave(group, dim=0)).float() * scale.float().repeat_interleave(group, dim=0)
        ordered = [t.view(len(t), -1, 8)[:, :, AWQ_COLUMNS].reshape(len(t), -1) for t in (codes, zeros)]
        parts = {name: words(t, 4).view(torch.int32) for name, t in zip(("qweight", "qzeros"), ordered, strict=True)}
        return {**parts, "scales": scale}, weight.T

    return make


KINDS: dict[str, tuple[dict[str, Any], Callable[[int, int], tuple[Tensors, Tensor]], str]] = {
    "mlx-4": ({"quantization": {"group_size": 32, "bits": 4}}, mlx(4, 32, torch.bfloat16), "int4-affine-g32"),
    "mlx-4-fp16": ({"quantization": {"group_size": 64, "bits": 4}}, mlx(4, 64, torch.float16), "int4-affine-g64-fp16"),
    "mlx-8": ({"quantization": {"group_size": 64, "bits": 8, "mode": "affine"}}, mlx(8, 64, torch.bfloat16), "int8-affine-g64"),
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4, "sym": True}}, gptq(32, symmetric=True), "q4_0"),
    "gptq-asymmetric": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4, "sym": False}},
        gptq(64, symmetric=False),
        "int4-zero-g64-fp16",
    ),
    "gptq-v2": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}},
        gptq(32, symmetric=False, first=0),
        "int4-zero-g32-fp16",
    ),
    "awq": (
        {"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemm"}},
        awq(64, symmetric=False),
        "int4-zero-g64-fp16",
    ),
    "awq-symmetric": ({"quantization_config": {"quant_method": "awq", "bits": 4}}, awq(64, symmetric=True), "int4-g64-fp16"),
}


def quantised(kind: str, folder: Path, family: str = "llama") -> tuple[torch.nn.Module, Tensors]:
    """A tiny checkpoint whose linears (with MLX the embedding too) are packed, a transformers model of the same weights, and the
    weights.
    """
    model = checkpoint(family, folder)
    fields, make, _ = KINDS[kind]
    tensors, exact = load_file(folder / SINGLE_FILE), {}
    for name in [name for name in tensors if name.endswith("_proj.weight") or ("mlx" in kind and "embed_tokens" in name)]:
        module = name.removesuffix(".weight")
        parts, exact[name] = make(*tensors.pop(name).shape)
        tensors |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
    save_file(tensors, folder / SINGLE_FILE)
    raw = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(raw | fields))
    missing, unexpected = model.load_state_dict(exact, strict=False)
    assert not unexpected
    assert not set(missing) & exact.keys()
    return model, exact


@pytest.mark.parametrize("kind", KINDS)
def test_weights_stay_as_they_are_and_the_loss_is_that_of_their_formula(kind: str, tmp_path: Path) -> None:
    model, exact = quantised(kind, tmp_path / "hf")
    found = compress(tmp_path / "hf", tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert store.formats.of("1.up").name == KINDS[kind][2]
    assert not found.errors
    for ours, theirs in (("1.up", "mlp.up_proj"), ("1.q", "self_attn.q_proj"), ("1.down", "mlp.down_proj")):
        assert torch.equal(unpack_whole(store.matrix(ours), torch.float32), exact[f"model.layers.1.{theirs}.weight"])
    workload = tiny_workload(fmt=store.formats.name)
    graph = build_graph(found.config, workload)
    plan = STRATEGIES["checkpoint-1"].plan(graph, load_device("iphone15promax"), 10**9)
    ids = torch.randint(1, found.config.vocab, (workload.batch_size, workload.seq_len), generator=torch.Generator().manual_seed(3))
    result = Executor(plan, graph, store, new_adapters(graph)).step(ids)
    assert result.loss == pytest.approx(float(model(input_ids=ids, labels=ids).loss.detach()), rel=1e-5)


@pytest.mark.parametrize("kind", ["mlx-4", "gptq", "awq"])
def test_fused_linears_are_taken_apart(kind: str, tmp_path: Path) -> None:
    _, exact = quantised(kind, tmp_path / "hf", "phi3")
    compress(tmp_path / "hf", tmp_path / "store")
    fused, config = exact["model.layers.2.self_attn.qkv_proj.weight"], hf_config("phi3")
    store, width = open_store(tmp_path / "store"), config.hidden_size
    assert torch.equal(unpack_whole(store.matrix("2.q"), torch.float32), fused[:width])
    assert torch.equal(unpack_whole(store.matrix("2.v"), torch.float32), fused[-store.matrix("2.v").rows :])


def spoil(folder: Path, kind: str, how: str) -> None:
    """Change a quantised checkpoint in one way."""
    tensors, raw = load_file(folder / SINGLE_FILE), json.loads((folder / CONFIG).read_text())
    module = "model.layers.1.mlp.up_proj"
    match how:
        case "act-order":
            tensors[f"{module}.g_idx"] = tensors[f"{module}.g_idx"].flip(0).contiguous()
        case "missing":
            del tensors[f"{module}.scales"]
        case "bits" | "method":
            raw["quantization_config"] |= {"bits": {"bits": 3}, "method": {"quant_method": "fp8"}}[how]
        case "mode":
            raw["quantization"]["mode"] = "mxfp4"
        case "group":
            for part in ("scales", "biases"):
                tensors[f"{module}.{part}"] = tensors[f"{module}.{part}"].repeat_interleave(2, dim=1)
        case "not finite":
            tensors[f"{module}.scales"][0, 0] = float("nan")
        case "rows":
            name = f"{module}.{'weight' if 'mlx' in kind else 'qweight'}"
            tensors[name] = torch.cat([tensors[name]] * 2, dim=0 if "mlx" in kind else 1)
        case "type":
            tensors[f"{module}.qzeros"] = tensors[f"{module}.qzeros"].float()
        case "groups":
            for part in ("scales", "qzeros"):
                tensors[f"{module}.{part}"] = torch.cat([tensors[f"{module}.{part}"]] * 3)
        case "no extents":
            tensors[f"{module}.scales"] = torch.tensor(1.0)
    save_file(tensors, folder / SINGLE_FILE)
    (folder / CONFIG).write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("kind", "how", "says"),
    [
        ("gptq", "act-order", "(act-order), which is not read"),
        ("gptq", "missing", "tensor model.layers.1.mlp.up_proj.scales is missing"),
        ("gptq", "bits", "(gptq, 3 bits), which is not read"),
        ("awq", "method", "(fp8, 4 bits), which is not read"),
        ("mlx-4", "missing", "tensor model.layers.1.mlp.up_proj.scales is missing"),
        ("mlx-4", "mode", "which is not read"),
        ("mlx-4", "group", "is in int4-affine-g16, which is not read"),
        *((kind, "not finite", "not finite") for kind in ("mlx-4", "gptq", "awq")),
        *((kind, "rows", "its config.json asks for") for kind in ("mlx-4", "gptq", "awq")),
        *((kind, "no extents", "its config.json asks for") for kind in ("mlx-4", "gptq", "awq")),
        *((kind, "groups", "groups, which do not divide 64 columns") for kind in ("gptq", "awq")),
        *((kind, "type", "is F32: expected I32") for kind in ("gptq", "awq")),
    ],
)
def test_what_is_not_known_or_damaged_is_refused_in_a_line(kind: str, how: str, says: str, tmp_path: Path) -> None:
    quantised(kind, tmp_path / "hf")
    spoil(tmp_path / "hf", kind, how)
    with pytest.raises(ModelError) as caught:
        compress(tmp_path / "hf", tmp_path / "store")
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "store").exists()
