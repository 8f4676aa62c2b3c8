"""This executor and the plain torch loop of loop.py, same weights, one run, one machine: python benchmarks/plain_loop.py

Each contender runs in a process of its own, and they take turns, so that a busy machine is busy for all. Memory is anonymous bytes
above the import; the solved plans may use as much as the loop does (and write nothing to flash). Prints the table that
benchmarks/plain_loop.txt keeps. Wants a `host` profile: `mebp-plan calibrate --model 0.5b`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mebp import Effort, Job, Lora, Workload, build_graph, load_device, load_model, read_plan, run_plan, weight_formats
from mebp.plan import dump_plan
from mebp.planner.solver.problem import pose
from mebp.planner.solver.solve import solve
from mebp.sim.profile import override
from mebp.store.synthetic import synthesize

LOOP = Path(__file__).with_name("loop.py")
ROOM = {"solved, 99 MB": 99_000_000, "solved, 453 MB": 453_000_000}  # what the loop takes, recomputed and kept


def make_plans(folder: Path, model: str) -> dict[str, Path]:
    """Solved plans whose process stays within the room above the import."""
    device = override(load_device("host"), ["runtime.flash_write_cap_bytes=0"])
    graph = build_graph(load_model(model), Workload(lora=Lora(), weights=weight_formats("int4-g64")))
    problem = pose(graph, device)
    found = {}
    for name, nbytes in ROOM.items():
        plan = solve(problem, int(device.runtime.footprint_bytes) + nbytes, Effort(deterministic_s=1.0))
        found[name] = folder / f"{len(found)}.json"
        found[name].write_text(dump_plan(plan))
    return found


def run_loop(store: Path, kind: str, steps: int) -> dict[str, Any]:
    """The plain loop."""
    done = subprocess.run([sys.executable, str(LOOP), str(store), kind, str(steps)], stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def run_ours(store: Path, plan_file: Path, steps: int) -> dict[str, Any]:
    """A plan of this project."""
    found = run_plan(read_plan(plan_file), Job(store=store, steps=steps))
    return {"peak": found.peak_bytes - found.baseline_bytes, "seconds": list(found.step_s), "loss": found.loss[0]}


def main() -> None:
    """Run all contenders in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="0.5b")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = synthesize(Path(folder) / "store", load_model(given.model), weight_formats("int4-g64"))
        plans = make_plans(Path(folder), given.model)
        for _ in range(given.rounds):
            for kind in ("recomputed", "kept"):
                results.setdefault(f"plain loop, {kind}", []).append(run_loop(store, kind, given.steps))
            for name, plan in plans.items():
                results.setdefault(name, []).append(run_ours(store, plan, given.steps))
    print(f"{given.model}, 256 tokens, rank 8, int4-g64, bf16; {given.rounds} rounds of {given.steps} steps")
    print(f"{'':26s}{'step, median':>14s}{'fastest':>10s}{'above import':>15s}{'loss':>9s}")
    for name, rounds in results.items():
        seconds = [value for found in rounds for value in found["seconds"]]
        peak = max(found["peak"] for found in rounds) / 1e6
        print(f"{name:26s}{statistics.median(seconds):12.2f} s{min(seconds):8.2f} s{peak:12.0f} MB{rounds[0]['loss']:9.3f}")


if __name__ == "__main__":
    main()
