"""Predicted beside measured, for a person: memory, time, and time by part."""

from statistics import median
from typing import TYPE_CHECKING

from mebp.cli.unit import show_nbytes, show_ns
from mebp.executor.measure.worker import Measurement
from mebp.models.graph import Graph
from mebp.models.kind import KINDS
from mebp.models.op import Part
from mebp.plan import Compute, Engine, Plan
from mebp.sim.simulate import Prediction

if TYPE_CHECKING:
    from rich.console import Console


def print_run(console: "Console", plan: Plan, graph: Graph, predicted: Prediction, measured: Measurement) -> None:
    """Two tables and the losses."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    w = graph.workload
    console.print(f"{plan.name} of {graph.config.name}, {w.batch_size} x {w.seq_len} tokens, on this machine", markup=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for title in ("predicted", "measured", "off by"):
        table.add_column(title, justify="right", no_wrap=True)
    for cells in (*_memory_rows(plan, graph, predicted, measured), *_time_rows(plan, graph, predicted, measured)):
        table.add_row(*cells)
    console.print(table)
    console.print(
        f"file-backed, beside the peak: {show_nbytes(measured.file_bytes)} resident (libraries, weights, spill file)",
        markup=False,
    )
    steps = ", ".join(show_ns(seconds * 1e9) for seconds in measured.step_s)
    console.print(f"steps {steps}; loss {measured.loss[0]:.4f} -> {measured.loss[-1]:.4f}", markup=False)
    if measured.floor_s:
        ratio = median(measured.step_s) / measured.floor_s
        floor = f"{show_ns(measured.floor_s * 1e9)}, this step {ratio:.2f} x"
        console.print(f"floor (the step's dense products alone, forward and backward once): {floor}", markup=False)
    if measured.gradients:
        check = measured.gradients
        console.print(
            f"gradients against autograd: cosine {check.cosine:.6f}, worst relative error {check.max_relative_error:.1e}",
            markup=False,
        )


def _memory_rows(plan: Plan, graph: Graph, predicted: Prediction, measured: Measurement) -> list[tuple[str, ...]]:
    baseline = predicted.peak_breakdown["runtime baseline"]
    above = predicted.peak_bytes - baseline
    return [
        _row("arena", plan.arena_bytes, measured.arena_bytes, show_nbytes),
        _row("anonymous memory above the import", above, measured.peak_bytes - measured.baseline_bytes, show_nbytes),
        _row("anonymous memory, whole process", predicted.peak_bytes, measured.peak_bytes, show_nbytes),
    ]


def _time_rows(plan: Plan, graph: Graph, predicted: Prediction, measured: Measurement) -> list[tuple[str, ...]]:
    rows = [_row("step, median", predicted.step_ns, round(median(measured.step_s) * 1e9), show_ns)]
    expected, found = merged(predicted), measured_parts(plan, graph, measured)
    rows += [_row(f"  {name}", expected.get(name, 0), found.get(name, 0), show_ns) for name in expected]
    return rows


def merged(predicted: Prediction) -> dict[str, int]:
    """Predicted time by part as the executor can measure it: streamed unpacking lies within the products' own time."""
    found = {"products and unpacking": 0, "head": 0, "attention": 0, "element-wise": 0, "other": 0}
    for part, ns in predicted.time_breakdown.items():
        found[_measurable(part)] += ns
    return found


def measured_parts(plan: Plan, graph: Graph, measured: Measurement) -> dict[str, int]:
    """Measured time by part, medians over the last steps; and other: what lay between instructions in the last one."""
    found: dict[str, int] = dict.fromkeys(("products and unpacking", "head", "attention", "element-wise", "other"), 0)
    for instruction, ns in zip(plan.instructions, measured.durations_ns, strict=True):
        if instruction.engine is Engine.COMPUTE:
            part = KINDS[graph.op[instruction.op].kind].part if isinstance(instruction, Compute) else Part.UNPACK
            found[_measurable(part)] += ns
    between_ns = round(measured.step_s[-1] * 1e9) - sum(end - start for start, end in _processor_spans(plan, measured))
    found["other"] += max(0, between_ns)
    return found


def _processor_spans(plan: Plan, measured: Measurement) -> list[tuple[int, int]]:
    spans = zip(plan.instructions, measured.spans_ns, strict=True)
    return [span for instruction, span in spans if instruction.engine is Engine.COMPUTE]


def _measurable(part: Part) -> str:
    match part:
        case Part.PRODUCTS | Part.UNPACK:
            return "products and unpacking"
        case Part.HEAD | Part.ATTENTION | Part.ELEMENTWISE:
            return part.value
        case _:
            return "other"


def _row(name: str, predicted: int, measured: int, show: object) -> tuple[str, ...]:
    assert callable(show)
    off = f"{measured / predicted - 1:+.1%}" if predicted else "-"
    return name, show(predicted), show(measured), "exact" if predicted == measured else off
