"""A product with a compressed weight, streamed, vs. the dense bf16 product of its shape: python benchmarks/streamed.py

One layer of a model, without adapters on its feed-forward, run by the executor; between steps, the same product with a bf16 weight
by torch alone, as it is and whole. benchmarks/streamed.txt keeps what it printed.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from mebp import Lora, Workload, build_graph, load_device, load_model, weight_formats
from mebp.executor.adapter import new_adapters
from mebp.executor.executor import Executor
from mebp.executor.measure.memory import fix_allocator
from mebp.kernel.library import library
from mebp.models.graph import Graph
from mebp.plan import Compute
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.store.reader import open_store
from mebp.store.synthetic import synthesize

MODELS = ("4b", "0.5b")
ROLES = ("up", "down")
CASES = (("int4-g64", 256), ("int4-g64", 1024), ("int4-g32", 256), ("int8", 256), ("ternary", 256))  # weights, tokens
STEPS = 15


def dense_s(x: torch.Tensor, factor: torch.Tensor, out: torch.Tensor) -> float:
    """Seconds of one product."""
    begin = time.perf_counter()
    torch.mm(x, factor, out=out)
    return time.perf_counter() - begin


def layer_graph(model: str, fmt: str, tokens: int) -> Graph:
    """The graph of one layer of the model."""
    workload = Workload(seq_len=tokens, lora=Lora(targets=("q",)), weights=weight_formats(fmt))
    return build_graph(replace(load_model(model), windows=(0,), vocab=1024), workload)


def measured(graph: Graph) -> dict[str, list[tuple[float, float]]]:
    """(streamed, dense) seconds of every product of ROLES, forward and backward, in every step."""
    plan = STRATEGIES["checkpoint-1"].plan(graph, load_device("iphone15promax"), 0)
    found: dict[str, list[tuple[float, float]]] = {f"0.{role}{way}": [] for role in ROLES for way in ("", ".backward")}
    at = {
        op: next(i for i, step in enumerate(plan.instructions) if isinstance(step, Compute) and step.op == op and step.streamed)
        for op in found
    }
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(synthesize(Path(folder) / "store", graph.config, graph.workload.weights))
        executor = Executor(plan, graph, store, new_adapters(graph))
        ids = torch.randint(0, graph.config.vocab, (1, graph.workload.seq_len))
        for _ in range(STEPS + 1):
            spans = executor.step(ids).spans_ns
            for op, pairs in found.items():
                dims = graph.op[op].dims
                weight, wide, narrow = (torch.randn(*s).bfloat16() for s in dense_shapes(dims.rows, dims.cols, dims.outs))
                backward = op.endswith("backward")
                start, end = spans[at[op]]
                dense = dense_s(wide, weight, narrow) if backward else dense_s(narrow, weight.T, wide)
                pairs.append(((end - start) / 1e9, dense))
    return {op: pairs[1:] for op, pairs in found.items()}


def dense_shapes(tokens: int, cols: int, outs: int) -> tuple[tuple[int, int], ...]:
    """Weight, what it makes, what it takes."""
    return (outs, cols), (tokens, outs), (tokens, cols)


def main() -> None:
    """Print a row per product, weight format and number of tokens."""
    fix_allocator()
    torch.manual_seed(0)
    print(f"{library().path}; median of {STEPS}; dense: bf16 weight, the product alone")
    print(
        f"{'weight':14s}{'format':10s}{'tokens':>7s}{'forward':>11s}{'dense':>11s}{'ratio':>7s}{'backward':>11s}{'dense':>11s}{'ratio':>7s}"
    )
    for model in MODELS:
        for fmt, tokens in CASES:
            graph = layer_graph(model, fmt, tokens)
            times = {op: (median(a for a, _ in pairs), median(b for _, b in pairs)) for op, pairs in measured(graph).items()}
            for role in ROLES:
                dims = graph.op[f"0.{role}"].dims
                both = (times[f"0.{role}"], times[f"0.{role}.backward"])
                cells = [f"{a * 1e3:8.2f} ms{b * 1e3:8.2f} ms{a / b:7.2f}" for a, b in both]
                print(f"{f'{dims.outs} x {dims.cols}':14s}{fmt:10s}{tokens:7d}{''.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
