"""`mebp-plan compare`: devices and models in one table, or plan files."""

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mebp.cli.command.plan import solved
from mebp.cli.command.show import load_row
from mebp.cli.command.target import target_device
from mebp.cli.flag import DEFAULT_DEVICE, DEFAULT_MODEL, Flag, ProfileFlags, SearchFlags, StepFlags, TargetFlags
from mebp.cli.screen import note, stdout
from mebp.errors import InputError, Interrupted

if TYPE_CHECKING:
    from mebp.planner.tradeoff import Tradeoff


def compare(
    step: StepFlags,
    profile: ProfileFlags,
    search: SearchFlags,
    plan_files: Annotated[list[Path] | None, typer.Argument(metavar="[PLAN.json]...", help="Plan files to compare.")] = None,
    model: Annotated[list[str] | None, Flag("--model", "-m", help="A model; repeatable.")] = None,
    device: Annotated[
        list[str] | None, Flag("--device", "-d", help="A device; repeatable. With plan files: time them on it.")
    ] = None,
    budget: Annotated[str | None, Flag("--budget", "-b", help="Footprint allowed. Default: each device's own.")] = None,
    as_json: Annotated[bool, Flag("--json", help="Print JSON.")] = False,
) -> None:
    """Compare devices and models, or plan files, in one table.

    mebp-plan compare -m 0.5b -m 4b -d iphone15promax -d pixel8: what fits where, how much it needs, how fast it is at best.
    """
    if plan_files:
        _compare_plans(plan_files, model, device, as_json)
        return
    from mebp.cli.view.compare import print_tables, tables_json  # noqa: PLC0415

    if not model and not device:
        raise InputError("nothing to compare: name models and devices (-m, -d; each repeatable), or plan files")
    tables = _plan_each(step, profile, search, model or [DEFAULT_MODEL], device or [DEFAULT_DEVICE], budget)
    if as_json:
        typer.echo(tables_json(tables), nl=False)
    else:
        print_tables(stdout(), tables)
    if any(table.out_of_time for table in tables):
        note("no solved plan was found in time for some of these: raise --time-limit")
    if any(table.interrupted for table in tables):
        raise Interrupted("interrupted: these are the rows so far")
    if not any(table.chosen for table in tables):
        raise typer.Exit(1)


def _plan_each(
    step: StepFlags,
    profile: ProfileFlags,
    search: SearchFlags,
    models: list[str],
    devices: list[str],
    budget: str | None,
) -> "list[Tradeoff]":
    """A trade-off table for every model on every device; all names are looked up before the first search."""
    from mebp.models.build import build_graph  # noqa: PLC0415
    from mebp.task.model import find_model  # noqa: PLC0415

    targets = [TargetFlags(device=name, budget=budget) for name in devices]
    named = [find_model(name) for name in models]
    graphs = [build_graph(found.config, step.workload(found.formats)) for found in named]
    asked = [(g, t, target_device(t, profile, g.config, g.workload)) for g, t in product(graphs, targets)]
    tables: list[Tradeoff] = []
    for graph, target, loaded in asked:
        tables.append(solved(graph, loaded, target.budget_on(loaded, note), search.effort()))
        if tables[-1].interrupted:
            break
    return tables


def _compare_plans(paths: list[Path], models: list[str] | None, devices: list[str] | None, as_json: bool) -> None:
    """Plan files in one table, each on its own device or all on one."""
    from mebp.cli.view.compare import plans_json, print_plans  # noqa: PLC0415

    if models:
        raise InputError("--model with plan files: a plan is for one model: leave it out")
    if devices and len(devices) > 1:
        raise InputError("--device with plan files: name one device to time them all on")
    rows = [load_row(path, devices[0] if devices else None) for path in paths]
    if as_json:
        typer.echo(plans_json(paths, rows), nl=False)
    else:
        print_plans(stdout(), paths, rows)
