"""Run a plan on this machine: check it, predict it with the machine's profile, execute it in a process of its own."""

from dataclasses import dataclass
from pathlib import Path

from mebp.check import check
from mebp.errors import InfeasibleBudget, InputError
from mebp.executor.measure.job import Job, Measurement, Progress
from mebp.models.graph import Graph
from mebp.plan import Plan
from mebp.sim.device import Device
from mebp.sim.simulate import Prediction, simulate
from mebp.unit import show_nbytes

MAX_STEPS = 100_000
TORCH_DEVICES = ("cpu", "cuda", "mps")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """A plan, what was predicted of it and what was measured."""

    plan: Plan
    graph: Graph
    predicted: Prediction
    measured: Measurement


def run(plan: Plan, graph: Graph, machine: Device, job: Job, progress: Progress | None = None) -> RunResult:
    """Execute `plan` on `machine`, which is this one. InvalidPlan for one that breaks a rule; InfeasibleBudget where a limit is
    below what the process takes by itself; what goes wrong in the run as the error that it is.
    """
    from mebp.executor.measure.worker import run_plan  # noqa: PLC0415  (planning does without)

    check(plan, graph)
    predicted = simulate(plan, graph, machine)
    _require_room(predicted, "`limit`", job.limit_bytes)
    _require_room(predicted, "`enforce`: the plan's budget of", plan.budget_bytes if job.enforce else 0)
    return RunResult(plan=plan, graph=graph, predicted=predicted, measured=run_plan(plan, job, progress))


def require_job(steps: int, spill_dir: Path | None, torch_device: str = "cpu") -> None:
    """Refuse what no run can take."""
    if not 1 <= steps <= MAX_STEPS:
        raise InputError(f"`steps` = {steps}: must be between 1 and {MAX_STEPS}")
    if spill_dir is not None and not spill_dir.is_dir():
        raise InputError(f"`spill_dir` {spill_dir}: no such folder: make it, or leave it out")
    if torch_device.partition(":")[0] not in TORCH_DEVICES:
        raise InputError(f"`torch_device` = {torch_device!r}: must be one of {', '.join(TORCH_DEVICES)}")


def _require_room(prediction: Prediction, what: str, nbytes: int) -> None:
    """Refuse a limit (0: none) below what the process takes by itself here."""
    if 0 < nbytes < prediction.peak_bytes:
        peak = show_nbytes(prediction.peak_bytes, up=True)
        message = f"{what} {show_nbytes(nbytes)} is below what the process takes by itself, {peak}: raise it, or plan for less"
        raise InfeasibleBudget(message, nbytes, prediction.peak_bytes)
