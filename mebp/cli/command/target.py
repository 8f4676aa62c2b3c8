"""The device that a command plans for. This machine is measured first where the shapes at hand are new to it."""

from pathlib import Path
from typing import TYPE_CHECKING

from mebp.cli.flag import ProfileFlags, TargetFlags
from mebp.cli.screen import note, working
from mebp.plan import HOST

if TYPE_CHECKING:
    from mebp.models.config import ModelConfig
    from mebp.models.workload import Workload
    from mebp.sim.device import Device


def target_device(target: TargetFlags, profile: ProfileFlags, config: "ModelConfig", workload: "Workload") -> "Device":
    """The device that the flags name, with their changes."""
    from mebp.sim.profile import override  # noqa: PLC0415

    if target.device == HOST:
        return override(this_machine(config, workload), profile.overrides())
    return target.load(profile)


def this_machine(config: "ModelConfig", workload: "Workload", spill_dir: Path | None = None) -> "Device":
    """This machine's profile, measured first where a model's shapes are new to it: their predicted times could be far off."""
    from mebp.sim.profile import load_device  # noqa: PLC0415
    from mebp.task.host import measure_host, measuring_alone, why_calibrate  # noqa: PLC0415

    why = why_calibrate(config, workload)
    if why is None:
        return load_device(HOST)
    from mebp.task.calibrate import SHORT_TOKENS  # noqa: PLC0415  (torch)

    how_long = "under a minute" if workload.tokens <= SHORT_TOKENS else "a minute for every two or three thousand tokens"
    note(f"{why}: calibrating first ({how_long})")
    with working("calibrating this machine") as status, measuring_alone():
        if why_calibrate(config, workload) is None:  # another process was the first
            return load_device(HOST)
        measured = measure_host(config, workload, lambda what: status.update(f"calibrating: {what}"), spill_dir=spill_dir)
    if measured.not_kept:
        note(f"mebp-plan: the profile is not kept: {measured.not_kept}")
    return measured.device
