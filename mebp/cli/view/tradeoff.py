"""The trade-off table, five lines about the chosen plan, and the verdict."""

from typing import TYPE_CHECKING

from mebp.cli.view.curve import change_text
from mebp.cli.view.grid import grid, print_grid
from mebp.cli.view.words import does, labelled, memory, print_wrapped, time, weights
from mebp.models.config import LINEARS
from mebp.plan import HOST
from mebp.planner.row import Row
from mebp.planner.tradeoff import MORE_BYTES, PAPER, SUMMARIES, Tradeoff, chosen_of
from mebp.sim.device import Device
from mebp.sim.uncertainty import Uncertainty
from mebp.unit import show_nbytes, show_ns, show_number, show_range

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

BAR = 40
STEPS = 1000  # that the flash's life is counted in
SAME = 0.001  # relative: two step times nearer than that tie

LEGEND = """\
fits       yes, tight (not at the upper end of its range), or what is too much: memory, or bytes written to flash
peak       footprint of the process; memory-mapped files do not count
step       predicted time of one training step
vs paper   that time relative to `mebp`, the paper's recipe as released (Song & Tang, 2025)
recompute  time per step spent on recomputing activations
written    bytes written to flash per step, and what 1,000 steps take of its rated life, where that is known
*          not an exact gradient, for comparison
"""


def print_tradeoff(console: "Console", found: Tradeoff, *, verbose: bool = False) -> None:
    """Title, table, explanation and verdict."""
    for line in header(found):
        console.print(line, markup=False)
    print_grid(console, tradeoff_table(found), keep=("fits",), drop=("recompute", "vs paper", "written"))
    if verbose:
        console.print(LEGEND + "\n".join(f"{row.name:<14}{SUMMARIES[row.name]}" for row in found.rows), style="dim", markup=False)
        console.print()
    if found.chosen is not None:
        print_wrapped(console, explanation(found, found.chosen))
        console.print()
        print_outline(console, found)
    elif not found.out_of_time and not found.interrupted:
        print_wrapped(console, what_binds(found))
        console.print()
    fits = found.chosen is not None and found.chosen.fits
    console.print(verdict(found), style="bold green" if fits else "bold red", markup=False)


def print_outline(console: "Console", found: Tradeoff) -> None:
    """The step time that no plan beats, budget by budget, as bars from 0."""
    if len({corner.best_step_ns for corner in found.outline}) < 2:
        return  # nothing to see: memory does not bind
    console.print("budget     no plan is faster than", style="dim", markup=False)
    slowest = max(corner.best_step_ns for corner in found.outline)
    for corner in found.outline:
        bar = "#" * round(BAR * corner.best_step_ns / max(1, slowest))
        line = f"{show_nbytes(corner.budget_bytes, up=True):>9}  {show_ns(corner.best_step_ns):>8}  {bar}"
        console.print(line[: console.width], markup=False)
    console.print()


def header(found: Tradeoff) -> list[str]:
    """What was planned, every input named."""
    w = found.graph.workload
    targets = "all linears" if len(w.lora.targets) == len(LINEARS) else ",".join(w.lora.targets)
    return [
        f"{found.graph.config.name} on {found.device.title}, budget {show_nbytes(found.budget_bytes)}",
        f"{w.batch_size} x {w.seq_len} tokens, LoRA r={w.lora.rank} on {targets},"
        f" {w.weights.name} weights, {w.precision}, {w.optimizer}",
    ]


def tradeoff_table(found: Tradeoff) -> "Table":
    """A row per plan, the fastest first; times relative to the paper's recipe."""
    chunks = any(row.graph.workload.chunk for row in found.rows)
    table = grid("  plan", "fits", right=("peak", "step", *(("chunk",) if chunks else ()), "vs paper", "recompute", "written"))
    paper = found.row(PAPER)
    for row in sorted(found.rows, key=lambda row: (not row.plan.exact, row.prediction.step_ns)):
        style = "bold" if row is found.chosen else "" if row.fits and row.plan.exact else "dim"
        table.add_row(*_cells(row, paper, found.device, row is found.chosen, chunks=chunks), style=style)
    return table


