"""A process of its own that executes a plan, so that what it measures is the plan and nothing of the planner.

`run_plan` is the parent's side: it starts child.py in a fresh interpreter, hands it a Job, relays progress, and returns the
Measurement.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from mebp.errors import Disagreement, MebpError, StoreError
from mebp.executor.measure.job import Job, Measurement, Progress
from mebp.executor.measure.limit import Cgroup, make_cgroup
from mebp.executor.measure.message import read_message, request_line
from mebp.plan import Plan

CHILD = "from mebp.executor.measure.child import end_with_parent, main; end_with_parent(); main()"
# Threads that spin long at a barrier starve a shared core: with a busy neighbour a step took 39 x as long, with this 2.6 x.
SPIN_BRIEFLY = {"GOMP_SPINCOUNT": "2000"}


def run_plan(plan: Plan, job: Job, progress: Progress | None = None) -> Measurement:
    """Run `plan` in a fresh process; raises what went wrong there with its message and exit code."""
    environment = SPIN_BRIEFLY | os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    pipe = subprocess.PIPE
    with _limited(job.limit_bytes) as group, tempfile.TemporaryFile("w+") as stderr:
        # stderr is a file: a pipe that nobody reads would stop a talkative worker. stdin stays open: where it closes this process
        # has ended, and the worker ends too
        command = [sys.executable, "-c", CHILD]
        worker = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=stderr, text=True, env=environment)
        try:
            if group:
                group.add(worker.pid)  # it waits for its request, and imports torch only then
            return _converse(worker, plan, job, progress, stderr)
        finally:
            worker.kill()
            worker.wait()


@contextmanager
def _limited(nbytes: int) -> Iterator[Cgroup | None]:
    """A memory cgroup of `nbytes` while this is entered, None for no limit."""
    group = make_cgroup(nbytes) if nbytes else None
    try:
        yield group
    finally:
        if group:
            group.remove()


def _converse(worker: "subprocess.Popen[str]", plan: Plan, job: Job, progress: Progress | None, stderr: IO[str]) -> Measurement:
    """Hand the request over and listen until the result."""
    assert worker.stdin
    assert worker.stdout
    try:
        worker.stdin.write(request_line(plan, job) + "\n")
        worker.stdin.flush()
    except BrokenPipeError:
        pass  # the worker died at once; its exit status below says how
    for line in worker.stdout:
        match read_message(line):
            case (done, total) if progress:
                progress(done, total)
            case Measurement() as measurement:
                return measurement
            case MebpError() as failure:
                raise failure
    status = worker.wait()
    stderr.seek(0)
    last = (stderr.read().strip().splitlines() or ["no message"])[-1]
    if status == -signal.SIGKILL:
        raise Disagreement(
            "the run was killed, most likely for want of memory: lower `budget`, free memory, or raise `limit` where one was given"
        )
    if status == -signal.SIGBUS:
        raise StoreError(f"a file was cut off while the run used it: write the store {job.store} again, or free disk")
    raise MebpError(f"the run ended with status {status} before its result: {last}")
