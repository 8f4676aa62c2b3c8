"""This machine as device `host`: its profile, measured when a model's shapes are met for the first time, and kept."""

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mebp.errors import InputError, ProfileError
from mebp.models.build import build_graph
from mebp.models.config import ModelConfig
from mebp.models.workload import Workload, whole_step
from mebp.plan import HOST, Plan
from mebp.sim.device import Device
from mebp.sim.profile import dump_device, load_device, override, parse_device, user_device_dir
from mebp.sim.shape import knows, remember
from mebp.text import write_file

Report = Callable[[str], None]  # what is being measured
ATTEMPTS = 3  # at a profile whose numbers are plausible
STAND_IN = "laptop16"  # a machine of the same class, where this one was never measured


@dataclass(frozen=True, slots=True, kw_only=True)
class HostProfile:
    """A profile of this machine, and why it could not be kept, where it could not."""

    device: Device
    not_kept: str | None = None


def host_path() -> Path:
    """Where this machine's profile is kept."""
    return user_device_dir() / f"{HOST}.toml"


def kernel_path() -> str:
    """Which code unpacks weights on this machine and multiplies with them, and why, in a few words."""
    from mebp.kernel.library import library  # noqa: PLC0415  (torch)

    return library().path


def why_calibrate(config: ModelConfig, workload: Workload) -> str | None:
    """Why this machine has to be measured before a plan for it can be trusted; None where its profile knows the shapes."""
    if not host_path().is_file():
        return "no profile of this machine yet"
    try:
        known = load_device(HOST)
    except ProfileError as error:
        return f"the profile of this machine cannot be used ({error})"
    if known.shapes and not knows(known, build_graph(config, whole_step(workload))):
        return f"no measurements at the shapes of {config.name} yet"
    return None


@contextmanager
def measuring_alone() -> Iterator[None]:
    """Wait while another process of this user measures the machine: two at once would each measure the other."""
    folder = user_device_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = os.open(folder, os.O_RDONLY)
    except OSError:  # no place for a profile either
        yield
        return
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def measure_host(
    config: ModelConfig, workload: Workload, report: Report, *, spill_dir: Path | None = None, target: Path | None = None
) -> HostProfile:
    """Calibrate, and keep the profile in `target` (default: host_path()) where that can be written; the measurement is not lost
    where it cannot. What the profile of this machine knew of other models' shapes stays.
    """
    from mebp.task.calibrate import bounded, calibrate, implausible  # noqa: PLC0415  (torch)

    device = calibrate(config, workload, report, spill_dir)
    for _ in range(ATTEMPTS - 1):
        wrong = implausible(device)
        if not wrong:
            break
        report(f"again, since {wrong[0]} came out as {device.value(wrong[0]):.3g}")
        device = calibrate(config, workload, report, spill_dir)
    device = bounded(device)
    with suppress(ProfileError):  # none yet, or one that no longer reads: this one takes its place
        device = remember(device, load_device(HOST))
    path = target or host_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = dump_device(device)
        parse_device(text, "the measured profile")  # rather none than one that no command can read
        write_file(path, text)
    except (OSError, InputError) as error:
        return HostProfile(device=device, not_kept=str(error))
    return HostProfile(device=device)


def require_writable(target: Path) -> None:
    """Refuse, before anything is measured, a place where the profile could not be kept."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}: name another file as `output`") from None
    if target.exists() and not target.is_file():
        raise InputError(f"cannot write {target}: it is no file: name another as `output`")
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}: name another file as `output`") from None


def made_elsewhere(plan: Plan) -> str | None:
    """The device that a plan was made for, if that is not this machine (two machines may both be `host`), else None."""
    if plan.device != HOST:
        return plan.device_title or plan.device
    whose = plan.device_title or "another machine"
    here = load_device(HOST).title if host_path().is_file() else ""
    return None if _machine(here) == _machine(whose) else whose


def device_of(plan: Plan) -> tuple[Device, str | None]:
    """The device to time a plan on, with the overrides that it was made with, and a note if it stands in for another machine."""
    if plan.device != HOST:
        return override(load_device(plan.device), plan.overrides), None
    device = load_device(HOST if host_path().is_file() else STAND_IN)
    whose = made_elsewhere(plan)
    line = (
        f"made for {whose}; no profile of that machine here, so timed on {device.title}; `device` names another" if whose else None
    )
    return override(device, plan.overrides), line


def _machine(title: str) -> str:
    """The machine in a host profile's title, without the model that it was measured with."""
    return title.partition(", measured with")[0]
