"""Run a plan on this machine: check it, predict it with the machine's profile, execute it in a process of its own."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from mebp.check import check
from mebp.errors import InfeasibleBudget, InputError
from mebp.executor.measure.job import Job, Measurement, Progress, require_ids
from mebp.models.config import ModelConfig
from mebp.models.graph import Graph
from mebp.models.workload import Workload
from mebp.plan import Plan
from mebp.sim.cost import floor_ns
from mebp.sim.device import Device
from mebp.sim.simulate import Prediction, simulate
from mebp.store.header import read_header
from mebp.unit import show_nbytes

MAX_STEPS = 100_000
LEAST_FLOOR_S = 0.02  # products that take less do not tell how fast the machine is
NO_STORE = Path()  # of a job whose store is still to be found
TORCH_DEVICES = ("cpu", "cuda", "mps")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """A plan, what was predicted of it and what was measured; and `floor_ns`, the time of its dense products as calibrated."""

    plan: Plan
    graph: Graph
    predicted: Prediction
    measured: Measurement
    floor_ns: float

    @property
    def arena_exact(self) -> bool:
        return self.measured.arena_bytes == self.plan.arena_bytes

    @property
    def step_s(self) -> float:
        """The median step."""
        return median(self.measured.step_s)

    @property
    def memory_error(self) -> float:
        """Of the process's anonymous peak, relative."""
        return self.measured.peak_bytes / self.predicted.peak_bytes - 1

    @property
    def time_error(self) -> float:
        """Of the median step, relative."""
        return self.step_s * 1e9 / self.predicted.step_ns - 1

    @property
    def speed(self) -> float:
        """How fast dense products were right after the run, relative to calibration: a machine's clock need not be its own, and
        neighbours come and go. 1 where they are too short to tell.
        """
        floor_s = self.measured.floor_s
        return self.floor_ns / (floor_s * 1e9) if floor_s > LEAST_FLOOR_S else 1.0

    @property
    def time_error_at_its_speed(self) -> float:
        """Of the median step, relative, had calibration found the machine as fast as it was then."""
        return (1 + self.time_error) * self.speed - 1


def run(plan: Plan, graph: Graph, machine: Device, device: Device, job: Job, progress: Progress | None = None) -> RunResult:
    """Execute `plan` on `machine`, which is this one as calibrated; `device` is the same with what was asked to be changed, and
    predicts. InvalidPlan for a plan that breaks a rule; InfeasibleBudget where a limit is below what the plan is predicted to take;
    what goes wrong in the run as the error that it is.
    """
    from mebp.executor.measure.worker import run_plan  # noqa: PLC0415  (planning does without)

    check(plan, graph)
    predicted = simulate(plan, graph, device)
    _require_room(predicted, "`limit`", job.limit_bytes)
    _require_room(predicted, "`enforce`: the plan's budget of", plan.budget_bytes if job.enforce else 0)
    measured = run_plan(plan, job, progress)
    return RunResult(plan=plan, graph=graph, predicted=predicted, measured=measured, floor_ns=floor_ns(graph, machine))


def require_job(steps: int, spill_dir: Path | None, torch_device: str = "cpu") -> None:
    """Refuse what no run can take."""
    if not 1 <= steps <= MAX_STEPS:
        raise InputError(f"`steps` = {steps}: must be between 1 and {MAX_STEPS}")
    require_spill_dir(spill_dir)
    if torch_device.partition(":")[0] not in TORCH_DEVICES:
        raise InputError(f"`torch_device` = {torch_device!r}: must be one of {', '.join(TORCH_DEVICES)}")


def require_inputs(job: Job, config: ModelConfig, workload: Workload) -> None:
    """Refuse a store or token ids that are not of this model and step, before anything is measured or planned. A job without a
    store of its own has none to check.
    """
    if job.store != NO_STORE:
        read_header(job.store).require_model(config, workload.weights)
    if job.ids is not None:
        require_ids(job.ids, (workload.batch_size, workload.seq_len), config.vocab)


def require_spill_dir(spill_dir: Path | None) -> None:
    """Refuse a folder that a spill file cannot be made in."""
    if spill_dir is None:
        return
    if not spill_dir.is_dir():
        raise InputError(f"`spill_dir` {spill_dir}: no such folder: make it, or leave it out")
    try:
        with tempfile.TemporaryFile(dir=spill_dir):
            pass
    except OSError as error:
        raise InputError(f"`spill_dir` {spill_dir}: cannot be written ({error.strerror}): name another folder") from None


def _require_room(prediction: Prediction, what: str, nbytes: int) -> None:
    """Refuse a limit (0: none) below what the plan is predicted to take here."""
    if 0 < nbytes < prediction.peak_bytes:
        peak = show_nbytes(prediction.peak_bytes, up=True)
        message = f"{what} {show_nbytes(nbytes)} is below the predicted peak of the plan, {peak}: raise it, or plan for less"
        raise InfeasibleBudget(message, nbytes, prediction.peak_bytes)
