"""This executor and transformers + PEFT, one machine, one run, the same shapes: python benchmarks/side_by_side.py [--model 0.5b]

Contenders take turns, each in a process of its own: transformers + PEFT with bf16 weights, activations kept, with gradient
checkpointing of every layer, of every second one and with what is saved offloaded, under torch's own activation planner, and MeZO
(see peft_step.py); plans of this project on int4-g64 weights (the least memory, solved ones up to a sixth of what PEFT takes with
checkpointing, the paper's recipe, and MeZO, whose gradient is an estimate). Memory is anonymous bytes above the import and of the
whole process. benchmarks/side_by_side.txt keeps what it printed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mebp import STRATEGIES, Effort, Job, Lora, Workload, build_graph, load_model, run_plan, weight_formats
from mebp.plan import Plan
from mebp.planner.solver.problem import pose
from mebp.planner.solver.solve import least_plan, solve
from mebp.sim.footprint import outside_arena
from mebp.store.synthetic import synthesize
from mebp.task.calibrate import calibrate

PEFT = Path(__file__).with_name("peft_step.py")
CHECKPOINTED = "PEFT, gradient checkpointing"
SIXTH = "solved, a sixth of PEFT's"
PEFT_KINDS = {
    "PEFT, kept": "kept",
    CHECKPOINTED: "checkpointed",
    "PEFT, every second layer": "every_2",
    "PEFT, offloaded checkpoints": "offload",
    "PEFT, torch's planner at 0.3": "planned",
    "PEFT, MeZO (an estimate)": "mezo",
}
Contender = Callable[[int], dict[str, Any]]


def plans(model: str, seq_len: int, sixth_bytes: int) -> dict[str, Plan]:
    """What this project runs: plans for this machine, just calibrated. `sixth_bytes` is a sixth of what PEFT takes above its
    import; where nothing fits in that, no plan is solved for it.
    """
    config, workload = load_model(model), Workload(seq_len=seq_len, lora=Lora(), weights=weight_formats("int4-g64"))
    device = calibrate(config, workload, lambda what: print(f"calibrating: {what}", file=sys.stderr))
    graph = build_graph(config, workload)
    problem = pose(graph, device)
    least = least_plan(problem, 0, Effort())
    footprint = outside_arena(graph, device) + least.arena_bytes
    found = {"least": least}
    found |= {f"solved, {factor} x least": solve(problem, int(factor * footprint), Effort()) for factor in (1.2, 1.7)}
    if (budget := int(device.runtime.footprint_bytes) + sixth_bytes) >= footprint:
        found[SIXTH] = solve(problem, budget, Effort())
    for name, strategy in (("mebp (the paper's recipe)", STRATEGIES["mebp"]), ("mezo (an estimate)", STRATEGIES["mezo"])):
        found[name] = strategy.plan(strategy.graph(graph), device, 0)
    return found


def peft(model: str, seq_len: int, kind: str) -> Contender:
    """transformers + PEFT in a process of its own."""

    def run(steps: int) -> dict[str, Any]:
        command = [sys.executable, str(PEFT), model, str(seq_len), kind, str(steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return {"failure": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]}
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    return run


def ours(plan: Plan, store: Path) -> Contender:
    """A plan of this project."""

    def run(steps: int) -> dict[str, Any]:
        found = run_plan(plan, Job(store=store, steps=steps))
        above = found.peak_bytes - found.baseline_bytes
        return {"peak": above, "process": found.peak_bytes, "seconds": list(found.step_s), "floor": found.floor_s}

    return run


def main() -> None:
    """Run all contenders in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="0.5b", choices=("0.5b", "1.5b", "3b"))
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = synthesize(Path(folder) / "store", load_model(given.model), weight_formats("int4-g64"))
        contenders: dict[str, Contender] = {name: peft(given.model, given.seq_len, kind) for name, kind in PEFT_KINDS.items()}
        sixth = contenders[CHECKPOINTED](1).get("peak", 0) // 6
        contenders |= {name: ours(plan, store) for name, plan in plans(given.model, given.seq_len, sixth).items()}
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
        for _ in range(given.rounds):
            for name, contender in contenders.items():
                if not any("failure" in run for run in runs[name]):
                    print(f"running {name}", file=sys.stderr)
                    runs[name].append(contender(given.steps))
    print_table(runs, f"{given.model}, {given.seq_len} tokens, rank 8; {given.rounds} rounds of {given.steps} steps")


def print_table(runs: dict[str, list[dict[str, Any]]], title: str) -> None:
    """A row per contender, and what it takes relative to PEFT with gradient checkpointing."""
    print(title)
    print(f"{'':30s}{'step, median':>13s}{'above import':>14s}{'process':>10s}{'memory':>9s}{'speed':>8s}{'x floor':>9s}")
    if "failure" in runs[CHECKPOINTED][-1]:
        raise SystemExit(f"{CHECKPOINTED}, which all are compared with, failed: {runs[CHECKPOINTED][-1]['failure']}")
    failed = {name: found[-1]["failure"] for name, found in runs.items() if "failure" in found[-1]}
    runs = {name: found for name, found in runs.items() if name not in failed}
    known = {
        name: (
            statistics.median(second for run in found for second in run["seconds"]),
            max(run["peak"] for run in found),
            max(run["process"] for run in found),
        )
        for name, found in runs.items()
    }
    floors = [run["floor"] for found in runs.values() for run in found if run.get("floor")]
    floor = statistics.median(floors) if floors else float("nan")
    seconds_there, peak_there, _ = known[CHECKPOINTED]
    for name, (seconds, peak, process) in known.items():
        memory, speed = f"1/{peak_there / peak:.1f}", f"{seconds_there / seconds:.2f} x"
        sizes = f"{peak / 1e6:11.0f} MB{process / 1e6:7.0f} MB"
        print(f"{name:30s}{seconds:11.2f} s{sizes}{memory:>9s}{speed:>8s}{seconds / floor:9.2f}")
    for name, failure in failed.items():
        print(f"{name:30s}did not run here: {failure:.100}")
    print(f"memory, speed: against {CHECKPOINTED}; floor: the step's dense products alone, {floor:.2f} s")


if __name__ == "__main__":
    main()
