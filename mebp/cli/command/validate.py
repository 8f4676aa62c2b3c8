"""`mebp-plan validate`: figures that somebody measured vs. fitted constants, with and without each model, and vs. the simulator."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mebp.cli.flag import DEFAULT_DEVICE, Flag
from mebp.cli.screen import note, stdout
from mebp.errors import InputError

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
    device: Annotated[str, Flag("--device", "-d", help="Hardware that they were measured on.")] = DEFAULT_DEVICE,
    as_json: Annotated[bool, Flag("--json", help="Print JSON.")] = False,
) -> None:
    """Compare measured peaks and step times with fitted ones, with and without each model, and with the simulator's."""
    from mebp.cli.view.fit import fit_fields, print_fit, print_simulated  # noqa: PLC0415
    from mebp.sim.profile import load_device  # noqa: PLC0415
    from mebp.task.fit.case import pose_cases, simulated  # noqa: PLC0415
    from mebp.task.fit.fit import fit, leave_one_out  # noqa: PLC0415  (numpy is slow to import)
    from mebp.task.fit.measured import paper_figures, read_measurements  # noqa: PLC0415

    if paper == (measurements is not None):
        raise InputError("what to compare with: take --paper, or --from MEASUREMENTS.csv, one of the two")
    profile = load_device(device)
    measured = paper_figures() if measurements is None else read_measurements(measurements)
    cases = pose_cases(measured, profile)
    found = fit(cases)
    apart = leave_one_out(cases) if len({m.model for m in measured}) > 1 else None
    if as_json:
        typer.echo(json.dumps(fit_fields(found, apart), indent=2))
        return
    print_fit(stdout(), profile, found, apart, note)
    print_simulated(stdout(), profile, measured, simulated(cases, profile))
    if paper:
        stdout().print(REMAINS, style="dim", markup=False)
