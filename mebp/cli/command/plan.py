"""`mebp-plan plan`: the trade-off table, the chosen plan, the verdict."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mebp.cli.command.target import target_device
from mebp.cli.flag import CURVE_TIME_LIMIT, OUTPUT, Flag, FlagGroup, ModelFlags, ProfileFlags, SearchFlags, StepFlags, TargetFlags
from mebp.cli.screen import interruptible, note, require_apart, stdout, working
from mebp.errors import InfeasibleBudget, InputError, Interrupted, NoPlanInTime
from mebp.text import require_writable, shortened, write_file
from mebp.unit import show_nbytes, show_ns

if TYPE_CHECKING:
    from mebp.models.graph import Graph
    from mebp.planner.effort import Effort
    from mebp.planner.tradeoff import Tradeoff
    from mebp.sim.device import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Views(FlagGroup):
    """What else is shown."""

    verbose: Annotated[bool, Flag("--verbose", "-v", help="Explain the table's columns and rows.", rich_help_panel=OUTPUT)] = False
    sensitivity: Annotated[
        bool, Flag("--sensitivity", help="Rank the profile's numbers by what their ranges change.", rich_help_panel=OUTPUT)
    ] = False
    with_curve: Annotated[
        bool,
        Flag("--curve", "--frontier", help="Solve for a series of budgets too, as `mebp-plan curve` does.", rich_help_panel=OUTPUT),
    ] = False
    as_json: Annotated[bool, Flag("--json", help="Print JSON.", rich_help_panel=OUTPUT)] = False


def plan(
    model: ModelFlags,
    step: StepFlags,
    target: TargetFlags,
    profile: ProfileFlags,
    search: SearchFlags,
    views: Views,
    longest: Annotated[bool, Flag("--longest", help="Take the longest sequence that fits the budget, not --seq-len.")] = False,
    choose: Annotated[str | None, Flag("--plan", help="Take this row of the table, not the fastest that fits.")] = None,
    output: Annotated[Path | None, Flag("--output", "-o", help="Write the chosen plan to this JSON file.")] = None,
    trace: Annotated[Path | None, Flag("--trace", help="Write the predicted timeline as a Chrome trace.")] = None,
) -> None:
    """Compare fixed strategies with solved plans for a device, and choose one.

    The fastest exact row that fits is chosen: `-o` writes it, `show` explains it, `run` executes it on this machine.
    """
    require_apart({"-o": output, "--trace": trace}, [*model.files(), *target.files()])
    require_writable({"-o": output, "--trace": trace})
    if views.with_curve and views.as_json:
        raise InputError("--curve with --json: one document at a time: take `mebp-plan curve --json`")
    require_row(choose)
    graph = _graph(model, step)
    device = target_device(target, profile, graph.config, graph.workload)
    budget = target.budget_on(device, note)
    if longest:
        graph = _longest(graph, device, budget, search)
        device = target_device(target, profile, graph.config, graph.workload)
    effort = search.effort()
    found = _with_details(pick(solved(graph, device, budget, effort), choose), effort)
    _write(found, output, trace)
    _print(found, views)
    if found.chosen is not None and found.out_of_time:
        note("no solved plan was found in time, these are the others: raise --time-limit")
    if views.with_curve and not found.interrupted:
        from mebp.cli.command.curve import DEFAULT_POINTS, solve_curve  # noqa: PLC0415
        from mebp.cli.view.curve import print_curve  # noqa: PLC0415

        print_curve(stdout(), found.graph, device, budget, solve_curve(found.graph, device, budget, search, DEFAULT_POINTS))
    if output is not None:
        note(f"wrote {found.chosen.name} to {output}" if found.chosen else f"nothing fits: {output} was not written")
    raise typer.Exit(exit_code(found))


def _longest(graph: "Graph", device: "Device", budget: int, search: SearchFlags) -> "Graph":
    """The step with the longest sequence for which something fits."""
    from mebp.models.build import build_graph  # noqa: PLC0415
    from mebp.planner.knob import longest_sequence  # noqa: PLC0415
    from mebp.planner.tiling import tilings  # noqa: PLC0415

    effort = search.effort(default=CURVE_TIME_LIMIT)

    def work() -> "int | None":
        step = tilings(graph, device, effort)
        found = longest_sequence(graph, device, budget, step.footprint(step.least(budget, effort)), effort)
        return int(found.change.value) if found and found.change else None

    with working("looking for the longest sequence that fits"):
        length = interruptible(work, effort.stop)
    if effort.stop.asked:
        raise Interrupted("interrupted before the longest sequence was found")
    if length is None:
        raise InfeasibleBudget(f"no sequence of {graph.config.name} fits {show_nbytes(budget)}: raise --budget", budget, 0)
    note(f"the longest sequence that fits {show_nbytes(budget)}: --seq-len {length}")
    return build_graph(graph.config, replace(graph.workload, seq_len=length))


def _graph(model: ModelFlags, step: StepFlags) -> "Graph":
    from mebp.models.build import build_graph  # noqa: PLC0415

    found = model.found()
    return build_graph(found.config, step.workload(found.formats))


def require_row(name: str | None) -> None:
    """Refuse a row that no table has before there is one."""
    from mebp.planner.tradeoff import SUMMARIES  # noqa: PLC0415

    if name is not None and name.removesuffix("*") not in SUMMARIES:
        raise InputError(f"--plan = {shortened(repr(name))}: no such row: take one of {', '.join(SUMMARIES)}")


def solved(graph: "Graph", device: "Device", budget: int, effort: "Effort") -> "Tradeoff":
    """Plan the graph every way there is, with the search's progress on stderr."""
    from mebp.planner.tradeoff import tradeoff  # noqa: PLC0415  (the solver takes half a second to import)

    with working(f"planning {graph.config.name}") as status:
        begin = time.monotonic()

        def progress(step_ns: int, bound_ns: int) -> None:
            gap = max(0.0, 1 - bound_ns / step_ns) if step_ns else 0.0
            figures = f"step {show_ns(step_ns)}, bound {show_ns(bound_ns)}, gap {gap:.1%}"
            status.update(f"planning {graph.config.name}: {figures}, {time.monotonic() - begin:.0f} s")

        return interruptible(lambda: tradeoff(graph, device, budget, replace(effort, progress=progress)), effort.stop)


