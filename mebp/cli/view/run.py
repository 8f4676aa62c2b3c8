"""A run for a person: predicted vs. measured memory, time, and time by part; and whether the gradients are autograd's."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from mebp.cli.view.grid import grid, print_grid
from mebp.models.op import Part
from mebp.plan import Compute, Engine
from mebp.sim.simulate import Prediction
from mebp.task.agreement import gradient_facts, gradients_agree
from mebp.task.host import made_elsewhere
from mebp.task.run import RunResult
from mebp.unit import show_nbytes, show_ns

if TYPE_CHECKING:
    from rich.console import Console

FAR = 0.2  # of a step: more than a quiet machine's predictions are off
OTHER_SPEED = 0.1  # relative; less is noise
PARTS = ("products and unpacking", "head", "attention", "element-wise", "other")


def print_run(console: "Console", result: RunResult) -> None:
    """A table, and lines for what is no pair of figures."""
    plan, measured, w = result.plan, result.measured, result.graph.workload
    name = result.graph.config.name
    console.print(f"{plan.name} of {name}, {w.batch_size} x {w.seq_len} tokens, on this machine", markup=False)
    if whose := made_elsewhere(plan):
        console.print(f"planned for {whose}; predicted here with this machine's profile", markup=False)
    table = grid("", right=("predicted", "measured", "error"))
    for cells in (*_memory_rows(result), *_time_rows(result)):
        table.add_row(*cells)
    print_grid(console, table)
    file_bytes = show_nbytes(measured.file_bytes)
    console.print(f"file-backed, not part of the peak: {file_bytes} resident (libraries, weights, spill file)", markup=False)
    if measured.unpacking:
        console.print(f"weights unpacked and multiplied: {measured.unpacking}", markup=False)
    steps = ", ".join(show_ns(seconds * 1e9) for seconds in measured.step_s)
    console.print(f"steps {steps}; loss {measured.loss[0]:.4f} -> {measured.loss[-1]:.4f}", markup=False)
    if measured.floor_s:
        ratio = result.step_s / measured.floor_s
        floor = f"{show_ns(measured.floor_s * 1e9)}; this step takes {ratio:.2f} x that"
        console.print(f"floor (the step's dense products alone, forward and backward once): {floor}", markup=False)
    if abs(result.speed - 1) > OTHER_SPEED:
        now = f"the machine is at {result.speed:.2f} x its speed at calibration, by its products after the run"
        judged = f"judged at that speed, the prediction is off by {result.time_error_at_its_speed:+.1%}"
        remedy = "; calibrate on a quiet machine" if abs(result.time_error_at_its_speed) > FAR else ""
        console.print(f"{now}: {judged}{remedy}", markup=False)
    if measured.gradients:
        agree = gradients_agree(w.precision, measured.gradients)
        verdict = "gradients agree with autograd's" if agree else "gradients do NOT agree with autograd's"
        facts = gradient_facts(w.precision, measured.gradients)
        console.print(f"{verdict}: {facts}", style="bold green" if agree else "bold red", markup=False)


def _memory_rows(result: RunResult) -> list[tuple[str, ...]]:
    predicted, measured = result.predicted, result.measured
    above = predicted.peak_bytes - predicted.peak_breakdown["runtime baseline"]
    return [
        _row("arena", result.plan.arena_bytes, measured.arena_bytes, show_nbytes),
        _row("anonymous memory above the import", above, measured.peak_bytes - measured.baseline_bytes, show_nbytes),
        _row("anonymous memory, whole process", predicted.peak_bytes, measured.peak_bytes, show_nbytes),
    ]


def _time_rows(result: RunResult) -> list[tuple[str, ...]]:
    predicted = result.predicted
    rows = [_row("step, median", predicted.step_ns, round(result.step_s * 1e9), show_ns)]
    expected, found = predicted_parts(predicted), measured_parts(result)
    return rows + [_row(f"  {name}", expected[name], found[name], show_ns) for name in PARTS]


def predicted_parts(predicted: Prediction) -> dict[str, int]:
    """Predicted time by part as the executor can measure it: streamed unpacking lies within the products' own time."""
    found = dict.fromkeys(PARTS, 0)
    for part, ns in predicted.time_breakdown.items():
        found[_measurable(part)] += ns
    return found


def measured_parts(result: RunResult) -> dict[str, int]:
    """Measured time by part, medians over the last steps, that of chunked ops as it was spent in the last one; and other: what lay
    between instructions there.
    """
    plan, measured = result.plan, result.measured
    found, chunked_ns = dict.fromkeys(PARTS, 0), 0
    for instruction, ns in zip(plan.instructions, measured.durations_ns, strict=True):
        if isinstance(instruction, Compute) and result.graph.op[instruction.op].chunks:
            chunked_ns += ns
        elif instruction.engine is Engine.COMPUTE:
            part = result.graph.op[instruction.op].kind.part if isinstance(instruction, Compute) else Part.UNPACK
            found[_measurable(part)] += ns
    for part, ns in measured.chunked_ns.items():
        found[_measurable(part)] += round(ns * chunked_ns / sum(measured.chunked_ns.values()))
    spans = zip(plan.instructions, measured.spans_ns, strict=True)
    busy_ns = sum(end - start for instruction, (start, end) in spans if instruction.engine is Engine.COMPUTE)
    found["other"] += max(0, round(measured.step_s[-1] * 1e9) - busy_ns)
    return found


def _measurable(part: Part) -> str:
    match part:
        case Part.PRODUCTS | Part.UNPACK:
            return "products and unpacking"
        case Part.HEAD | Part.ATTENTION | Part.ELEMENTWISE:
            return part.value
        case _:
            return "other"


def _row(name: str, predicted: int, measured: int, show: Callable[[float], str]) -> tuple[str, ...]:
    error = f"{measured / predicted - 1:+.1%}" if predicted else "-"
    return name, show(predicted), show(measured), "exact" if predicted == measured else error
