"""A step in chunks vs. the same step whole: python benchmarks/long.py

The plan checkpoint-1 of one model at one length, whole and in chunks of 1,024 tokens, run in turn on random weights by the measured
worker; medians. benchmarks/long.txt keeps what it printed.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

from mebp import STRATEGIES, Job, Lora, Workload, build_graph, load_device, load_model, run_plan, weight_formats
from mebp.store.synthetic import synthesize

CASES = (("0.5b", 4096), ("1b", 4096))
CHUNK, ROUNDS = 1024, 3


def main() -> None:
    """Time every case."""
    device = load_device("laptop16")
    with tempfile.TemporaryDirectory() as folder:
        for model, tokens in CASES:
            config = load_model(model)
            whole = Workload(seq_len=tokens, lora=Lora(), weights=weight_formats("int4"))
            store = synthesize(Path(folder) / model, config, whole.weights)
            graphs = [build_graph(config, replace(whole, chunk=chunk)) for chunk in (0, CHUNK)]
            plans = [STRATEGIES["checkpoint-1"].plan(graph, device, 0) for graph in graphs]
            runs = [[run_plan(plan, Job(store=store, steps=1)) for plan in plans] for _ in range(ROUNDS)]
            seconds = [median(run.step_s[0] for run in one) for one in zip(*runs, strict=True)]
            arenas = [plan.arena_bytes / 1e6 for plan in plans]
            print(
                f"{config.name}, {tokens} tokens: whole {seconds[0]:.1f} s, arena {arenas[0]:.0f} MB; chunks of {CHUNK}"
                f" {seconds[1]:.1f} s, arena {arenas[1]:.0f} MB: {seconds[1] / seconds[0]:.3f} x the time",
                flush=True,
            )


if __name__ == "__main__":
    main()
