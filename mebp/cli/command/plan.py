"""`mebp-plan plan`: the trade-off table, the chosen plan, the verdict."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mebp.cli.request import Flag, Request
from mebp.cli.screen import note, require_apart, stdout, working, write_file
from mebp.cli.unit import show_ns
from mebp.errors import InputError, Interrupted
from mebp.sim.uncertainty import uncertainty

if TYPE_CHECKING:
    from mebp.planner.solver.search import Limits, Progress
    from mebp.planner.tradeoff import Row, Tradeoff
    from mebp.sim.device import Device

DEFAULT_DEVICE = "iphone15promax"
SEARCH_SHARE = 5.0  # wall seconds of --time-limit for each deterministic second of search, about
BACKSTOP = 3.0  # times --time-limit, by the wall clock, where a machine is too slow for the deterministic one


def plan(
    request: Request,
    output: Annotated[Path | None, Flag("--output", "-o", help="Write the chosen plan to this JSON file.")] = None,
    choose: Annotated[str | None, Flag("--plan", help="Take this row of the table, not the fastest that fits.")] = None,
    trace: Annotated[Path | None, Flag("--trace", help="Write the predicted timeline as a Chrome trace.")] = None,
    sensitivity: Annotated[bool, Flag("--sensitivity", help="Rank the profile's numbers by what their ranges change.")] = False,
    with_frontier: Annotated[bool, Flag("--frontier", help="Show the frontier too, solved, as `mebp-plan frontier` does.")] = False,
    as_json: Annotated[bool, Flag("--json", help="Print JSON.")] = False,
) -> None:
    """Compare fixed strategies with solved plans for a device, and choose one."""
    require_apart(request, {"-o": output, "--trace": trace})
    if with_frontier and as_json:
        raise InputError("--frontier with --json: one document at a time: take `mebp-plan frontier --json`")
    found = search(request, request.device(DEFAULT_DEVICE))
    row = pick(found, choose)
    found = replace(found, chosen=row, uncertainty=uncertainty(row.plan, row.graph, found.device) if row else None)
    if row is None and not found.out_of_time and not found.interrupted:
        from mebp.planner.tradeoff import remedies  # noqa: PLC0415  (the solver takes half a second to import)

        with working("looking for what would fit"):
            found = replace(found, remedies=remedies(found, search_limits(request)))
    if trace is not None and row is not None:
        from mebp.sim.trace import chrome_trace, predicted_track  # noqa: PLC0415

        write_file(trace, chrome_trace(row.plan, row.prediction, [predicted_track(row.plan, row.prediction)]))
    if output is not None and row is not None:
        from mebp.plan import dump_plan  # noqa: PLC0415

        write_file(output, dump_plan(row.plan))
    if as_json:
        from mebp.cli.view.fields import tradeoff_json  # noqa: PLC0415

        typer.echo(tradeoff_json(found), nl=False)
    else:
        from mebp.cli.view.table import print_tradeoff  # noqa: PLC0415

        print_tradeoff(stdout(), found)
        if sensitivity and found.uncertainty is not None:
            from mebp.cli.view.table import print_sensitivity  # noqa: PLC0415

            print_sensitivity(stdout(), found.uncertainty)
    if row is not None and found.out_of_time:
        note("no solved plan was found in time, these are the others: raise --time-limit")
    if with_frontier and not found.interrupted:
        from mebp.cli.command.curve import show_frontier  # noqa: PLC0415  (it takes this command's defaults)

        show_frontier(request, found.device, found.budget_bytes)
    if output is not None:
        note(f"wrote {row.name} to {output}" if row else f"nothing fits: {output} was not written")
    raise typer.Exit(exit_code(found))


def exit_code(found: "Tradeoff") -> int:
    """0 fits, 1 does not, 3 no plan in time; Interrupted where Ctrl-C cut the search short."""
    if found.interrupted:
        raise Interrupted("interrupted: these are the best plans so far")
    if found.chosen is None and found.out_of_time:
        return 3
    return 0 if found.chosen is not None and found.chosen.fits else 1


def search(request: Request, device: "Device") -> "Tradeoff":
    """Plan the request every way there is, with the search's progress on stderr."""
    graph = request.graph()
    budget = request.budget(device)
    from mebp.planner.tradeoff import tradeoff  # noqa: PLC0415  (the solver takes half a second to import)

    limits = search_limits(request)
    with working(f"planning {graph.config.name}") as status:
        begin = time.monotonic()

        def progress(name: str) -> "Progress":
            def report(step_ns: int, bound_ns: int) -> None:
                gap = max(0.0, 1 - bound_ns / step_ns) if step_ns else 0.0
                status.update(
                    f"{name}: step {show_ns(step_ns)}, bound {show_ns(bound_ns)}, gap {gap:.1%}, {time.monotonic() - begin:.0f} s"
                )

            return report

        return tradeoff(graph, device, budget, limits, progress)


def search_limits(request: Request) -> "Limits":
    """What --time-limit and --seed allow a search."""
    from mebp.planner.solver.search import Limits  # noqa: PLC0415

    seconds = request.time_limit_s
    return Limits(deterministic_s=seconds / SEARCH_SHARE, wall_s=BACKSTOP * seconds, seed=request.seed)


def pick(found: "Tradeoff", name: str | None) -> "Row | None":
    """The row called `name`, or the chosen one."""
    if name is None:
        return found.chosen
    row = found.row(name.removesuffix("*"))  # the table marks what is not exact
    if row is None:
        raise InputError(f"--plan = {name!r}: no such row: take one of {', '.join(r.name for r in found.rows)}")
    return row
