"""A process of its own that executes a plan, so that what it measures is the plan and nothing of the planner.

`run_plan` is the parent's side: it starts the worker, feeds it a Job, relays progress, and returns the Measurement. The worker
imports torch, notes its memory as the baseline, then opens the store and runs the steps.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic import TypeAdapter

from mebp import errors
from mebp.errors import Disagreement, MebpError
from mebp.executor.measure.limit import make_cgroup
from mebp.plan import Plan, dump_plan

Progress = Callable[[int, int], None]
# Threads that spin long at a barrier starve a shared core: beside a busy neighbour a step took 39 x as long, with this 2.6 x.
PATIENT = {"GOMP_SPINCOUNT": "2000"}
NO_MEMORY = ("allocate", "could not create a primitive")  # how torch and oneDNN say that there is none
REPORT, RESULT, FAILURE = "progress ", "result ", "failure "


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to run: a plan, the store to run it on, steps after one warm-up step, and where things go.

    With `enforce` the process may take no more memory of its own than the plan's budget; `limit_bytes` (0: none) is for all its
    memory, page cache included.
    """

    store: Path
    steps: int = 3
    device: str = "cpu"
    spill_dir: Path | None = None
    ids: tuple[tuple[int, ...], ...] | None = None
    learning_rate: float = 1e-4
    seed: int = 0
    check_gradients: bool = False
    enforce: bool = False
    limit_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientCheck:
    """The worst adapter gradient against autograd on the same decompressed weights."""

    max_relative_error: float
    cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What running a plan took. Bytes are resident in the worker; the peak is anonymous memory, its baseline included.

    `spans_ns` are (start, end) of every instruction in the last step, from its start, and `memory` (ns, anonymous bytes) over it;
    `durations_ns` are each instruction's median over the last steps. `floor_s` is what the step's dense products take, forward and
    backward once (0: not measured).
    """

    arena_bytes: int
    baseline_bytes: int
    peak_bytes: int
    file_bytes: int
    step_s: tuple[float, ...]
    loss: tuple[float, ...]
    spans_ns: tuple[tuple[int, int], ...]
    durations_ns: tuple[int, ...] = ()
    memory: tuple[tuple[int, int], ...] = ()
    floor_s: float = 0.0
    gradients: GradientCheck | None = None

    @property
    def busy_ns(self) -> int:
        """What all instructions of the last step took together."""
        return sum(end - start for start, end in self.spans_ns)


def run_plan(plan: Plan, job: Job, progress: Progress | None = None) -> Measurement:
    """Run `plan` in a fresh process; raises what went wrong there with its message and exit code."""
    command = [sys.executable, "-c", "from mebp.executor.measure.worker import main; main()"]
    environment = PATIENT | os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    pipe = subprocess.PIPE
    group = make_cgroup(job.limit_bytes) if job.limit_bytes else None
    with tempfile.TemporaryFile("w+") as complaints:  # a file: a pipe that nobody reads would stop a talkative worker
        worker = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=complaints, text=True, env=environment)
        try:
            if group:
                group.add(worker.pid)  # it waits for its request, and imports torch only then
            return _converse(worker, json.dumps([dump_plan(plan), TypeAdapter(Job).dump_json(job).decode()]), progress, complaints)
        finally:
            worker.kill()
            worker.wait()
            if group:
                group.remove()


def _converse(worker: "subprocess.Popen[str]", request: str, progress: Progress | None, complaints: IO[str]) -> Measurement:
    """Hand the request over and listen until the result."""
    assert worker.stdin
    assert worker.stdout
    try:
        worker.stdin.write(request + "\n")
        worker.stdin.close()
    except BrokenPipeError:
        pass  # the worker died at once; its exit status below says how
    for line in worker.stdout:
        if line.startswith(REPORT) and progress:
            done, total = line.removeprefix(REPORT).split()
            progress(int(done), int(total))
        elif line.startswith(RESULT):
            return TypeAdapter(Measurement).validate_json(line.removeprefix(RESULT))
        elif line.startswith(FAILURE):
            name, message = json.loads(line.removeprefix(FAILURE))
            raise _failure(name, message)
    status = worker.wait()
    complaints.seek(0)
    last = (complaints.read().strip().splitlines() or ["no message"])[-1]
    if status == -signal.SIGKILL:
        raise Disagreement(
            "the run was killed, most likely for want of memory: lower --budget, free memory, or raise --limit where one was given"
        )
    raise MebpError(f"the run ended with status {status} before its result: {last}")


def _failure(name: str, message: str) -> MebpError:
    kind = getattr(errors, name, MebpError)
    failure = MebpError(message) if kind in (errors.InvalidPlan, errors.InfeasibleBudget) else kind(message)
    assert isinstance(failure, MebpError)
    return failure


def main() -> None:
    """The worker's side: one Job in on stdin, progress and one result out on stdout."""
    try:
        plan_text, job_text = json.loads(sys.stdin.readline())
        measurement = _execute(plan_text, TypeAdapter(Job).validate_json(job_text))
        print(RESULT + TypeAdapter(Measurement).dump_json(measurement).decode(), flush=True)
    except MebpError as error:
        print(FAILURE + json.dumps([type(error).__name__, str(error)]), flush=True)
    except MemoryError as error:
        print(FAILURE + json.dumps(["Disagreement", f"out of memory: {error}"]), flush=True)
    except RuntimeError as error:
        if not any(words in str(error) for words in NO_MEMORY):
            raise
        print(
            FAILURE + json.dumps(["Disagreement", f"the machine cannot give the plan its memory: {str(error).splitlines()[0]}"]),
            flush=True,
        )
    except KeyboardInterrupt:
        sys.exit(130)


def _execute(plan_text: str, job: Job) -> Measurement:
    from mebp.executor.measure.session import execute  # noqa: PLC0415  (torch is imported here, in the worker only)

    def report(done: int, total: int) -> None:
        print(f"{REPORT}{done} {total}", flush=True)

    return execute(plan_text, job, report)
