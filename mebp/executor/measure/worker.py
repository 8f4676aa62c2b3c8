"""A process of its own that executes plans, so that what it measures is the plans and nothing of the planner.

`run_plan` and `train` are the parent's side: they start child.py in a fresh interpreter, hand it a job, relay what it reports, and
return its result.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mebp.errors import Disagreement, MebpError, StoreError
from mebp.executor.measure.job import Job, Measurement, Progress, TrainJob
from mebp.executor.measure.limit import Cgroup, make_cgroup
from mebp.executor.measure.message import STOP, Message, read_message, request_line, train_line
from mebp.executor.train.settings import Evaluated, Report, Saved, Trained, Updated
from mebp.plan import Plan

CHILD = "from mebp.executor.measure.child import end_with_parent, main; end_with_parent(); main()"
# Threads that spin long at a barrier starve a shared core: with a busy neighbour a step took 39 x as long, with this 2.6 x.
SPIN_BRIEFLY = {"GOMP_SPINCOUNT": "2000"}


def run_plan(plan: Plan, job: Job, progress: Progress | None = None) -> Measurement:
    """Run `plan` in a fresh process; raises what went wrong there with its message and exit code."""

    def see(message: Message) -> None:
        if isinstance(message, tuple) and progress:
            progress(*message)

    with _worker(job) as worker:
        worker.tell(request_line(plan, job))
        found = worker.listen(see)
    assert isinstance(found, Measurement)
    return found


def train(job: TrainJob, report: Callable[[Report], None], ready: Callable[[Callable[[], None]], None]) -> Trained:
    """Train in a fresh process, which the terminal's signals do not reach: `ready` is given what asks it to stop after the update
    that it is at. Raises what went wrong there with its message and exit code.
    """

    def see(message: Message) -> None:
        if isinstance(message, Updated | Evaluated | Saved):
            report(message)

    with _worker(job, apart=True) as worker:
        worker.tell(train_line(job))
        ready(lambda: worker.tell(STOP))
        found = worker.listen(see)
    assert isinstance(found, Trained)
    return found


@contextmanager
def _worker(job: Job | TrainJob, *, apart: bool = False) -> Iterator["_Worker"]:
    """A worker that waits for its request; gone when this is left. `apart` puts it in a process group of its own."""
    environment = SPIN_BRIEFLY | os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    pipe = subprocess.PIPE
    with _limited(job.limit_bytes) as group, tempfile.TemporaryFile("w+") as stderr:
        # stderr is a file: a pipe that nobody reads would stop a talkative worker. stdin stays open: where it closes this process
        # has ended, and the worker ends too
        command = [sys.executable, "-c", CHILD]
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=stderr, text=True, env=environment, process_group=0 if apart else None
        )
        try:
            if group:
                group.add(process.pid)  # it waits for its request, and imports torch only then
            yield _Worker(process=process, store=job.store, stderr=stderr)
        finally:
            process.kill()
            process.wait()


@contextmanager
def _limited(nbytes: int) -> Iterator[Cgroup | None]:
    """A memory cgroup of `nbytes` while this is entered, None for no limit."""
    group = make_cgroup(nbytes) if nbytes else None
    try:
        yield group
    finally:
        if group:
            group.remove()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Worker:
    """A worker's process, the store that it is about, and the file that it complains to."""

    process: "subprocess.Popen[str]"
    store: Path
    stderr: IO[str]

    def listen(self, see: Callable[[Message], None]) -> Measurement | Trained:
        """Hear what it says, until its result."""
        assert self.process.stdout
        for line in self.process.stdout:
            match read_message(line):
                case Measurement() | Trained() as result:
                    return result
                case MebpError() as failure:
                    raise failure
                case None:
                    pass
                case message:
                    see(message)
        raise self._died()

    def tell(self, line: str) -> None:
        """Send a line: the request, and to a training worker perhaps STOP."""
        assert self.process.stdin
        with suppress(BrokenPipeError):  # the worker died at once; its exit status says how
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def _died(self) -> MebpError:
        """What its end without a result says."""
        status = self.process.wait()
        self.stderr.seek(0)
        last = (self.stderr.read().strip().splitlines() or ["no message"])[-1]
        if status == -signal.SIGKILL:
            return Disagreement(
                "the run was killed, most likely for want of memory: lower `budget`, free memory, or raise `limit` where one was"
                " given"
            )
        if status == -signal.SIGBUS:
            return StoreError(f"a file was cut off while the run used it: write the store {self.store} again, or free disk")
        return MebpError(f"the run ended with status {status} before its result: {last}")
