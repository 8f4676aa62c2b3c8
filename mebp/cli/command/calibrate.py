"""`mebp-plan calibrate`: this machine's own profile, or a phone's from measurements."""

from pathlib import Path
from typing import Annotated

import typer

from mebp.cli.flag import DEFAULT_DEVICE, TARGET, Flag, ModelFlags, StepFlags
from mebp.cli.screen import note, require_apart, stdout, working
from mebp.errors import InputError


def calibrate(
    model: ModelFlags,
    step: StepFlags,
    output: Annotated[Path | None, Flag("--output", "-o", help="Write the profile here, not as device `host`.")] = None,
    spill_dir: Annotated[Path | None, Flag("--spill-dir", help="Folder on the flash to measure.")] = None,
    measurements: Annotated[
        Path | None,
        Flag(
            "--from",
            help="Fit a runtime to a CSV instead: model,method,seq_len,lora_r,peak_mb,step_s.",
            rich_help_panel=TARGET,
        ),
    ] = None,
    device: Annotated[
        str | None, Flag("--device", "-d", help="With --from: the hardware that was measured.", rich_help_panel=TARGET)
    ] = None,
) -> None:
    """Measure this machine at the shapes of a model, and keep the result as device `host`; or fit a phone to measurements."""
    if measurements is not None:
        if output is None:
            raise InputError("--from needs -o PROFILE.toml: the fitted profile is written there")
        _calibrate_from(measurements, device or DEFAULT_DEVICE, output)
        return
    if device is not None:
        raise InputError("calibrate measures this machine: leave --device out, or fit a phone to a CSV with --from")
    from mebp.task.host import host_path, measure_host, measuring_alone, require_writable  # noqa: PLC0415
    from mebp.task.run import require_spill_dir  # noqa: PLC0415

    target = output or host_path()
    require_spill_dir(spill_dir)
    require_writable(target)
    config, workload = model.config(), step.workload()
    with working("calibrating this machine") as status, measuring_alone():
        report = lambda what: status.update(f"calibrating: {what}")  # noqa: E731
        found = measure_host(config, workload, report, spill_dir=spill_dir, target=target)
    if found.not_kept:
        note(f"mebp-plan: the profile is not kept: {found.not_kept}")
    runtime, hardware = found.device.runtime, found.device.hardware
    typer.echo(found.device.title + ("" if found.not_kept else f"\nwrote {target}"))
    products = hardware.product_flops * runtime.product_fraction / 1e9
    typer.echo(f"products {products:.0f} GFLOP/s, unpacking {runtime.unpack_rate / 1e9:.2f} G weights/s")


def _calibrate_from(measurements: Path, device_name: str, output: Path) -> None:
    """Fit a runtime to measurements on a device's hardware, print how well it does, and write the profile."""
    from mebp.cli.view.fit import print_fit, print_simulated  # noqa: PLC0415
    from mebp.sim.profile import dump_device, load_device  # noqa: PLC0415
    from mebp.task.fit.case import pose_cases, simulated  # noqa: PLC0415
    from mebp.task.fit.fit import fit, leave_one_out  # noqa: PLC0415
    from mebp.task.fit.measured import read_measurements  # noqa: PLC0415
    from mebp.task.fit.runtime import doubts, fitted_device  # noqa: PLC0415
    from mebp.text import require_writable, write_file  # noqa: PLC0415

    profile_file = [Path(device_name)] if Path(device_name).is_file() else []
    require_apart({"--from": measurements, "-o": output}, profile_file)
    require_writable({"-o": output})
    device = load_device(device_name)
    measured = read_measurements(measurements)
    cases = pose_cases(measured, device)
    apart = leave_one_out(cases) if len({m.model for m in measured}) > 1 else None
    print_fit(stdout(), device, fit(cases), apart, note)
    profile = fitted_device(cases, device, f"fitted to {len(measured)} measurements of {measurements.name}")
    for doubt in doubts(profile):
        note(f"warning: {doubt}")
    print_simulated(stdout(), profile, measured, simulated(cases, profile))
    write_file(output, dump_device(profile))
    note(f"wrote {output}")
