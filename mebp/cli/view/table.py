"""The trade-off table, the five lines that explain a plan, and the verdict."""

import textwrap
from collections import Counter
from typing import TYPE_CHECKING

from mebp.cli.unit import show_count, show_nbytes, show_ns, show_number, show_range
from mebp.plan import Compute, Load, Plan, Store, Unpack
from mebp.planner.explain import counts, held_at_peak, kept_bytes
from mebp.planner.tradeoff import MORE_BYTES, SUMMARIES, Row, Tradeoff
from mebp.sim.simulate import Prediction
from mebp.sim.uncertainty import Uncertainty

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PAPER = "mebp"
BAR = 40
LARGEST = 3  # kinds of tensors at the peak that are named
LABEL = 11  # width of the labels of the explanation


def print_tradeoff(console: "Console", found: Tradeoff) -> None:
    """Title, table, explanation and verdict."""
    for line in header(found):
        console.print(line, markup=False)
    console.print(tradeoff_table(found))
    console.print(CAPTION, style="dim", markup=False)
    if found.chosen is not None:
        print_wrapped(console, explanation(found, found.chosen))
        console.print()
        print_outline(console, found)
    elif not found.out_of_time and not found.interrupted:
        print_wrapped(console, binding(found))
        console.print()
    fits = found.chosen is not None and found.chosen.fits
    console.print(verdict(found), style="bold green" if fits else "bold red", markup=False)


def print_outline(console: "Console", found: Tradeoff) -> None:
    """The step time that no plan beats, budget by budget, as bars of what it is above the last one's."""
    if not found.outline:
        return
    console.print("budget     step at best, by the solver's bound", style="dim", markup=False)
    steps = [corner.best_step_ns for corner in found.outline]
    fastest, slowest = min(steps), max(steps)
    for corner in found.outline:
        bar = "#" * round(BAR * (corner.best_step_ns - fastest) / max(1, slowest - fastest))
        line = f"{show_nbytes(corner.budget_bytes, up=True):>9}  {show_ns(corner.best_step_ns):>8}  {bar}"
        console.print(line, markup=False)
    console.print()


def print_wrapped(console: "Console", lines: list[str]) -> None:
    """Print labelled lines, continued under their text where the console is narrow."""
    for line in lines:
        console.print(textwrap.fill(line, console.width, subsequent_indent=" " * LABEL), markup=False)


def header(found: Tradeoff) -> list[str]:
    """What was planned, every input named."""
    w = found.graph.workload
    targets = "all linears" if len(w.lora.targets) == 7 else ",".join(w.lora.targets)
    return [
        f"{found.graph.config.name} on {found.device.title}, budget {show_nbytes(found.budget_bytes)}",
        f"{w.batch_size} x {w.seq_len} tokens, LoRA r={w.lora.rank} on {targets},"
        f" {w.weights.name} weights, {w.precision}, {w.optimizer}",
    ]


def tradeoff_table(found: Tradeoff) -> "Table":
    """A row a plan, the fastest first; times against the paper's recipe."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("  plan", "fits"):
        table.add_column(title, no_wrap=True)
    for title in ("peak", "step", "x mebp", "redone", "unpacked", "written"):
        table.add_column(title, justify="right", no_wrap=True)
    paper = found.row(PAPER)
    for row in sorted(found.rows, key=lambda row: (not row.plan.exact, row.prediction.step_ns)):
        style = "bold" if row is found.chosen else "" if row.fits and row.plan.exact else "dim"
        table.add_row(*_cells(row, paper, row is found.chosen), style=style)
    return table


CAPTION = """\
fits      yes, or what is too much: memory, or bytes written to flash
peak      footprint of the process, memory-mapped files not counted
x mebp    step time against the paper's, as released (Song & Tang, 2025)
redone    time a step spends recomputing
unpacked  weights decompressed a step
written   bytes a step writes to flash
mezo*     two forwards: not an exact gradient, for comparison
"""


def _cells(row: Row, paper: Row | None, chosen: bool) -> tuple[str, ...]:
    p = row.prediction
    ratio = f"{p.step_ns / paper.prediction.step_ns:.2f}" if paper else "-"
    return (
        f"{'> ' if chosen else '  '}{row.name}{'' if row.plan.exact else '*'}",
        fit_word(row),
        show_nbytes(p.peak_bytes),
        show_ns(p.step_ns),
        ratio,
        show_ns(p.recompute_ns) if p.recompute_ns else "-",
        show_count(p.unpacked_weights) if p.unpacked_weights else "-",
        show_nbytes(p.flash_written_bytes) if p.flash_written_bytes else "-",
    )


def fit_word(row: Row) -> str:
    """yes, or what is too much: memory, or bytes written to flash."""
    return "yes" if row.fits else "memory" if row.within_cap else "writes"


def explanation(found: Tradeoff, row: Row) -> list[str]:
    """The chosen plan in five lines."""
    lines = [f"{row.name}: {SUMMARIES[row.name]}", *plan_facts(row)]
    paper = found.row(PAPER)
    if paper is not None and paper is not row:
        ours, theirs = row.prediction, paper.prediction
        time, memory = ours.step_ns / theirs.step_ns, ours.peak_bytes / theirs.peak_bytes
        lines.append(f"  paper    {time:.2f} x the step time of its recipe, at {memory:.2f} x its memory: {_differs(row, paper)}")
    greedy = _against_greedy(found, row)
    more = found.more_saves_ns
    price = f"the next {MORE_BYTES >> 20} MiB would save at most {show_ns(more)}" if more is not None else ""
    facts = "; ".join(part for part in (price, greedy) if part)
    return lines + ([f"  budget   {facts}"] if facts else [])


def _differs(row: Row, paper: Row) -> str:
    """What a plan does otherwise than the paper's recipe."""
    ours, theirs = (counts(other.plan, other.prediction) for other in (row, paper))
    return (
        f"runs {ours.run_again} ops again, not {theirs.run_again}; stores {ours.stored} tensors, not {theirs.stored};"
        f" unpacks {show_count(ours.unpacked_weights)} weights, not {show_count(theirs.unpacked_weights)}"
    )


