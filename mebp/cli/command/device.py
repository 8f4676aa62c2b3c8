"""`mebp-plan devices` and `mebp-plan calibrate`: profiles, what each number is worth, and this machine's own."""

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mebp.cli.command.validate import PAPER_DEVICE, calibrate_from
from mebp.cli.request import Flag, Request
from mebp.cli.screen import note, require_apart, stdout, working, write_file
from mebp.cli.unit import show_nbytes
from mebp.errors import InputError, MebpError, ProfileError
from mebp.models.config import ModelConfig
from mebp.models.kind import LINEAR_KINDS
from mebp.models.workload import Workload
from mebp.sim.device import KEYS, SHAPES, Device
from mebp.sim.profile import device_names, dump_device, load_device, user_device_dir
from mebp.sim.shape import remember

if TYPE_CHECKING:
    from mebp.models.graph import Graph
    from mebp.task.calibrate import Plans

app = typer.Typer(help="List device profiles, or show where a profile's numbers come from.", rich_markup_mode=None)
HOST = "host"


@app.callback(invoke_without_command=True)
def devices(context: typer.Context) -> None:
    """List device profiles, or show where a profile's numbers come from."""
    if context.invoked_subcommand is not None:
        return
    from rich import box  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("device", no_wrap=True)
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
    stdout().print(table)


@app.command("show")
def show(name: Annotated[str, typer.Argument(help="Device name, or a profile's .toml file.")]) -> None:
    """Print every number of a profile with its kind and source."""
    from rich import box  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    device = load_device(name)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=escape(f"{device.name}: {device.title}"), title_justify="left")
    table.add_column("entry", overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("source", overflow="fold")
    for key in (*KEYS, *(f"{SHAPES}.{shape}" for shape in device.shapes)):
        origin = device.sources[key]
        table.add_row(key, _value(device.value(key)), origin.kind, escape(origin.source))
    stdout().print(table)


def _value(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e6 else f"{value:.4g}"


def calibrate(
    request: Request,
    output: Annotated[Path | None, Flag("--output", "-o", help="Write the profile here, not as device `host`.")] = None,
    spill_dir: Annotated[Path | None, Flag("--spill-dir", help="Folder on the flash to measure.")] = None,
    measurements: Annotated[
        Path | None,
        Flag("--from", help="Fit --device's runtime to a CSV instead: model,method,seq_len,lora_r,peak_mb,step_s."),
    ] = None,
) -> None:
    """Measure this machine at the shapes of a model, and keep the result as device `host`; or fit a phone to measurements."""
    if measurements is not None:
        if output is None:
            raise InputError("--from needs -o PROFILE.toml: the fitted profile is written there")
        require_apart(request, {"--from": measurements, "-o": output})
        calibrate_from(measurements, request.device_name or PAPER_DEVICE, output)
        return
    if refused := sorted(request.given & {"device", "budget", "set"}):
        raise InputError(f"calibrate measures this machine: leave --{refused[0]} out, or fit a phone to a CSV with --from")
    target = output or user_device_dir() / f"{HOST}.toml"
    _require_writable(target, spill_dir)
    device = measure_host(request.config, request.workload, spill_dir, target)
    runtime = device.runtime
    typer.echo(f"{device.title}\nwrote {target}")
    products = device.hardware.product_flops * runtime.product_fraction / 1e9
    typer.echo(f"products {products:.0f} GFLOP/s, unpacking {runtime.unpack_rate / 1e9:.2f} G weights/s")


def _require_writable(target: Path, spill_dir: Path | None) -> None:
    """Refuse, before anything is measured, what could not be kept or measured."""
    if spill_dir is not None and not spill_dir.is_dir():
        raise InputError(f"--spill-dir {spill_dir}: no such folder: make it, or leave the flag out")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}: name another file with -o") from None
    if target.exists() and not target.is_file():
        raise InputError(f"cannot write {target}: it is no file: name another with -o")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise InputError(f"cannot write {target}: permission denied: name another file with -o")


def measure_host(config: ModelConfig, workload: Workload, spill_dir: Path | None, target: Path) -> Device:
    """Calibrate, and keep the profile in `target` where that can be written; the measurement is not lost where it cannot. What the
    profile of this machine knows of other models' shapes stays.
    """
    device = calibrated(config, workload, spill_dir)
    with suppress(ProfileError):  # none yet, or one that no longer reads: this one takes its place
        device = remember(device, load_device(HOST))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_file(target, dump_device(device))
    except (OSError, InputError) as error:
        note(f"mebp-plan: the profile is not kept: {error}")
    return device


def calibrated(config: ModelConfig, workload: Workload, spill_dir: Path | None) -> Device:
    """Measure this machine at a model's shapes, with progress on stderr."""
    from mebp.task.calibrate import calibrate as measure  # noqa: PLC0415  (torch)

    with working("calibrating this machine") as status:
        return measure(config, workload, calibration_plans, lambda what: status.update(f"calibrating: {what}"), spill_dir)


def calibration_plans(graph: "Graph") -> "Plans":
    """What calibration runs: recipes that do not depend on the device, so any profile will do."""
    from mebp.planner.recipe.lower import lower  # noqa: PLC0415
    from mebp.planner.recipe.recipe import Unpacking  # noqa: PLC0415
    from mebp.planner.recipe.strategies import STRATEGIES  # noqa: PLC0415
    from mebp.planner.solver.problem import head_tiles  # noqa: PLC0415
    from mebp.task.calibrate import Plans  # noqa: PLC0415

    device = load_device("iphone15promax")
    streamed = STRATEGIES["checkpoint-1"]
    unpacking = {weight: Unpacking.RESIDENT for op in graph.ops if op.kind in LINEAR_KINDS for weight in op.weights}
    resident = replace(streamed.recipe(graph, device, 0), unpacking=unpacking, head_tile=min(head_tiles(graph)))
    return Plans(
        streamed=streamed.plan(graph, device, 0),
        resident=lower(graph, device, resident, name="resident", budget_bytes=0),
        whole=STRATEGIES["mesp"].plan(graph, device, 0),
    )
