"""Bring a model by its config.json and a device by its profile: here a small Qwen and a phone with slower flash."""

import json
import tempfile
from pathlib import Path

from mebp import STRATEGIES, Lora, Workload, build_graph, load_device, load_model, simulate, weight_formats
from mebp.sim.profile import override

CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 32000,
    "tie_word_embeddings": True,
    "rope_theta": 1000000.0,
}
with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "config.json").write_text(json.dumps(CONFIG))
    config = load_model(folder)

graph = build_graph(config, Workload(seq_len=512, lora=Lora(rank=16), weights=weight_formats("int4-g32")))
print(f"{config.num_parameters / 1e6:.1f} M parameters, {len(graph.ops)} ops per step")
for speed in (1.25e9, 1e7):
    device = override(load_device("iphone15promax"), [f"hardware.flash_write={speed}"])
    found = simulate(STRATEGIES["mebp"].plan(graph, device, 10**9), graph, device)
    waits = {part.value: ns for part, ns in found.time_breakdown.items()}.get("flash wait", 0)
    print(
        f"flash at {speed / 1e6:5.0f} MB/s: {found.step_ns / 1e6:5.0f} ms per step, {waits / 1e6:3.0f} ms of it waiting for flash"
    )