def _cells(row: Row, paper: Row | None, device: Device, chosen: bool, *, chunks: bool) -> tuple[str, ...]:
    p = row.prediction
    fits = "yes" if row.surely else "tight" if row.fits else "memory" if row.within_cap else "writes"
    return (
        f"{'> ' if chosen else '  '}{row.name}{'' if row.plan.exact else '*'}",
        fits,
        show_nbytes(p.peak_bytes),
        show_ns(p.step_ns),
        *((str(row.graph.workload.chunk or "-"),) if chunks else ()),
        f"{p.step_ns / paper.prediction.step_ns:.2f} x" if paper else "-",
        show_ns(p.recompute_ns) if p.recompute_ns else "-",
        _written(p.flash_written_bytes, device),
    )


def _written(nbytes: int, device: Device) -> str:
    """Bytes written, and what 1,000 steps of them take of the flash's rated life, where that is known."""
    life = device.hardware.flash_life_bytes
    share = f", {STEPS * nbytes / life:.2%}" if life else ""
    return f"{show_nbytes(nbytes)}{share}" if nbytes else "-"


def explanation(found: Tradeoff, row: Row) -> list[str]:
    """The chosen plan in five lines: what it does, what binds, what it costs, what to change; and what its times are of."""
    range_ns = found.uncertainty.step_ns if found.uncertainty else (row.prediction.step_ns,) * 2
    step = f"{show_ns(row.prediction.step_ns)} per step ({show_range(range_ns, show_ns)}): {time(row)}"
    return [
        labelled(row.name, does(row)),
        labelled("weights", weights(row)),
        labelled("memory", memory(row)),
        labelled("time", "; ".join(part for part in (step, _compared(found, row)) if part)),
        labelled("to change", what_to_change(found, row)),
        *_about_times(found),
    ]


def _compared(found: Tradeoff, row: Row) -> str:
    """How a plan's time compares with the paper's recipe and with greedy."""
    parts = []
    for name, what in ((PAPER, "the paper's recipe"), ("greedy", "greedy")):
        other = found.row(name)
        if other is None or other is row:
            continue
        faster = 1 - row.prediction.step_ns / other.prediction.step_ns
        if name == "greedy" and not other.fits:
            parts.append("greedy does not fit")
        elif abs(faster) < SAME:
            parts.append(f"as fast as {what}")
        else:
            parts.append(f"{abs(faster):.1%} {'faster' if faster > 0 else 'slower'} than {what}")
    return ", ".join(parts)


def what_to_change(found: Tradeoff, row: Row) -> str:
    """What more and less memory would do, and where the details are."""
    parts = []
    if found.more_saves_ns is not None:
        parts.append(f"{MORE_BYTES >> 20} MiB more memory saves at most {show_ns(found.more_saves_ns)} per step")
    if found.writing is not None:
        saved = f"{show_ns(found.writing.saves_ns)} ({found.writing.saves_ns / row.prediction.step_ns:.1%})"
        parts.append(f"writing {show_nbytes(found.writing.more_bytes)} more per step to flash saves {saved}")
    least = found.least
    if least is not row:
        parts.append(f"the least, {show_nbytes(least.prediction.peak_bytes, up=True)}, takes {show_ns(least.prediction.step_ns)}")
    return "; ".join([*parts, "`mebp-plan curve` shows both and other settings"])


def _about_times(found: Tradeoff) -> list[str]:
    """What the times are of, where the device is not this machine."""
    device = found.device
    if device.name == HOST:
        return []
    sustained = device.hardware.sustained_factor
    burst = f"burst times, {sustained:.0%} of the speed is sustained; " if sustained < 1 else ""
    if device.runs_torch:
        text = f"{burst}predicted for this executor: `mebp-plan run` on such a device measures it"
    else:
        text = f"{burst}no runtime for such a device is part of this tool: `mebp-plan run` executes plans on this machine"
    return [labelled("note", text)]


