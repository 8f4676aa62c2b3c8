"""Read a plan: the listing of one layer's step, checked, with the moment where memory peaks."""

from mebp import STRATEGIES, Lora, Workload, build_graph, load_device, load_model, simulate, weight_formats
from mebp.check import check
from mebp.plan import listing

graph = build_graph(load_model("smollm2-135m"), Workload(seq_len=64, lora=Lora(rank=4), weights=weight_formats("int4-g64")))
device = load_device("pixel8")
plan = STRATEGIES["checkpoint-1"].plan(graph, device, device.default_budget_bytes)
facts = check(plan, graph)  # raises InvalidPlan if any rule of the plan language were broken
prediction = simulate(plan, graph, device)

lines = list(listing(plan))
print("\n".join(lines[:9]))
print("...")
print(f"arena {plan.arena_bytes} bytes, live at most {facts.live_peak_bytes}, reached at {plan.instructions[facts.peak_index].op}")
for part, nbytes in prediction.arena_breakdown.items():
    print(f"  {part:22s}{nbytes:9d}")
