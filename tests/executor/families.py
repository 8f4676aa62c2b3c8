"""Tiny models of every family, made with transformers, and the same model built from a store: the independent reference."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from mebp.executor.adapter import Adapter, new_adapters
from mebp.models.build import build_graph
from mebp.models.config import Family, ModelConfig
from mebp.models.format import WeightFormats, weight_formats
from mebp.models.graph import Graph
from mebp.models.huggingface import CONFIG, read_model
from mebp.models.workload import Lora, Workload
from mebp.store.codec import quantise, unpack_whole
from mebp.store.reader import Store, open_store
from mebp.store.writer import Pieces, parts_of, write_store
from tests.weights import random_weight

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 320,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 8}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10_000.0, "partial_rotary_factor": 0.75} | {
    name: [start + 0.3 * at for at in range(6)] for name, start in (("short_factor", 1.0), ("long_factor", 1.5))
}
FAMILIES: dict[str, dict[str, object]] = {
    "qwen2": {"model_type": "qwen2", "head_dim": None, "num_attention_heads": 2, "num_key_value_heads": 1},
    "qwen2-untied": {"model_type": "qwen2", "tie_word_embeddings": False, "head_dim": None, "num_attention_heads": 2},
    "qwen3": {"model_type": "qwen3"},
    "gemma3": {
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": 24,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "llama": {"model_type": "llama", "rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True},
    "smollm2": {"model_type": "llama", "num_key_value_heads": 4, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "sliding_window": 5, "tie_word_embeddings": False},
    "ministral3": {
        "model_type": "ministral3",
        "rope_parameters": YARN | {"llama_4_scaling_beta": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
    "gemma": {"model_type": "gemma"},
    "gemma2": {
        "model_type": "gemma2",
        "query_pre_attn_scalar": 24,
        "sliding_window": 5,
        "attn_logit_softcapping": 0.5,
        "final_logit_softcapping": 1.5,
    },
    "phi3": {
        "model_type": "phi3",
        "head_dim": None,
        "rope_parameters": LONGROPE,
        "original_max_position_embeddings": 8,
        "tie_word_embeddings": False,
    },
    "smollm3": {"model_type": "smollm3", "no_rope_layer_interval": 2, "head_dim": None},
    "granite": {
        "model_type": "granite",
        "head_dim": None,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.2,
        "logits_scaling": 2.5,
    },
    "olmo2": {"model_type": "olmo2", "head_dim": None, "tie_word_embeddings": False},
    "exaone4": {"model_type": "exaone4", "sliding_window": 5, "sliding_window_pattern": 2},
}
VARIANTS: dict[str, dict[str, object]] = {  # of families above: other arrangements of the same
    "qwen2-window": FAMILIES["qwen2"] | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "llama-biased": FAMILIES["llama"] | {"attention_bias": True, "mlp_bias": True},
    "llama-yarn": FAMILIES["llama"] | {"rope_parameters": YARN},
    "llama-dynamic": FAMILIES["llama"]
    | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, "max_position_embeddings": 8},
    "phi3-short": FAMILIES["phi3"] | {"original_max_position_embeddings": 64, "sliding_window": 5},
    "smollm3-window": FAMILIES["smollm3"] | {"use_sliding_window": True, "sliding_window": 5},
    "minicpm": FAMILIES["granite"] | {"attention_multiplier": 0.25, "residual_multiplier": 1.4 / 3**0.5},
    "olmo3": {
        "model_type": "olmo3",
        "head_dim": None,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0}},
    },
    "exaone4-global": {"model_type": "exaone4", "sliding_window": None, "layer_types": ["full_attention"] * 3},
}
MINICPM = {  # which transformers does not have: Granite with these numbers is the same
    "model_type": "minicpm",
    "scale_emb": 3.0,
    "scale_depth": 1.4,
    "dim_model_base": 64 / 2.5,
}
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
HF_LINEARS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def hf_config(family: str) -> PretrainedConfig:
    """The tiny transformers config of a family."""
    fields = {"tie_word_embeddings": True} | SIZES | (FAMILIES | VARIANTS)[family]
    fields = {key: value for key, value in fields.items() if value is not None or key == "sliding_window"}
    return AutoConfig.for_model(str(fields.pop("model_type")), **fields)


def tiny_config(family: str, folder: Path) -> ModelConfig:
    """The family's config.json as transformers writes it, read back by the project."""
    hf_config(family).save_pretrained(folder)
    if family == "minicpm":
        raw = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({k: v for k, v in raw.items() if "multiplier" not in k} | MINICPM))
    return read_model(folder)


