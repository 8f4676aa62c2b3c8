"""Run a plan for real: a tiny model with random weights, spilled checkpoints, twenty steps on one batch."""

import tempfile
from pathlib import Path

import torch

from mebp import STRATEGIES, Lora, Workload, build_graph, load_device, weight_formats
from mebp.executor.adapter import new_adapters
from mebp.executor.executor import Executor
from mebp.models.huggingface import config_from_dict
from mebp.models.optimizer import Optimizer
from mebp.store.reader import open_store
from mebp.store.synthetic import synthesize

CONFIG = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 4, "vocab_size": 256}
CONFIG |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
config = config_from_dict(CONFIG, name="tiny", source="this example")
workload = Workload(seq_len=32, lora=Lora(rank=4), weights=weight_formats("int4-g32"), precision="fp32")
graph = build_graph(config, workload)
plan = STRATEGIES["mebp"].plan(graph, load_device("iphone15promax"), budget_bytes=10**9)

with tempfile.TemporaryDirectory() as folder:
    store = open_store(synthesize(Path(folder) / "store", config, workload.weights))
    executor = Executor(plan, graph, store, new_adapters(graph), optimizer=Optimizer(rate=2.0))
    ids = torch.randint(0, config.vocab, (1, 32), generator=torch.Generator().manual_seed(0))
    losses = [executor.step(ids).loss for _ in range(20)]

print(f"arena: {plan.arena_bytes} bytes planned, {executor.arena.used_bytes} used; {executor.spill.nbytes} bytes of spill file")
print(f"loss {losses[0]:.1f} -> {losses[-1]:.1f}")
