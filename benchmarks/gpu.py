"""Check and time a CUDA device: gradients of every family, and steps vs. transformers + PEFT: python benchmarks/gpu.py [--dry-run]

A layer or two of a model of each family, in fp32 and bf16, by three plans: adapter gradients against autograd. Then 0.5b and 4b at
three budgets, and PEFT with gradient checkpointing in bf16 on the same shapes: peak of torch's allocator, median step. Compressed
weights lie in the host's memory and are copied to the device a tile at a time. --dry-run does all of it with small shapes on the
processor, where there is no allocator's peak. benchmarks/gpu.sh calls it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from mebp import STRATEGIES, Effort, Job, Lora, Workload, build_graph, load_device, load_model, weight_format
from mebp.executor.adapter import new_adapters
from mebp.executor.executor import Executor
from mebp.executor.measure.worker import run_plan
from mebp.models.config import ModelConfig
from mebp.plan import Plan
from mebp.planner.solver.problem import pose
from mebp.planner.solver.solve import least_plan, solve
from mebp.sim.footprint import outside_arena
from mebp.store.reader import open_store
from mebp.store.synthetic import synthesize

FAMILIES = ("0.5b", "llama-3.2-1b", "qwen3-0.6b", "1b", "smollm2-135m")
EXACT = ("checkpoint-1", "keep-all", "mebp")
GRADIENT_ERROR, COSINE = 1e-4, 0.999
MODELS = ("0.5b", "4b")
FACTORS = (1.5, 3.0)  # times the least arena
FORMAT = weight_format("int4-g64")
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The device, and the sizes that are run on it."""

    device: str
    tokens: int
    steps: int
    small: bool

    def config(self, name: str) -> ModelConfig:
        """The catalogue's model; small, its first layers and a short vocabulary."""
        config = load_model(name)
        return replace(config, windows=config.windows[:2], vocab=1024) if self.small else config


def gradients(setting: Setting, folder: Path) -> bool:
    """Print a row per family, precision and plan; whether all hold."""
    device, right = load_device("laptop16"), True
    print(f"{'gradients':16s}{'':6s}{'plan':14s}{'worst error':>12s}{'cosine':>12s}")
    for name in FAMILIES:
        config = load_model(name)
        config = replace(config, windows=tuple(dict.fromkeys(config.windows)) or (0,), vocab=1024)
        store = synthesize(folder / name, config, FORMAT)
        for precision in ("fp32", "bf16"):
            graph = build_graph(config, Workload(seq_len=64, lora=Lora(), weights=FORMAT, precision=precision))
            for plan in EXACT:
                job = Job(store=store, steps=1, device=setting.device, check_gradients=True)
                found = run_plan(STRATEGIES[plan].plan(graph, device, 0), job).gradients
                assert found is not None
                holds = found.max_relative_error <= GRADIENT_ERROR if precision == "fp32" else found.cosine >= COSINE
                right &= holds
                cells = f"{found.max_relative_error:12.1e}{found.cosine:12.6f}{'' if holds else '  WRONG'}"
                print(f"{name:16s}{precision:6s}{plan:14s}{cells}", flush=True)
    return right


def plans(setting: Setting, name: str) -> dict[str, Plan]:
    """A model's plans at three budgets."""
    device = load_device("laptop16")
    graph = build_graph(setting.config(name), Workload(seq_len=setting.tokens, lora=Lora(), weights=FORMAT))
    problem = pose(graph, device)
    least = least_plan(problem, 0, Effort())
    outside, found = outside_arena(graph, device), {"least": least}
    for factor in FACTORS:
        found[f"solved, {factor} x its arena"] = solve(problem, int(outside + factor * least.arena_bytes), Effort())
    return found


def timed(setting: Setting, step: Callable[[], object]) -> dict[str, Any]:
    """Median seconds of a step after one to warm up, and the allocator's peak."""
    seconds = []
    for _ in range(setting.steps + 1):
        begin = time.perf_counter()
        step()
        if setting.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated() if setting.device == "cuda" else 0
    return {"peak": peak, "seconds": statistics.median(seconds[1:])}


def ours(setting: Setting, name: str, plan: Plan, store: Path) -> dict[str, Any]:
    """Time steps of a plan by this executor."""
    config = setting.config(name)
    graph = build_graph(config, Workload(seq_len=setting.tokens, lora=Lora(), weights=FORMAT))
    if setting.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    executor = Executor(plan, graph, open_store(store), new_adapters(graph, device=setting.device), device=setting.device)
    ids = torch.randint(0, config.vocab, (1, setting.tokens), generator=torch.Generator().manual_seed(0))
    return timed(setting, lambda: executor.step(ids))


def peft(setting: Setting, name: str) -> dict[str, Any]:
    """transformers + PEFT with gradient checkpointing, random bf16 weights, in a process of its own."""
    c = setting.config(name)
    sizes = {
        "hidden_size": c.hidden,
        "intermediate_size": c.ffn,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "vocab_size": c.vocab,
        "tie_word_embeddings": c.tied,
        "use_cache": False,
    }
    sizes |= {"head_dim": c.head_dim} if name == "4b" else {}
    torch.manual_seed(0)
    with torch.device(setting.device):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma3_text" if name == "4b" else "qwen2", **sizes))
    model = get_peft_model(model.to(torch.bfloat16), LoraConfig(r=8, lora_alpha=16, target_modules=LINEARS)).train()
    model.enable_input_require_grads()
    model.base_model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(0, c.vocab, (1, setting.tokens), generator=torch.Generator().manual_seed(0)).to(setting.device)
    if setting.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return timed(setting, step)


def main() -> None:
    """Print both tables; exit 1 where a gradient is wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--peft", choices=MODELS)
    given = parser.parse_args()
    small = given.dry_run
    setting = Setting(device="cpu" if small else "cuda", tokens=64 if small else 256, steps=1 if small else 3, small=small)
    if given.peft:
        print(json.dumps(peft(setting, given.peft)))
        return
    with tempfile.TemporaryDirectory() as folder:
        right = gradients(setting, Path(folder))
        for name in MODELS:
            command = [sys.executable, __file__, "--peft", name, *(["--dry-run"] if small else [])]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows = {"PEFT, checkpointed": json.loads(done.stdout.splitlines()[-1])}
            store = synthesize(Path(folder) / name / "whole", setting.config(name), FORMAT)
            rows |= {title: ours(setting, name, plan, store) for title, plan in plans(setting, name).items()}
            peft_s = rows["PEFT, checkpointed"]["seconds"]
            print(f"\n{name:28s}{'peak':>12s}{'step':>12s}{'speed':>10s}   ({setting.tokens} tokens, {setting.device})")
            for title, row in rows.items():
                print(f"{title:28s}{row['peak'] / 1e6:9.0f} MB{row['seconds']:10.3f} s{peft_s / row['seconds']:8.2f} x", flush=True)
    if not right:
        raise SystemExit("a gradient is wrong")


if __name__ == "__main__":
    main()
