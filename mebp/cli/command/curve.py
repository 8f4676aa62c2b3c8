"""`mebp-plan curve`: step time against memory, as a table with bars, CSV or JSON, and what the next bytes would buy."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mebp.cli.command.target import target_device
from mebp.cli.flag import CURVE_TIME_LIMIT, Flag, ModelFlags, ProfileFlags, SearchFlags, StepFlags, TargetFlags
from mebp.cli.screen import interruptible, note, require_apart, stdout, working
from mebp.errors import InfeasibleBudget, InputError, Interrupted
from mebp.text import require_writable, write_file
from mebp.unit import show_nbytes

if TYPE_CHECKING:
    from mebp.cli.view.curve import Curve
    from mebp.models.graph import Graph
    from mebp.planner.curve import Point
    from mebp.planner.knob import Change, Knob
    from mebp.sim.device import Device

DEFAULT_POINTS = 8
MOST_POINTS = 64


def curve(
    model: ModelFlags,
    step: StepFlags,
    target: TargetFlags,
    profile: ProfileFlags,
    search: SearchFlags,
    num_points: Annotated[int, Flag("--points", help="Budgets to solve for.")] = DEFAULT_POINTS,
    output: Annotated[Path | None, Flag("--output", "-o", help="Write the points to this CSV file.")] = None,
    as_json: Annotated[bool, Flag("--json", help="Print JSON.")] = False,
) -> None:
    """Solve for a series of budgets: step time against memory, from the least budget found to where everything is kept."""
    from mebp.cli.view.curve import curve_json, points_csv, print_curve  # noqa: PLC0415
    from mebp.models.build import build_graph  # noqa: PLC0415

    if not 2 <= num_points <= MOST_POINTS:
        raise InputError(f"--points = {num_points}: must be between 2 and {MOST_POINTS}")
    require_apart({"-o": output}, [*model.files(), *target.files()])
    require_writable({"-o": output})
    named = model.found()
    graph = build_graph(named.config, step.workload(named.formats))
    device = target_device(target, profile, graph.config, graph.workload)
    budget = target.budget_on(device, note)
    found = solve_curve(graph, device, budget, search, num_points)
    if found.interrupted and not found.points:
        raise Interrupted("interrupted before the first point")
    if output is not None:
        write_file(output, points_csv(found.points))
        note(f"wrote {output}")
    if as_json:
        typer.echo(curve_json(budget, found))
    else:
        print_curve(stdout(), graph, device, budget, found)
    _require_complete(found, budget)


def _require_complete(found: "Curve", budget: int) -> None:
    """Say what is missing, and exit with its code."""
    if found.interrupted:
        raise Interrupted("interrupted: these are the points so far")
    if found.knobs and found.knobs[0].best_step_ns is None:
        least = show_nbytes(found.knobs[0].least_budget_bytes, up=True)
        note(f"nothing fits {show_nbytes(budget)}: the least budget found is {least}: raise --budget")
        raise typer.Exit(InfeasibleBudget.exit_code)


def solve_curve(graph: "Graph", device: "Device", budget: int, search: SearchFlags, num_points: int) -> "Curve":
    """The trade-off curve up to keep-all, or to `budget` where that is more, and what knobs change at `budget`, with progress on
    stderr.
    """
    from mebp.cli.view.curve import Curve, change_text  # noqa: PLC0415
    from mebp.planner.curve import curve as solve  # noqa: PLC0415  (the solver is slow to import)
    from mebp.planner.knob import knobs  # noqa: PLC0415
    from mebp.planner.tiling import tilings  # noqa: PLC0415

    effort = search.effort(default=CURVE_TIME_LIMIT)
    with working("posing the problem") as status:

        def ask(change: "Change | None") -> None:
            status.update(f"what if {change_text(change)}")

        def work() -> "tuple[tuple[Point, ...], tuple[Knob, ...]]":
            step = tilings(graph, device, effort)
            points = solve(step, effort, num_points, budget, lambda n: status.update(f"budget {n + 1} of {num_points}"))
            return points, knobs(graph, device, budget, effort, ask)

        points, changes = interruptible(work, effort.stop)
    return Curve(points=points, knobs=changes, interrupted=effort.stop.asked)