def tiny_store(config: ModelConfig, formats: WeightFormats, folder: Path) -> Store:
    """A store of random weights, quantised from tensors."""
    generator = torch.Generator().manual_seed(11)

    def tensors() -> Iterator[tuple[str, Pieces]]:
        for name, shape in config.matrices().items():
            fmt, weight = formats.of(name), torch.randn(shape, generator=generator) * 0.08
            frozen = random_weight(*shape, fmt) if fmt.block else quantise(weight, fmt)
            yield from parts_of(name, fmt, shape, [frozen])
        for name, length in config.vectors().items():
            center = 0.0 if "bias" in name else 1.0 - config.norm_offset
            yield name, (center + 0.1 * torch.randn(length, generator=generator)).bfloat16()

    write_store(folder, config, formats, tensors())
    return open_store(folder)


def random_adapters(graph_adapters: dict[str, Adapter]) -> dict[str, Adapter]:
    """Give B random values too, so that the gradient of A is not zero."""
    generator = torch.Generator().manual_seed(5)
    for adapter in graph_adapters.values():
        adapter.B.copy_(torch.randn(adapter.B.shape, generator=generator) * 0.05)
    return graph_adapters


def reference(family: str, config: ModelConfig, store: Store, workload: Workload, adapters: dict[str, Adapter]) -> torch.nn.Module:
    """transformers + PEFT on the store's decompressed weights, in fp32, with the given adapters."""
    model = AutoModelForCausalLM.from_config(hf_config(family), attn_implementation="eager").float()
    state = {
        name: tensor for name, tensor in reference_weights(config, store).items() if not (config.tied and name == "lm_head.weight")
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    _split_fused(model, config)
    lora = workload.lora
    modules = [HF_LINEARS[name].split(".")[1] for name in lora.targets]
    last = None if lora.layers is None else list(range(config.num_layers - lora.layers, config.num_layers))
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=modules,
        lora_dropout=0.0,
        use_rslora=lora.rslora,
        layers_to_transform=last,
        layers_pattern=None if last is None else "layers",
    )
    peft = get_peft_model(model, settings)
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            adapter = adapters[our_name(name)]
            parameter.data.copy_(adapter.A if "lora_A" in name else adapter.B)
    return peft


class _Together(torch.nn.Module):
    """A fused linear as the linears that it is of, which PEFT then gives a pair each."""

    def __init__(self, fused: torch.nn.Linear, rows: dict[str, int]) -> None:
        super().__init__()
        for name, part in zip(rows, fused.weight.data.split(list(rows.values())), strict=True):
            linear = torch.nn.Linear(part.shape[1], part.shape[0], bias=False)
            linear.weight.data.copy_(part)
            self.add_module(name, linear)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([linear(x) for linear in self.children()], dim=-1)


def _split_fused(model: torch.nn.Module, config: ModelConfig) -> None:
    rows = {f"{name}_proj": shape[0] for name, shape in config.linear_shapes().items()}
    for module in list(model.modules()):
        for fused, parts in FUSED.items():
            if hasattr(module, fused):
                setattr(module, fused, _Together(getattr(module, fused), {name: rows[name] for name in parts}))


