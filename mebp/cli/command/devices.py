"""`mebp-plan devices`: profiles, and what each of their numbers is worth."""

from typing import Annotated

import typer

from mebp.cli.help import Command
from mebp.cli.screen import note, stdout

app = typer.Typer(
    help="List device profiles, or show where a profile's numbers come from.",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def devices(context: typer.Context) -> None:
    """List device profiles, or show where a profile's numbers come from: `mebp-plan devices show NAME`."""
    if context.invoked_subcommand is not None:
        return
    from rich.markup import escape  # noqa: PLC0415

    from mebp.cli.view.grid import grid, print_grid  # noqa: PLC0415
    from mebp.errors import MebpError  # noqa: PLC0415
    from mebp.sim.profile import device_names, load_device  # noqa: PLC0415
    from mebp.unit import show_nbytes  # noqa: PLC0415

    table = grid("device", right=())
    table.add_column("what")
    for title in ("RAM", "app limit", "budget"):
        table.add_column(title, justify="right", no_wrap=True)
    for name in device_names():
        try:
            device = load_device(name)
        except MebpError as error:
            note(f"mebp-plan: {error}")
            continue
        hardware = device.hardware
        budget = show_nbytes(device.default_budget_bytes)
        table.add_row(name, escape(device.title), show_nbytes(hardware.ram_bytes), show_nbytes(hardware.app_limit_bytes), budget)
    print_grid(stdout(), table)


@app.command("show", cls=Command)
def show(name: Annotated[str, typer.Argument(help="Device name, or a profile's .toml file.")]) -> None:
    """Print every number of a profile with its kind and source."""
    from rich.markup import escape  # noqa: PLC0415

    from mebp.cli.view.grid import grid, print_grid  # noqa: PLC0415
    from mebp.plan import HOST  # noqa: PLC0415
    from mebp.sim.device import KEYS, MEASURED_BY_SHAPE  # noqa: PLC0415
    from mebp.sim.profile import load_device  # noqa: PLC0415
    from mebp.task.host import kernel_path  # noqa: PLC0415

    device = load_device(name)
    table = grid(title=escape(f"{device.name}: {device.title}"))
    table.add_column("entry", overflow="fold", no_wrap=not device.shapes)  # names of shapes are long
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("source", overflow="fold")
    by_shape = [f"{section}.{shape}" for section in MEASURED_BY_SHAPE for shape in getattr(device, section)]
    for key in (*KEYS, *by_shape):
        origin = device.sources[key]
        table.add_row(key, _value(device.value(key)), origin.kind, escape(origin.source))
    print_grid(stdout(), table)
    if device.name == HOST:
        stdout().print(f"weights unpacked and multiplied: {kernel_path()}", markup=False)


def _value(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e6 else f"{value:.4g}"
