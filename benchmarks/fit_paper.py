"""Fit the runtime of `iphone15promax` to the paper's table, and print the error of every figure: python benchmarks/fit_paper.py

Twenty figures (Song & Tang, 2025, arXiv 2510.03425, Table 1 as read in vatsal191201/AutoANE; sequence length 256 is inferred):
step time and peak memory of MeZO and MeBP for five models. Times are linear in seconds per FLOP of forward products, of backward
products and of the head, so these are fitted by non-negative least squares on relative errors. Unpacking is proportional to forward
products here, so the figures cannot tell the two apart: 37% of a layer's forward is taken for it, the middle of the 32-42% that
readers of the paper report. The footprint is the least that any figure leaves unexplained, what all ten have in common; the
rest of the difference is what that implementation holds besides.
"""

from itertools import combinations

import numpy as np

from mebp.models.build import build_graph
from mebp.models.catalogue import load_model
from mebp.models.format import weight_format
from mebp.models.graph import Graph
from mebp.models.kind import KINDS, Part
from mebp.models.workload import Lora, Workload
from mebp.plan import Compute, Plan
from mebp.planner.strategies import STRATEGIES
from mebp.sim.device import Device, load_device
from mebp.sim.simulate import simulate

PAPER = {  # model: {method: (seconds, MB)}
    "0.5b": {"mezo": (2.680, 319), "mebp": (3.850, 320)},
    "1.5b": {"mezo": (5.470, 452), "mebp": (9.090, 460)},
    "3b": {"mezo": (10.280, 554), "mebp": (17.960, 662)},
    "1b": {"mezo": (4.880, 564), "mebp": (9.480, 569)},
    "4b": {"mezo": (16.860, 962), "mebp": (28.580, 1029)},
}
UNPACK_SHARE = 0.37  # of the time of a layer's forward
FLOPS_PER_WEIGHT = 2 * 256
ATTENTION_SHARE = 0.5  # attained by attention, as a part of what products attain


def work(plan: Plan, graph: Graph) -> tuple[float, float, float]:
    """FLOPs of forward and of backward products (attention's counted by its share, as forward), and of the head."""
    products = backward = head = 0.0
    for instruction in plan.instructions:
        if isinstance(instruction, Compute):
            op = graph.op[instruction.op]
            flops = KINDS[op.kind].flops(op)
            match KINDS[op.kind].part:
                case Part.HEAD:
                    head += flops
                case Part.ATTENTION:
                    products += flops / ATTENTION_SHARE
                case _ if op.backward:
                    backward += flops
                case _:
                    products += flops
    return products, backward, head


def non_negative(A: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Least squares with x >= 0: the best of the solutions on every subset of columns (there are seven)."""
    best, best_error = np.zeros(A.shape[1]), float("inf")
    for count in range(1, A.shape[1] + 1):
        for columns in combinations(range(A.shape[1]), count):
            x = np.zeros(A.shape[1])
            x[list(columns)] = np.linalg.lstsq(A[:, columns], b, rcond=None)[0]
            error = float(((A @ x - b) ** 2).sum())
            if (x >= 0).all() and error < best_error:
                best, best_error = x, error
    return best


def constants(x: np.ndarray, peak: float) -> dict[str, float]:
    """The profile's entries: each pass over a weight takes its unpacking time and, in what is left, its product."""
    forward, backward, head = (FLOPS_PER_WEIGHT * seconds for seconds in x)  # seconds a weight
    unpack = UNPACK_SHARE * forward
    passes = {
        "product_fraction": forward - unpack,
        "backward_fraction": backward - unpack,
        "head_fraction": head - unpack,
    }
    return {name: FLOPS_PER_WEIGHT / seconds / peak for name, seconds in passes.items()} | {"unpack_rate": 1 / unpack}


def main() -> None:
    """Fit, and print constants and errors."""
    device: Device = load_device("iphone15promax")
    rows, seconds, others, footprints, names = [], [], [], [], []
    for model, figures in PAPER.items():
        base = build_graph(load_model(model), Workload(lora=Lora(), weights=weight_format("int4-g64")))
        for method, (time_s, memory_mb) in figures.items():
            strategy = STRATEGIES[method]
            graph = strategy.graph(base)
            plan = strategy.plan(graph, device, device.default_budget_bytes)
            prediction = simulate(plan, graph, device)
            small = sum(
                ns for part, ns in prediction.time_breakdown.items() if part in (Part.ELEMENTWISE, Part.LAUNCH, Part.UPDATE)
            )
            names.append(f"{model} {method}")
            rows.append(work(plan, graph))
            seconds.append(time_s)
            others.append(small / 1e9)
            footprints.append(memory_mb * 1e6 - (prediction.peak_bytes - device.runtime.footprint_bytes))
    target = np.array(seconds)
    A = np.array(rows) / target[:, None]
    x = non_negative(A, (target - np.array(others)) / target)
    predicted = np.array(rows) @ x + np.array(others)
    rates = constants(x, device.hardware.product_flops)
    print(", ".join(f"{name} {value:.4g}" for name, value in rates.items()), f"footprint_bytes {min(footprints):.3g}")
    errors = predicted / target - 1
    for name, got, want, error in zip(names, predicted, seconds, errors, strict=True):
        print(f"{name:10s} {want:7.2f} s in the paper, {got:7.2f} s simulated, {error:+.1%}")
    print(f"mean absolute error of time {np.abs(errors).mean():.1%}")
    for name, rest in zip(names, footprints, strict=True):
        print(f"{name:10s} memory that the plan does not explain: {rest / 1e6:6.0f} MB")


if __name__ == "__main__":
    main()
