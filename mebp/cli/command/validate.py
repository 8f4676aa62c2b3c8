"""`mebp-plan validate`: figures that somebody measured beside those of fitted constants, with and without each model, and beside
the simulator's on the profile; and `calibrate --from`, which writes those constants as a profile.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mebp.cli.request import Flag
from mebp.cli.screen import note, stdout, write_file
from mebp.cli.unit import show_nbytes, show_ns
from mebp.errors import InputError
from mebp.sim.profile import dump_device, load_device

if TYPE_CHECKING:
    from mebp.sim.device import Device
    from mebp.task.fit.fit import Fit
    from mebp.task.fit.measured import Measured

PAPER_DEVICE = "iphone15promax"
REMAINS = (
    "What remains: times follow the number of weights alone, and Gemma's smaller products and the Qwen models' larger ones attain"
    " different rates; the sequence length (256) and the second computation of the loss are inferred from the released code; how"
    " the implementation divides a layer's time between unpacking and products cannot be told from totals (37% is assumed)."
)


def validate(
    paper: Annotated[bool, Flag("--paper", help="The paper's twenty figures, on iphone15promax.")] = False,
    measurements: Annotated[
        Path | None, Flag("--from", help="A CSV of measurements: model,method,seq_len,lora_r,peak_mb,step_s.")
    ] = None,
    device_name: Annotated[str, Flag("--device", "-d", help="Hardware that they were measured on.")] = PAPER_DEVICE,
    as_json: Annotated[bool, Flag("--json", help="Print JSON.")] = False,
) -> None:
    """Compare measured peaks and step times with fitted ones, with and without each model, and with the simulator's."""
    from mebp.task.fit.case import pose_cases, simulated  # noqa: PLC0415
    from mebp.task.fit.fit import fit, leave_one_out  # noqa: PLC0415  (numpy is slow to import)
    from mebp.task.fit.measured import paper_figures, read_measurements  # noqa: PLC0415

    if paper == (measurements is not None):
        raise InputError("what to compare with: take --paper, or --from MEASUREMENTS.csv, one of the two")
    device = load_device(device_name)
    measured = paper_figures() if measurements is None else read_measurements(measurements)
    cases = pose_cases(measured, device)
    found = fit(cases)
    apart = leave_one_out(cases) if len({m.model for m in measured}) > 1 else None
    if as_json:
        typer.echo(json.dumps(fit_fields(found, apart), indent=2))
        return
    print_fit(device, found, apart)
    print_simulated(device, measured, simulated(cases, device))
    if paper:
        stdout().print(REMAINS, style="dim", markup=False)


def calibrate_from(measurements: Path, device_name: str, output: Path) -> None:
    """Fit a runtime to measurements on a device's hardware, print how well it does, and write the profile."""
    from mebp.task.fit.case import pose_cases, simulated  # noqa: PLC0415
    from mebp.task.fit.fit import fit, fitted_device, leave_one_out  # noqa: PLC0415
    from mebp.task.fit.measured import read_measurements  # noqa: PLC0415

    device = load_device(device_name)
    measured = read_measurements(measurements)
    cases = pose_cases(measured, device)
    print_fit(device, fit(cases), leave_one_out(cases) if len({m.model for m in measured}) > 1 else None)
    profile = fitted_device(cases, device, f"fitted to {len(measured)} measurements of {measurements.name}")
    print_simulated(profile, measured, simulated(cases, profile))
    write_file(output, dump_device(profile))
    note(f"wrote {output}")