def binding(found: Tradeoff) -> list[str]:
    """What binds at the peak of the least plan."""
    least = found.least
    lower = [f"{knob.flags}: {show_nbytes(knob.least_budget_bytes, up=True)}" for knob in found.remedies]
    return [
        f"{least.name}: {SUMMARIES[least.name]}",
        f"  peak     {_peak(least)}",
        f"  remedy   the least budget would be at most, with {'; '.join(lower)}"
        if lower
        else "  remedy   none of the flags tried lowers the least budget much",
    ]


def _against_greedy(found: Tradeoff, row: Row) -> str:
    greedy = found.row("greedy")
    if greedy is None or greedy is row:
        return ""
    if not greedy.fits:
        return "greedy does not fit"
    faster = greedy.prediction.step_ns / row.prediction.step_ns - 1
    return f"{faster:.1%} faster than greedy" if faster >= 0.001 else "greedy ties"


def plan_facts(row: Row) -> list[str]:
    """What a plan saves, how it reads weights, where its memory peaks and where its time goes: a line each."""
    p = row.prediction
    gap = "" if row.gap is None or row.whole_gap is None else _gap(row.gap, row.whole_gap)
    return [
        f"  saves    {_saves(row)}",
        f"  weights  {_weights(row)}",
        f"  peak     {_peak(row)}",
        f"  time     {_top({part.value: ns for part, ns in p.time_breakdown.items()}, 4, show_ns)}{gap}",
    ]


def _peak(row: Row) -> str:
    """Where the peak is, by part, and the largest of what is live there."""
    p = row.prediction
    largest = ", ".join(f"{held.count} x {held.name} {show_nbytes(held.nbytes)}" for held in held_at_peak(row.graph, p)[:LARGEST])
    return f"{_top(dict(p.peak_breakdown), 4, show_nbytes)}; reached at {_where(row.plan, p)}, where most is {largest}"


def _gap(gap: float, whole: float) -> str:
    best = "the best of its class" if gap == 0 else f"within {max(gap, 0.0001):.2%} of the best of its class"
    return f"; {best}, {whole:.2%} of any plan's bound"


def _saves(row: Row) -> str:
    graph, plan = row.graph, row.plan
    again = [i for i in plan.instructions if isinstance(i, Compute) and i.recompute]
    stored = {i.tensor for i in plan.instructions if isinstance(i, Store)}
    loaded = sum(isinstance(i, Load) for i in plan.instructions)
    forward = [op for op in graph.ops if not op.backward]
    parts = [f"runs {len(again)} ops again, of {len(forward)} in forward" if again else "recomputes nothing"]
    if stored:
        parts.append(f"stores {len(stored)} tensors ({show_nbytes(row.prediction.flash_written_bytes)}), loads {loaded}")
    parts.append(f"keeps {show_nbytes(kept_bytes(row.plan, row.graph))} from forward to backward")
    return "; ".join(parts)


