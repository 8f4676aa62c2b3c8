"""The solver over the paper's models and budgets, vs. greedy and the fixed recipes: python benchmarks/solver.py [--seconds 12]

Budgets: the paper's own MeBP memory, 512 MiB, 384 MiB and 1.05 x the least. For each: status, step, gaps to the two bounds,
seconds of search, arena over live bytes, step time against the paper's (`mebp`, whose loss is computed twice, and `mesp`, the same
recipe with it computed once), how much faster than greedy (`ties`: within 0.1%).
With --wider longer sequences and batches for every model of the catalogue. benchmarks/solver.txt keeps what it printed.
"""

import argparse
import time

from mebp import STRATEGIES, Effort, Lora, Workload, build_graph, load_device, load_model, simulate, weight_formats
from mebp.errors import MebpError
from mebp.models.catalogue import CATALOGUE
from mebp.models.graph import Graph
from mebp.planner.solver.problem import Problem, pose
from mebp.planner.solver.solve import least_plan, solve
from mebp.sim.device import Device
from mebp.sim.footprint import outside_arena
from mebp.sim.simulate import Prediction

PAPER_MB = {"0.5b": 320, "1.5b": 460, "3b": 662, "1b": 569, "4b": 1029}
WIDER = ((128, 1), (1024, 4), (2048, 1), (4096, 1))
SEARCH_SHARE = 5.0
TIE = 0.001
WIDTHS = (22, 8, 10, 9, 8, 8, 7, 8, 8, 8, 9)


def graph_of(model: str, seq_len: int = 256, batch_size: int = 1) -> Graph:
    """A training step at rank 8."""
    workload = Workload(seq_len=seq_len, batch_size=batch_size, lora=Lora(), weights=weight_formats("int4-g64"))
    return build_graph(load_model(model), workload)


def fixed(name: str, graph: Graph, device: Device, budget: int) -> Prediction:
    """A fixed recipe, simulated."""
    own = STRATEGIES[name].graph(graph)
    return simulate(STRATEGIES[name].plan(own, device, budget), own, device)


def line(problem: Problem, name: str, budget: int, effort: Effort) -> str:
    """One instance: the solved plan and the others."""
    graph, device = problem.graph, problem.device
    begin = time.perf_counter()
    try:
        plan = solve(problem, budget, effort)
    except MebpError as error:
        return f"{name:22s}{budget / 1e6:8.0f}  {error}"
    seconds = time.perf_counter() - begin
    found, facts = simulate(plan, graph, device), plan.solver
    assert facts is not None
    live = max(moment.live_bytes for moment in found.memory)
    paper, once, greedy = (fixed(name, graph, device, budget) for name in ("mebp", "mesp", "greedy"))
    faster = greedy.step_ns / found.step_ns - 1
    against = "no fit" if greedy.peak_bytes > budget else "ties" if faster < TIE else f"{faster:+.1%}"
    return (
        f"{name:22s}{budget / 1e6:8.0f}{facts.status:>10s}{found.step_ns / 1e9:9.3f}{facts.gap:8.3%}"
        f"{1 - facts.whole_bound_ns / found.step_ns:8.2%}{seconds:7.1f}{plan.arena_bytes / live:8.4f}"
        f"{found.step_ns / paper.step_ns:8.3f}{found.step_ns / once.step_ns:8.3f}{against:>9s}"
    )


def paper_cases(device: Device, effort: Effort) -> None:
    """The twenty cases of the paper's models, and how little memory each takes."""
    leasts = []
    for model, megabytes in PAPER_MB.items():
        problem = pose(graph_of(model), device)
        smallest = least_plan(problem, 0, effort)
        least, paper = outside_arena(problem.graph, device) + smallest.arena_bytes, fixed("mebp", problem.graph, device, 0)
        at_its = simulate(smallest, problem.graph, device).step_ns / paper.step_ns
        ratios = f"{least / paper.peak_bytes:.2f} x the peak of mebp's plan, {least / (megabytes * 1e6):.2f} x the paper's figure"
        leasts.append(f"{model:6s}least plan {least / 1e6:.0f} MB: {ratios}, at {at_its:.2f} x its step")
        for budget in (megabytes * 10**6, 512 << 20, 384 << 20, least * 105 // 100):
            print(line(problem, model, budget, effort), flush=True)
    print(*leasts, sep="\n")


def wider_cases(device: Device, effort: Effort) -> None:
    """Every catalogue model, longer and wider."""
    for model in CATALOGUE:
        for seq_len, batch_size in WIDER:
            problem = pose(graph_of(model, seq_len, batch_size), device)
            least = outside_arena(problem.graph, device) + least_plan(problem, 0, effort).arena_bytes
            print(line(problem, f"{model} {seq_len}x{batch_size}", least * 3 // 2, effort), flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--wider", action="store_true", help="the catalogue with longer sequences too")
    given = parser.parse_args()
    effort = Effort(deterministic_s=given.seconds / SEARCH_SHARE, wall_s=3 * given.seconds)
    titles = zip(
        ("instance", "MB", "status", "step s", "gap", "whole", "s", "arena", "x mebp", "x mesp", "greedy"), WIDTHS, strict=True
    )
    print("".join(f"{title:>{width}s}" for title, width in titles))
    device = load_device("iphone15promax")
    paper_cases(device, effort)
    if given.wider:
        wider_cases(device, effort)


if __name__ == "__main__":
    main()