def pick(found: "Tradeoff", name: str | None) -> "Tradeoff":
    """The table with the row called `name` chosen, where one is named."""
    if name is None:
        return found
    try:
        return found.pick(name.removesuffix("*"))  # the table marks what is not exact
    except KeyError:
        if found.out_of_time:
            raise NoPlanInTime(f"no {name} plan was found in time: raise `time_limit`") from None
        raise InputError(f"--plan = {name!r}: no such row: take one of {', '.join(r.name for r in found.rows)}") from None


def _with_details(found: "Tradeoff", effort: "Effort") -> "Tradeoff":
    """The table with the range of its chosen plan, or, where nothing fits, with what would help."""
    from mebp.planner.tradeoff import remedies  # noqa: PLC0415
    from mebp.sim.uncertainty import uncertainty  # noqa: PLC0415

    row = found.chosen
    if row is not None:
        return replace(found, uncertainty=uncertainty(row.plan, row.graph, found.device))
    if found.out_of_time or found.interrupted:
        return found
    with working("looking for what would fit"):
        helps = interruptible(lambda: remedies(found, effort), effort.stop)
    return replace(found, remedies=helps, interrupted=effort.stop.asked)


def _write(found: "Tradeoff", output: Path | None, trace: Path | None) -> None:
    """Write the chosen plan and its trace, where a file is named."""
    row = found.chosen
    if row is None:
        return
    if trace is not None:
        from mebp.sim.trace import chrome_trace, predicted_track  # noqa: PLC0415

        write_file(trace, chrome_trace(row.plan, row.prediction, [predicted_track(row.plan, row.prediction)]))
    if output is not None:
        from mebp.plan import dump_plan  # noqa: PLC0415

        write_file(output, dump_plan(row.plan))


def _print(found: "Tradeoff", views: Views) -> None:
    if views.as_json:
        from mebp.cli.view.fields import tradeoff_json  # noqa: PLC0415

        typer.echo(tradeoff_json(found), nl=False)
        return
    from mebp.cli.view.tradeoff import print_sensitivity, print_tradeoff  # noqa: PLC0415

    print_tradeoff(stdout(), found, verbose=views.verbose)
    if views.sensitivity and found.uncertainty is not None:
        print_sensitivity(stdout(), found.uncertainty)


def exit_code(found: "Tradeoff") -> int:
    """0 fits, 1 does not, 3 no plan in time; Interrupted where Ctrl-C cut the search short."""
    if found.interrupted:
        raise Interrupted("interrupted: these are the best plans so far")
    if found.chosen is None and found.out_of_time:
        return 3
    return 0 if found.chosen is not None and found.chosen.fits else 1
