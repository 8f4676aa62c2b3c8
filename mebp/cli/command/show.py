"""`mebp-plan show`: explain a plan file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mebp.cli.flag import Flag
from mebp.cli.screen import note, stdout, working
from mebp.cli.spelling import spell
from mebp.errors import InputError, InvalidPlan

if TYPE_CHECKING:
    from mebp.planner.row import Row
    from mebp.sim.device import Device


def show(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN.json", help="A plan that `plan -o` wrote.")],
    device: Annotated[str | None, Flag("--device", "-d", help="Time it on this device; default: the one it was made for.")] = None,
    limit: Annotated[int, Flag("--limit", help="Lines of the listing; 0 for all.")] = 40,
) -> None:
    """Explain a plan: its peak, what becomes of its activations, memory over time, and the listing."""
    from mebp.cli.view.show import print_plan  # noqa: PLC0415

    if limit < 0:
        raise InputError(f"--limit = {limit}: must be 0 (all lines) or more")
    row, profile = load_row(plan_file, device)
    print_plan(stdout(), row, profile, limit)


def load_row(path: Path, device_name: str | None) -> "tuple[Row, Device]":
    """Read, check and simulate a plan file, on the device named or on its own; a note where there is no profile of its own."""
    from mebp.check import graph_of  # noqa: PLC0415
    from mebp.plan import read_plan  # noqa: PLC0415
    from mebp.sim.profile import load_device  # noqa: PLC0415
    from mebp.task.host import device_of  # noqa: PLC0415

    plan = read_plan(path)
    graph = graph_of(plan, str(path))
    device, whose = (load_device(device_name), None) if device_name else device_of(plan)
    if whose:
        note(f"{path} was {spell(whose)}")
    with working("loading"):
        from mebp.planner.row import row_of  # noqa: PLC0415  (the solver takes half a second to import)

    try:
        return row_of(plan, graph, device), device
    except InvalidPlan as error:
        raise InputError(f"{path}: {error}: plan again") from None
