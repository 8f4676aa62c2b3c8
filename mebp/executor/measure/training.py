"""A training run in the worker: the process's baseline and limits, the folder's lock, the trainer, a listener for the stop."""

import fcntl
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mebp.data.order import Order
from mebp.errors import InputError
from mebp.executor.measure.job import TrainJob
from mebp.executor.measure.memory import Sampler, memory_now, trim
from mebp.executor.measure.message import STOP
from mebp.executor.measure.process import WINDOW_PART, begin, enforced, too_much
from mebp.executor.train.settings import LOCK, Report, Saved, Trained, Updated
from mebp.executor.train.trainer import HeldOut, Trainer
from mebp.plan import parse_plan
from mebp.store.reader import open_store

LOCK_S = 10.0  # how long a process that was killed may take to end


def train(job: TrainJob, say: Callable[[Report], None], give_up: Callable[[str], None]) -> Trained:
    """Do the job, reporting as it goes; `give_up(message)` ends the process, from whatever thread."""
    baseline = begin(job.device)
    with _locked(job.folder):
        most_bytes = enforced(job.budget_bytes, baseline) if job.enforce else 0
        trainer = _trainer(job)
        _listen(trainer)
        if job.resume:
            trainer.resume()
        gc.collect()
        trim()  # reading the plans left some megabytes
        with Sampler(most_bytes, lambda nbytes: give_up(too_much(nbytes, job.budget_bytes))) as sampler:
            if trainer.saved is not None:
                say(Saved(number=trainer.saved))
            begin_s = time.monotonic()
            for report in trainer.run():
                say(_measured(report, sampler))
            seconds = time.monotonic() - begin_s
        return replace(
            trainer.result(),
            seconds=seconds,
            baseline_bytes=baseline,
            peak_bytes=sampler.anonymous,
            file_bytes=sampler.file,
        )


def _trainer(job: TrainJob) -> Trainer:
    plans, held_out_plans = ([parse_plan(text, "a plan of the run") for text in texts] for texts in (job.plans, job.held_out_plans))
    batch_size = plans[0].workload.batch_size
    order = Order(
        job.data.samples(), job.seq_lens, batch_size=batch_size, accumulate=job.settings.accumulate, seed=job.settings.seed
    )
    held_out = None
    if job.held_out is not None and held_out_plans:
        own = Order(job.held_out.samples(), job.held_out_lens, batch_size=batch_size, seed=None)
        held_out = HeldOut(plans=held_out_plans, order=own)
    return Trainer(
        plans,
        open_store(job.store),
        order,
        job.settings,
        held_out=held_out,
        folder=job.folder,
        hashes=job.hashes,
        device=job.device,
        spill_dir=job.spill_dir or job.folder,
        window_bytes=job.limit_bytes // WINDOW_PART,
    )


def _measured(report: Report, sampler: Sampler) -> Report:
    """An update with the memory that it took."""
    if not isinstance(report, Updated):
        return report
    return replace(report, memory_bytes=memory_now()[0], peak_bytes=sampler.anonymous)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """While this is entered no other process trains in `folder`; InputError where one does."""
    opened = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        until = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise InputError(f"another process trains in {folder}: wait for it, or name another folder") from None
                time.sleep(0.05)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(opened)


def _listen(trainer: Trainer) -> None:
    """Have the run stopped by a line from the parent, or by a signal to this process itself."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: trainer.stop())

    def wait() -> None:
        while line := sys.stdin.readline():
            if line.strip() == STOP:
                trainer.stop()

    threading.Thread(target=wait, name="mebp-stop", daemon=True).start()