def _weights(row: Row) -> str:
    uses = Counter(
        "streamed" if i.streamed else "read unpacked"
        for i in row.plan.instructions
        if isinstance(i, Compute) and row.graph.op[i.op].weights
    )
    unpacks = sum(isinstance(i, Unpack) for i in row.plan.instructions)
    parts = [f"{count} uses {how}" for how, count in uses.items()]
    if unpacks:
        parts.append(f"{unpacks} unpacked whole")
    if row.plan.resident:
        size = sum(place.nbytes for place in row.plan.resident)
        parts.append(f"{len(row.plan.resident)} resident ({show_nbytes(size)})")
    return "; ".join(parts)


def _top(parts: dict[str, int], count: int, show: object) -> str:
    assert callable(show)
    largest = sorted(parts.items(), key=lambda item: -item[1])
    shown = [f"{name} {show(amount)}" for name, amount in largest[:count]]
    rest = sum(amount for _, amount in largest[count:])
    return ", ".join(shown + ([f"rest {show(rest)}"] if rest else []))


def _where(plan: Plan, prediction: Prediction) -> str:
    instruction = plan.instructions[prediction.peak_index]
    match instruction:
        case Compute():
            return str(instruction.op)
        case Unpack():
            return f"unpack {instruction.weight}"
        case Load():
            return f"load {instruction.place.tensor}"
        case _:
            return str(instruction.tensor)


def verdict(found: Tradeoff) -> str:
    """One line: fits or not, and by how much."""
    budget, row = found.budget_bytes, found.chosen
    if row is not None and row.fits:
        peak, ranges = row.prediction.peak_bytes, found.uncertainty
        sizes, times = ("", "")
        if ranges is not None:
            sizes, times = f" ({show_range(ranges.peak_bytes, show_nbytes)})", f" ({show_range(ranges.step_ns, show_ns)})"
        step = f"{show_ns(row.prediction.step_ns)}{times} a step"
        line = f"{row.name} peaks at {show_nbytes(peak)}{sizes} of {show_nbytes(budget)}, {step}"
        if not found.tight or ranges is None:
            return f"fits: {line}"
        measure = ranges.to_measure(lambda effect: effect.peak_bytes)
        surely = budget - (ranges.peak_bytes[1] - peak)
        return f"tight: {line}: measure {measure}, or plan for {show_nbytes(surely)}"
    if row is not None:
        much = (
            show_nbytes(row.prediction.peak_bytes)
            if row.within_cap
            else f"{show_nbytes(row.prediction.flash_written_bytes)} of writes"
        )
        return f"does not fit: {row.name} takes {much}; leave --plan out for the fastest plan that fits, or raise --budget"
    return refusal(found)


def print_sensitivity(console: "Console", found: Uncertainty) -> None:
    """A row a number whose range changes the prediction: the range, and the peak and step at its ends."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("number", "kind"):
        table.add_column(title, no_wrap=True)
    for title in ("range", "step", "peak"):
        table.add_column(title, justify="right", no_wrap=True)
    for effect in found.effects:
        peaks, steps = ((min(pair), max(pair)) for pair in (effect.peak_bytes, effect.step_ns))
        if peaks[0] != peaks[1] or steps[0] != steps[1]:
            step = show_range(steps, show_ns) if steps[0] != steps[1] else "-"
            peak = show_range(peaks, show_nbytes) if peaks[0] != peaks[1] else "-"
            table.add_row(effect.key.partition(".")[2], effect.source.kind, show_range(effect.values, show_number), step, peak)
    console.print(table)
    console.print(
        "the same plan, timed again with one number at the ends of its range: the profile's own, or 5% for what was measured,"
        " 10% for a vendor's, 30% for what is assumed; the verdict's ranges take them as independent of each other",
        style="dim",
        markup=False,
    )


def refusal(found: Tradeoff) -> str:
    """Why nothing is chosen, and what would do."""
    least = f"{show_nbytes(found.least_budget_bytes, up=True)} ({found.least_budget_bytes} bytes)"
    budget, limit = show_nbytes(found.budget_bytes), int(found.device.hardware.app_limit_bytes)
    if found.out_of_time or found.interrupted:
        unknown = f"no plan for {budget} found in time, nor a proof that there is none"
        return f"{unknown}; {least} is known to do: raise --time-limit"
    refusal = f"does not fit {budget}: the least feasible budget is {least}"
    w = found.graph.workload
    lower = "lower --seq-len, --batch-size or --lora-r" if w.batch_size > 1 else "lower --seq-len or --lora-r"
    if found.least_budget_bytes > limit:
        return f"{refusal}, more than the {show_nbytes(limit)} that {found.device.name} gives an app; {lower}"
    return f"{refusal}; {lower}, or raise --budget"