def reference_weights(config: ModelConfig, store: Store) -> dict[str, Tensor]:
    """The store's contents under transformers' names, decompressed to fp32."""

    def matrix(name: str) -> Tensor:
        return unpack_whole(store.matrix(name), torch.float32)

    found = {"model.embed_tokens.weight": matrix("embedding"), "model.norm.weight": store.vector("final_norm").float()}
    if not config.tied:
        found["lm_head.weight"] = matrix("head")
    norms = {
        "norm1": "input_layernorm",
        "norm2": "pre_feedforward_layernorm" if config.norms == "both" else "post_attention_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "post_ffn_norm": "post_feedforward_layernorm",
        "q_norm": "self_attn.q_norm",
        "k_norm": "self_attn.k_norm",
    }
    for name in config.vectors():
        layer, _, vector = name.partition(".")
        if vector.endswith("_bias"):
            linear = vector.removesuffix("_bias")
            found[f"model.layers.{layer}.{HF_LINEARS[linear]}.bias"] = store.vector(name).float()
        elif vector:
            found[f"model.layers.{layer}.{norms[vector]}.weight"] = store.vector(name).float()
    for name in config.matrices():
        layer, _, linear = name.partition(".")
        if linear:
            found[f"model.layers.{layer}.{HF_LINEARS[linear]}.weight"] = matrix(name)
    return _fused(found) if config.family is Family.PHI3 else found


def _fused(found: dict[str, Tensor]) -> dict[str, Tensor]:
    for first in [name for name in found if "q_proj" in name or "gate_proj" in name]:
        for fused, parts in FUSED.items():
            if parts[0] in first:
                found[first.replace(parts[0], fused)] = torch.cat([found.pop(first.replace(parts[0], part)) for part in parts])
    return found


def our_name(peft_name: str) -> str:
    """`...layers.3.self_attn.q_proj.lora_A...` as `3.q`."""
    parts = peft_name.split(".")
    layer = parts[parts.index("layers") + 1]
    module = next(part for part in reversed(parts) if part.endswith("_proj"))
    return f"{layer}.{module.removesuffix('_proj')}"


def tiny_workload(*, fmt: str = "int4-g32", **changes: object) -> Workload:
    """A small workload in fp32; 13 tokens are beyond Gemma's tiny window."""
    fields: dict[str, object] = {"seq_len": 13, "batch_size": 2, "lora": Lora(rank=4, alpha=8.0), "precision": "fp32"}
    return Workload(weights=weight_formats(fmt), **(fields | changes))  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A tiny model with everything that a step needs: store, graph, adapters whose gradients are not zero, token ids."""

    family: str
    config: ModelConfig
    workload: Workload
    store: Store
    graph: Graph
    adapters: dict[str, Adapter]
    ids: Tensor

    def fresh_adapters(self) -> dict[str, Adapter]:
        """Copies, so that one run's updates do not reach the next."""
        return {name: adapter.copy_to("cpu") for name, adapter in self.adapters.items()}

    def expected(
        self, labels: Tensor | None = None, adapters: dict[str, Adapter] | None = None, mask: Tensor | None = None
    ) -> tuple[float, dict[str, Tensor]]:
        """Loss and adapter gradients of transformers + PEFT; `mask` is its attention mask."""
        model = reference(self.family, self.config, self.store, self.workload, adapters or self.adapters)
        loss = model(input_ids=self.ids, attention_mask=mask, labels=self.ids if labels is None else labels).loss
        loss.backward()
        found = {
            f"{our_name(name)}.{'dA' if 'lora_A' in name else 'dB'}": parameter.grad
            for name, parameter in model.named_parameters()
            if "lora_" in name
        }
        return float(loss.detach()), found


def trial(family: str, folder: Path, **changes: object) -> Trial:
    """Make a tiny model of `family` in `folder` and a batch for it."""
    config, workload = tiny_config(family, folder / "hf"), tiny_workload(**changes)  # type: ignore[arg-type]
    graph = build_graph(config, workload)
    ids = torch.randint(1, config.vocab, (workload.batch_size, workload.seq_len), generator=torch.Generator().manual_seed(3))
    return Trial(
        family=family,
        config=config,
        workload=workload,
        store=tiny_store(config, workload.weights, folder / "store"),
        graph=graph,
        adapters=random_adapters(new_adapters(graph)),
        ids=ids,
    )
