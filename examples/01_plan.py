"""Plan a 4B model for an iPhone: the paper's recipe, the best fixed one, and the solved plan."""

from mebp import Lora, Workload, build_graph, load_device, load_model, tradeoff, weight_formats

graph = build_graph(load_model("4b"), Workload(seq_len=256, lora=Lora(rank=8), weights=weight_formats("int4-g64")))
device = load_device("iphone15promax")
found = tradeoff(graph, device, budget_bytes=500_000_000)

for name in ("mebp", "checkpoint-1"):
    row = found.row(name)
    assert row is not None
    print(f"{name:13s} {row.prediction.peak_bytes / 1e6:5.0f} MB {row.prediction.step_ns / 1e9:6.2f} s per step, fits: {row.fits}")

solved, paper = found.chosen, found.row("mebp")
assert solved is not None
assert paper is not None
print(f"chosen: {solved.name}, within the budget: {solved.prediction.peak_bytes <= 500_000_000}")
print(f"faster than the paper's recipe: {solved.prediction.step_ns < paper.prediction.step_ns}")
print(f"bound holds: {solved.plan.solver is not None and solved.plan.solver.bound_ns <= solved.prediction.step_ns}")
