"""Fixtures that several parts share: a device, and graphs small enough to plan in milliseconds."""

import pytest

from mebp.models.build import build_graph
from mebp.models.catalogue import catalogue_model
from mebp.models.config import Family, ModelConfig, Rope
from mebp.models.format import weight_formats
from mebp.models.graph import Graph
from mebp.models.workload import Lora, Workload
from mebp.sim.device import Device
from mebp.sim.profile import load_device


def small_config(layers: int = 4, **changes: object) -> ModelConfig:
    """A little Llama-like model."""
    fields: dict[str, object] = {
        "name": "small",
        "family": Family.LLAMA,
        "hidden": 64,
        "ffn": 192,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "vocab": 512,
        "windows": (0,) * layers,
        "rope": Rope(theta=1e4),
        "local_rope": Rope(theta=1e4),
        "norm_eps": 1e-5,
        "norm_offset": 0.0,
        "attention_scale": 0.25,
        "embedding_scale": 1.0,
        "activation": "silu",
        "tied": True,
    }
    return ModelConfig(**(fields | changes))  # type: ignore[arg-type]


def small_workload(**changes: object) -> Workload:
    """64 tokens, rank 4, int4-g32."""
    fields: dict[str, object] = {"seq_len": 64, "lora": Lora(rank=4), "weights": weight_formats("int4-g32")}
    return Workload(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def device() -> Device:
    return load_device("iphone15promax")


@pytest.fixture(scope="session")
def small_graph() -> Graph:
    return build_graph(small_config(), small_workload())


@pytest.fixture(scope="session")
def qwen_graph() -> Graph:
    return build_graph(catalogue_model("qwen2.5-0.5b"), Workload(lora=Lora(), weights=weight_formats("int4-g64")))
