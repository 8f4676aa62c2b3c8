"""Predictions on shapes that no test and no profile names: python benchmarks/unnamed.py [--draws 8] [--seed 0]

Draws models of the supported families (widths, depths, heads, vocabularies), sequences of 64..2048 tokens and ranks of 4..64, and
calls `mebp-plan verify` on each: this machine calibrated at those shapes, then fixed and solved plans run, each prediction vs.
its measurement. benchmarks/unnamed.txt keeps what it printed.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

FAMILIES = ("qwen2", "qwen3", "gemma3_text", "llama")
WEIGHTS = ("int4-g32", "int4-g64", "int4-g128", "int8", "ternary")
LONGEST = 2048
MOST_TOKEN_LAYERS = 8192  # tokens x layers, so that a draw takes a minute


def drawn(draw: random.Random, number: int) -> tuple[dict[str, Any], list[str]]:
    """A config.json and the flags of a workload."""
    family = FAMILIES[number % len(FAMILIES)]
    kv_heads, head_dim = draw.choice((1, 2, 4)), draw.choice((64, 128))
    heads = max(128 // head_dim, kv_heads * draw.choice((1, 2, 4)))  # every row divides into the largest groups
    hidden = 128 * draw.randint(3, 14)
    if family == "qwen2":  # its heads divide the width
        hidden = heads * head_dim
    seq_len = round(2 ** draw.uniform(6, 11))
    layers = max(2, min(draw.randint(4, 16), MOST_TOKEN_LAYERS // seq_len))
    config = {
        "model_type": family,
        "hidden_size": hidden,
        "intermediate_size": 128 * draw.randint(6, 40),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": 64 * draw.randint(100, 1500),
        "max_position_embeddings": LONGEST,
        "tie_word_embeddings": True,
    }
    if family == "gemma3_text":
        every = ["full_attention" if at % 6 == 5 else "sliding_attention" for at in range(layers)]
        config |= {"sliding_window": 256, "layer_types": every, "query_pre_attn_scalar": head_dim}
    flags = ["--seq-len", str(seq_len), "--lora-r", str(draw.choice((4, 8, 16, 32, 64))), "--weights", draw.choice(WEIGHTS)]
    return config, flags


def verified(config: dict[str, Any], flags: list[str], steps: int) -> list[dict[str, Any]]:
    """The plans that `mebp-plan verify` ran, predicted and measured."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        store = ["--store", str(Path(folder) / "store")]
        command = [sys.executable, "-m", "mebp"]
        weights = flags[flags.index("--weights") :]
        made = subprocess.run(
            [*command, "synthesize", "--model", folder, "-o", store[1], *weights], capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise SystemExit(f"{config}: {made.stderr.strip().splitlines()[-1]}")
        verify = [*command, "verify", "--model", folder, "--steps", str(steps), "--json", *store, *flags]
        done = subprocess.run(verify, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise SystemExit(f"{config}: {done.stderr.strip().splitlines()[-1]}")
    plans: list[dict[str, Any]] = json.loads(done.stdout)["plans"]
    return plans


def main() -> None:
    """Draw, run and print a row per draw, and the errors over all plans."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    titles = f"{'plans':>6s}{'arena':>7s}{'peak':>7s}{'step':>8s}{'at its speed':>14s}"
    print(f"{'model':40s}{'tokens':>7s}{'rank':>5s} {'weights':10s}{titles}")
    every: list[tuple[bool, float, float, float]] = []
    for number in range(given.draws):
        config, flags = drawn(draw, number)
        found = [errors(plan) for plan in verified(config, flags, given.steps)]
        every += found
        heads = f"{config['num_attention_heads']}/{config['num_key_value_heads']} x {config['head_dim']}"
        shape = f"{config['model_type']} {config['hidden_size']}-{config['intermediate_size']} {heads}"
        print(
            f"{shape + ', ' + str(config['num_hidden_layers']):40s}{flags[1]:>7s}{flags[3]:>5s} {flags[5]:10s}{summary(found)}",
            flush=True,
        )
    print(f"{'all: worst peak, median step':63s}{summary(every)}")
    print("step: median error of the prediction; at its speed: the same for a machine as fast as this one was at each run")


def errors(plan: dict[str, Any]) -> tuple[bool, float, float, float]:
    """(arena exact, error of the peak, of the step, of the step for a machine as fast as it was then)."""
    peak = plan["measured_peak_bytes"] / plan["predicted_peak_bytes"] - 1
    step = plan["measured_step_time_us"] / plan["predicted_step_time_us"]
    return plan["arena_exact"], peak, step - 1, step * plan["calibrated_floor_us"] / plan["floor_us"] - 1


def summary(found: list[tuple[bool, float, float, float]]) -> str:
    """How many plans, whether each arena was exact, the worst peak, the median step times."""
    exact = "exact" if all(one[0] for one in found) else "WRONG"
    peak = max(abs(one[1]) for one in found)
    step, fair = (median(abs(one[at]) for one in found) for at in (2, 3))
    return f"{len(found):6d}{exact:>7s}{peak:7.1%}{step:8.1%}{fair:14.1%}"


if __name__ == "__main__":
    main()
