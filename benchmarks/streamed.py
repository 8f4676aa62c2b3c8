"""A product with a compressed weight, streamed, vs. the dense bf16 product of its shape: python benchmarks/streamed.py

One layer of the 4b shape, whose up projection is 10240 x 2560, without an adapter on it, 256 tokens, run by the executor; between
steps, the same product with a bf16 weight by torch alone, as it is and whole. benchmarks/streamed.txt keeps what it printed.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from mebp import Lora, Workload, build_graph, load_device, load_model, weight_format
from mebp.executor.adapter import new_adapters
from mebp.executor.executor import Executor
from mebp.executor.measure.memory import fix_allocator
from mebp.plan import Compute
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.store.reader import open_store
from mebp.store.synthetic import synthesize

ROWS, COLS, TOKENS = 10240, 2560, 256
STEPS = 15
FORMATS = ("int4-g64", "int4-g32", "int8", "ternary")


def dense_s(x: torch.Tensor, factor: torch.Tensor) -> float:
    """Seconds of one product."""
    begin = time.perf_counter()
    torch.mm(x, factor)
    return time.perf_counter() - begin


def measured(fmt: str) -> dict[str, tuple[float, float]]:
    """(streamed, dense) median seconds of the forward product and of the one backward."""
    workload = Workload(seq_len=TOKENS, lora=Lora(targets=("q",)), weights=weight_format(fmt))
    graph = build_graph(replace(load_model("4b"), windows=(0,), vocab=1024), workload)
    plan = STRATEGIES["checkpoint-1"].plan(graph, load_device("iphone15promax"), 0)
    at = {
        kind: next(i for i, step in enumerate(plan.instructions) if isinstance(step, Compute) and step.op == op and step.streamed)
        for kind, op in (("forward", "0.up"), ("backward", "0.up.backward"))
    }
    weight, narrow, wide = (torch.randn(*shape).bfloat16() for shape in ((ROWS, COLS), (TOKENS, COLS), (TOKENS, ROWS)))
    found: dict[str, list[tuple[float, float]]] = {"forward": [], "backward": []}
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(synthesize(Path(folder) / "store", graph.config, workload.weights))
        executor = Executor(plan, graph, store, new_adapters(graph))
        ids = torch.randint(0, graph.config.vocab, (1, TOKENS))
        for _ in range(STEPS + 1):
            spans = executor.step(ids).spans_ns
            for kind, given, factor in (("forward", narrow, weight.T), ("backward", wide, weight)):
                start, end = spans[at[kind]]
                found[kind].append(((end - start) / 1e9, dense_s(given, factor)))
    return {kind: (median(a for a, _ in pairs[1:]), median(b for _, b in pairs[1:])) for kind, pairs in found.items()}


def main() -> None:
    """Print a row per format."""
    fix_allocator()
    torch.manual_seed(0)
    print(f"{ROWS} x {COLS}, {TOKENS} tokens, median of {STEPS}; dense: bf16 weight, the product alone")
    print(f"{'weights':10s}{'forward':>10s}{'dense':>10s}{'ratio':>7s}{'backward':>10s}{'dense':>10s}{'ratio':>7s}")
    for fmt in FORMATS:
        cells = [f"{a * 1e3:7.2f} ms{b * 1e3:7.2f} ms{a / b:7.2f}" for a, b in measured(fmt).values()]
        print(f"{fmt:10s}{''.join(cells)}")


if __name__ == "__main__":
    main()
