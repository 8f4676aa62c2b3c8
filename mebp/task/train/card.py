"""The model card that lies in an adapter's folder: what it was trained on, under which budget, predicted and measured."""

import json
import shlex
from pathlib import Path

from mebp.executor.train.settings import Trained
from mebp.models.workload import Workload
from mebp.plan import Plan
from mebp.task.train.folder import MODEL, Run
from mebp.unit import show_nbytes, show_ns


def model_card(run: Run, plans: list[Plan], trained: Trained, seconds: float | None) -> str:
    """Markdown with the front matter that the Hugging Face Hub reads."""
    workload = plans[-1].workload
    front = {"base_model": run.base.name, "library_name": "peft", "pipeline_tag": "text-generation", "tags": ["lora", "mebp-plan"]}
    head = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items())
    rows = "\n".join(f"| {name} | {value} |" for name, value in _facts(run, plans, workload, trained, seconds))
    return f"""---
{head}
---

# LoRA adapter of {plans[-1].config.name}

Trained with mebp-plan, with the exact gradients of the plan that its solver chose under a budget of memory.

| | |
|---|---|
{rows}

    {shlex.join(run.command) or "Trainer, from Python"}
"""


def _facts(run: Run, plans: list[Plan], w: Workload, trained: Trained, seconds: float | None) -> list[tuple[str, str]]:
    numbers, predicted = run.settings.optimizer, run.predicted
    scaled = "alpha / sqrt(rank)" if w.lora.rslora else "alpha / rank"
    layers = f", last {w.lora.layers} layers" if w.lora.layers else ""
    ahead = f"{show_ns(predicted.total_ns)} predicted for all {run.settings.updates} updates"
    total = ahead if seconds is None else f"{show_ns(seconds * 1e9)} measured, {ahead}"
    peak = f"{show_nbytes(trained.peak_bytes)} measured, {show_nbytes(predicted.peak_bytes)} predicted"
    facts = [
        ("adapter", f"rank {w.lora.rank}, alpha {w.lora.alpha:g} ({scaled}), {', '.join(w.lora.targets)}{layers}"),
        ("method", f"{w.method}, {w.optimizer}, {w.precision}; frozen weights in {w.weights.name}"),
        ("rate", f"{numbers.rate:g}, {numbers.schedule.decay}, {numbers.schedule.warm_up} updates of warm-up"),
        ("updates", f"{trained.number} of {run.settings.updates}, each of {run.settings.accumulate} x {w.batch_size} sequences"),
        ("sequences", f"{', '.join(map(str, run.seq_lens))} tokens{', packed' if run.train.packed else ''}"),
        ("plans", ", ".join(f"{plan.name} ({plan.workload.seq_len} tokens)" for plan in plans)),
        ("budget", show_nbytes(run.budget_bytes)),
        ("peak memory", peak),
        ("time", total),
        ("data", ", ".join(f"{Path(name).name}: SHA-256 {digest}" for name, digest in run.sha256.items())),
    ]
    if trained.best_loss is not None:
        facts.append(("held-out loss", f"{trained.best_loss:.4f} after update {trained.best_number}, whose adapters these are"))
    return [*facts, ("weights", f"SHA-256 of their checksums {run.hashes[MODEL]}")]