def what_binds(found: Tradeoff) -> list[str]:
    """What binds at the peak of the least plan, and what would lower it."""
    least = found.least
    budget = show_nbytes(found.budget_bytes)
    under = [f"{change_text(knob.change)} ({show_nbytes(knob.least_budget_bytes, up=True)})" for knob in found.remedies or ()]
    if found.remedies is None:
        remedy = "no time was left to look for settings that fit: raise --time-limit"
    elif under:
        remedy = f"each of these fits {budget}: {'; '.join(under)}"
    else:
        remedy = f"no setting that was tried fits {budget}"
    return [labelled(least.name, does(least)), labelled("memory", memory(least)), labelled("to change", remedy)]


def verdict(found: Tradeoff) -> str:
    """Does it fit? At least, at best, of how much."""
    row, budget = found.chosen, show_nbytes(found.budget_bytes)
    if row is None:
        return refusal(found)
    least = show_nbytes(found.least_budget_bytes, up=True)
    limit = show_nbytes(found.device.hardware.app_limit_bytes)
    peak = show_nbytes(row.prediction.peak_bytes)
    if not row.fits:
        much = peak if row.within_cap else f"{show_nbytes(row.prediction.flash_written_bytes)} of writes"
        return (
            f"does not fit: {row.name} takes {much} of {budget}; leave --plan out for the fastest plan that fits, or raise --budget"
        )
    what = "best" if row is _fastest(found) else row.name
    facts = f"needs {least} at least, {what} at {peak} of {budget}, app limit {limit}"
    if not found.tight:
        return f"fits: {facts}"
    sure = min(row.prediction.peak_bytes + row.margin_bytes for row in found.rows if row.plan.exact and row.within_cap)
    sizes = show_range((peak_low(found, row), row.prediction.peak_bytes + row.margin_bytes), show_nbytes)
    return (
        f"fits: {facts}; tight, since it may take {sizes}: --budget {show_nbytes(sure, up=True).replace(' ', '')} fits for certain"
    )


def peak_low(found: Tradeoff, row: Row) -> int:
    """The lower end of the range of the chosen row's peak."""
    return found.uncertainty.peak_bytes[0] if found.uncertainty else row.prediction.peak_bytes


def _fastest(found: Tradeoff) -> Row | None:
    """The row that would be chosen if none was asked for."""
    return chosen_of([row for row in found.rows if row.plan.exact])


def refusal(found: Tradeoff) -> str:
    """Why nothing is chosen, and what would do."""
    least = f"{show_nbytes(found.least_budget_bytes, up=True)} ({found.least_budget_bytes} bytes)"
    budget, limit = show_nbytes(found.budget_bytes), int(found.device.hardware.app_limit_bytes)
    if found.out_of_time or found.interrupted:
        unknown = f"no plan for {budget} found in time, nor a proof that there is none"
        return f"{unknown}; {least} is known to suffice: raise --time-limit"
    text = f"does not fit {budget}: the least budget found is {least}"
    runtime = int(found.device.runtime.footprint_bytes)
    if runtime >= found.budget_bytes:
        return f"{text}; the runtime alone takes {show_nbytes(runtime)}: raise --budget"
    if found.remedies:
        return f"{text}; {change_text(found.remedies[0].change)} fits, or raise --budget"
    if found.least_budget_bytes > limit:
        return f"{text}, more than the {show_nbytes(limit)} that {found.device.name} gives an app"
    return f"{text}: raise --budget"


def print_sensitivity(console: "Console", found: Uncertainty) -> None:
    """A row per number whose range changes the prediction: the range, and the peak and step at its ends."""
    table = grid("number", "kind", right=("range", "step", "peak"))
    for effect in found.effects:
        peaks, steps = ((min(pair), max(pair)) for pair in (effect.peak_bytes, effect.step_ns))
        if peaks[0] != peaks[1] or steps[0] != steps[1]:
            step = show_range(steps, show_ns) if steps[0] != steps[1] else "-"
            peak = show_range(peaks, show_nbytes) if peaks[0] != peaks[1] else "-"
            table.add_row(effect.key.partition(".")[2], effect.source.kind, show_range(effect.values, show_number), step, peak)
    print_grid(console, table)
    legend = (
        "the same plan, timed again with one number at the ends of its range: the profile's own, or 5% for what was measured,"
        " 10% for a vendor's, 30% for what is assumed; a prediction's range is the root-sum-square of these effects"
    )
    console.print(legend, style="dim", markup=False)
