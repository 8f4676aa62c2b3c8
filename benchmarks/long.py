"""A step in chunks vs. the same step whole: python benchmarks/long.py

The plan checkpoint-1 of one model at one length, whole and in chunks of 1,024 tokens, run in turn on random weights by the measured
worker. Each pair of runs gives one ratio, of their fastest steps: a neighbour that comes and goes slows some steps of one run. The
median of the ratios counts. benchmarks/long.txt keeps what it printed.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

from mebp import STRATEGIES, Job, Lora, Workload, build_graph, load_device, load_model, run_plan, weight_formats
from mebp.store.synthetic import synthesize

CASES = (("0.5b", 4096), ("1b", 2048))
CHUNK, ROUNDS, STEPS = 1024, 3, 2


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
            rounds = [[min(run_plan(plan, Job(store=store, steps=STEPS)).step_s) for plan in plans] for _ in range(ROUNDS)]
            ratios = sorted(chunked / at_once for at_once, chunked in rounds)
            seconds = [min(times) for times in zip(*rounds, strict=True)]
            arenas = [plan.arena_bytes / 1e6 for plan in plans]
            print(
                f"{config.name}, {tokens} tokens: whole {seconds[0]:.1f} s, arena {arenas[0]:.0f} MB; chunks of {CHUNK}"
                f" {seconds[1]:.1f} s, arena {arenas[1]:.0f} MB: {median(ratios):.3f} x the time"
                f" ({ratios[0]:.3f}-{ratios[-1]:.3f} over {ROUNDS} pairs)",
                flush=True,
            )


if __name__ == "__main__":
    main()