def print_fit(device: "Device", found: "Fit", apart: "Fit | None") -> None:
    """A row a measurement: measured, simulated, the error, and the error where its model was left out of the fit."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    console = stdout()
    console.print(f"{len(found.measured)} measurements on {device.title}", markup=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    for title in ("peak", "fit", "error", "without", "step", "fit", "error", "without"):
        table.add_column(title, justify="right", no_wrap=True)
    for number, m in enumerate(found.measured):
        left_out = [f"{errors[number]:+.1%}" for errors in (apart.peak_errors, apart.step_errors)] if apart else ["-", "-"]
        peak = (show_nbytes(m.peak_bytes), show_nbytes(found.peak_bytes[number]), f"{found.peak_errors[number]:+.1%}", left_out[0])
        step = (show_ns(m.step_s * 1e9), show_ns(found.step_s[number] * 1e9), f"{found.step_errors[number]:+.1%}", left_out[1])
        table.add_row(m.name, *peak, *step)
    table.add_section()
    left_out = [f"{_mean(errors):.1%}" for errors in (apart.peak_errors, apart.step_errors)] if apart else ["-", "-"]
    peak_mean, step_mean = f"{_mean(found.peak_errors):.1%}", f"{_mean(found.step_errors):.1%}"
    table.add_row("mean |error|", "", "", peak_mean, left_out[0], "", "", step_mean, left_out[1])
    console.print(table)
    c = found.constants
    console.print(
        f"seconds a TFLOP: forward {c.forward_s * 1e12:.3g}, backward {c.backward_s * 1e12:.3g}, head {c.head_s * 1e12:.3g};"
        f" held: {show_nbytes(c.footprint_bytes)} before any tensor, {c.logits:.2f} of the fp32 logits, {c.heads:.2f} packed heads",
        markup=False,
    )
    for warning in (apart or found).warnings:
        note(f"warning: {warning}")


def print_simulated(device: "Device", measured: "Sequence[Measured]", plans: "Sequence[tuple[int, int]]") -> None:
    """A row a measurement: the plan of its method on a profile, timed and weighed by the simulator."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("plan", no_wrap=True)
    for title in ("step", "simulated", "error", "peak", "simulated", "beside the plan"):
        table.add_column(title, justify="right", no_wrap=True)
    errors = []
    for m, (peak, step_ns) in zip(measured, plans, strict=True):
        errors.append(step_ns / 1e9 / m.step_s - 1)
        step = (show_ns(m.step_s * 1e9), show_ns(step_ns), f"{errors[-1]:+.1%}")
        table.add_row(m.name, *step, show_nbytes(m.peak_bytes), show_nbytes(peak), show_nbytes(max(0, m.peak_bytes - peak)))
    stdout().print(f"the plans of these methods, simulated on {device.name}", markup=False)
    stdout().print(table)
    text = f"step times off by {_mean(errors):.1%} in the mean, {max(map(abs, errors)):.1%} at worst; beside the plan: what the"
    stdout().print(f"{text} measured implementation holds that its recipe need not, the packed heads above all", markup=False)


def fit_fields(found: "Fit", apart: "Fit | None") -> dict[str, object]:
    """The comparison with stable names: bytes, microseconds, relative errors."""
    rows = []
    for number, m in enumerate(found.measured):
        row: dict[str, object] = {
            "model": m.model,
            "method": m.method,
            "measured_peak_bytes": round(m.peak_bytes),
            "peak_bytes": round(found.peak_bytes[number]),
            "peak_error": round(found.peak_errors[number], 4),
            "measured_step_time_us": round(m.step_s * 1e6),
            "step_time_us": round(found.step_s[number] * 1e6),
            "step_time_error": round(found.step_errors[number], 4),
        }
        if apart:
            row["left_out_peak_error"] = round(apart.peak_errors[number], 4)
            row["left_out_step_time_error"] = round(apart.step_errors[number], 4)
        rows.append(row)
    means = {"peak": _mean(found.peak_errors), "step_time": _mean(found.step_errors)}
    if apart:
        means |= {"left_out_peak": _mean(apart.peak_errors), "left_out_step_time": _mean(apart.step_errors)}
    mean_fields = {name: round(value, 4) for name, value in means.items()}
    return {
        "schema_version": 1,
        "figures": rows,
        "mean_absolute_error": mean_fields,
        "constants": asdict(found.constants),
        "warnings": list((apart or found).warnings),
    }


def _mean(errors: list[float]) -> float:
    return sum(map(abs, errors)) / len(errors)
