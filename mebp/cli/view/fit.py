"""Measured figures vs. fitted and simulated ones, as tables and JSON."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from mebp.cli.view.grid import grid, print_grid
from mebp.sim.device import Device
from mebp.task.fit.fit import Fit
from mebp.task.fit.measured import Measured
from mebp.unit import show_nbytes, show_ns

if TYPE_CHECKING:
    from rich.console import Console


def print_fit(console: "Console", device: Device, found: Fit, apart: Fit | None, warn: Callable[[str], None]) -> None:
    """A row per measurement: measured, simulated, the error, and the error where its model was left out of the fit."""
    console.print(f"{len(found.measured)} measurements on {device.title}", markup=False)
    table = grid("method", right=("peak", "fit", "error", "without", "step", "fit", "error", "without"))
    for number, m in enumerate(found.measured):
        left_out = [f"{errors[number]:+.1%}" for errors in (apart.peak_errors, apart.step_errors)] if apart else ["-", "-"]
        peak = (show_nbytes(m.peak_bytes), show_nbytes(found.peak_bytes[number]), f"{found.peak_errors[number]:+.1%}", left_out[0])
        step = (show_ns(m.step_s * 1e9), show_ns(found.step_s[number] * 1e9), f"{found.step_errors[number]:+.1%}", left_out[1])
        table.add_row(m.name, *peak, *step)
    table.add_section()
    left_out = [f"{_mean(errors):.1%}" for errors in (apart.peak_errors, apart.step_errors)] if apart else ["-", "-"]
    peak_mean, step_mean = f"{_mean(found.peak_errors):.1%}", f"{_mean(found.step_errors):.1%}"
    table.add_row("mean |error|", "", "", peak_mean, left_out[0], "", "", step_mean, left_out[1])
    print_grid(console, table, drop=("without", "fit"))
    c = found.constants
    console.print(
        f"seconds per TFLOP: forward {c.forward_s * 1e12:.3g}, backward {c.backward_s * 1e12:.3g}, head {c.head_s * 1e12:.3g};"
        f" in memory: {show_nbytes(c.footprint_bytes)} before any tensor, {c.logits:.2f} of the fp32 logits,"
        f" {c.heads:.2f} compressed heads, {c.scores:.2f} of a layer's fp32 scores, adapters in {c.adapter_bytes:g} bytes",
        markup=False,
    )
    for warning in (apart or found).warnings:
        warn(f"warning: {warning}")


def print_simulated(console: "Console", device: Device, measured: Sequence[Measured], plans: Sequence[tuple[int, int]]) -> None:
    """A row per measurement: the plan of its method on a profile, timed and weighed by the simulator."""
    table = grid("plan", right=("step", "simulated", "error", "peak", "simulated", "error"))
    errors, peak_errors = [], []
    for m, (peak, step_ns) in zip(measured, plans, strict=True):
        errors.append(step_ns / 1e9 / m.step_s - 1)
        peak_errors.append(peak / m.peak_bytes - 1)
        step = (show_ns(m.step_s * 1e9), show_ns(step_ns), f"{errors[-1]:+.1%}")
        table.add_row(m.name, *step, show_nbytes(m.peak_bytes), show_nbytes(peak), f"{peak_errors[-1]:+.1%}")
    console.print(f"the plans of these methods, simulated on {device.name}", markup=False)
    print_grid(console, table)
    means = [f"mean error {_mean(found):.1%}, worst {max(map(abs, found)):.1%}" for found in (errors, peak_errors)]
    console.print(f"step times: {means[0]}; peaks: {means[1]}", markup=False)


def fit_fields(found: Fit, apart: Fit | None) -> dict[str, object]:
    """The comparison with stable names: bytes, microseconds, relative errors."""
    rows = []
    for number, m in enumerate(found.measured):
        row: dict[str, object] = {
            "model": m.model,
            "method": m.method,
            "seq_len": m.seq_len,
            "lora_r": m.lora_r,
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
