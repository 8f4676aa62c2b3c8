"""A run from its folder: begin or resume it in a process of its own, log what it reports, and write the adapter at the end."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mebp.data.record import file_hash
from mebp.data.record_tokenizer import open_record_tokenizer
from mebp.data.token_set import read_tokens
from mebp.errors import InputError, MebpError
from mebp.executor.measure.job import TrainJob
from mebp.executor.measure.worker import train
from mebp.executor.train.settings import LOCK, STATE, Report, Trained, TrainSettings
from mebp.plan import dump_plan, parse_plan
from mebp.task.train.adapter import write_adapters
from mebp.task.train.corpus import Corpus, Source
from mebp.task.train.folder import (
    DATA,
    HELD_OUT,
    LOG,
    MODEL,
    PLANS,
    RUN,
    BaseName,
    Predicted,
    Run,
    plan_files,
    plans_hash,
    read_plans,
    read_run,
    store_hash,
    write_run,
)
from mebp.task.train.log import Log, peak_so_far
from mebp.task.train.planning import TrainingPlan
from mebp.text import write_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a run may take: with `enforce` no more than its budget, of all memory `limit_bytes` (0: no limit)."""

    enforce: bool = False
    limit_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A run that ended: what it was, how it ended, and what was written. `complete`: this
    process made every update, so that its time compares with the prediction.
    """

    run: Run
    trained: Trained
    adapters: tuple[Path, ...]
    complete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """`report` is given each report, `warn` a line of warning, and `ready`, once the run can be stopped, what stops it."""

    report: Callable[[Report], None] = lambda _: None
    warn: Callable[[str], None] = lambda _: None
    ready: Callable[[Callable[[], None]], None] = lambda _: None


def require_new_folder(folder: Path) -> None:
    """Refuse a folder that holds something already, or that cannot be made."""
    if str(folder) in ("", ".", "-"):
        raise InputError(f"`output` {str(folder)!r} is no name of a folder: name a new one")
    if os.path.lexists(folder) and (not folder.is_dir() or any(entry.name != LOCK for entry in folder.iterdir())):
        raise InputError(f"`output` {folder} exists already: `resume` it, remove it, or name another")
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"`output` {folder} cannot be made in {there}: name another folder")


def new_run(
    folder: Path,
    store: Path,
    base: BaseName,
    source: Source,
    corpus: Corpus,
    found: TrainingPlan,
    settings: TrainSettings,
    *,
    to: tuple[str, ...] = ("peft",),
    command: tuple[str, ...] = (),
    device: str = "cpu",
    spill_dir: Path | None = None,
) -> Run:
    """Write a run and its plans into `folder`, ready to begin; InputError where another run is there, or nothing can be written."""
    held_out = corpus.held_out if found.held_out else None
    lens = tuple(bucket.seq_len for bucket in found.train), tuple(bucket.seq_len for bucket in found.held_out)
    texts = [[dump_plan(bucket.row.plan) for bucket in buckets] for buckets in (found.train, found.held_out)]
    hashes = {MODEL: store_hash(store), DATA: corpus.train.range.digest, PLANS: plans_hash([*texts[0], *texts[1]])}
    predicted = Predicted(
        peak_breakdown=found.peak_breakdown,
        update_ns=found.update_ns,
        evaluation_ns=found.evaluation_ns,
        total_ns=found.total_ns,
    )
    run = Run(
        store=store.absolute(),
        base=base,
        source=source,
        settings=settings,
        train=corpus.train.range,
        seq_lens=lens[0],
        held_out=held_out.range if held_out else None,
        held_out_lens=lens[1],
        updates_per_epoch=found.updates_per_epoch,
        budget_bytes=found.budget_bytes,
        predicted=predicted,
        hashes=hashes | ({HELD_OUT: held_out.range.digest} if held_out else {}),
        to=to,
        command=command,
        device=device,
        spill_dir=spill_dir,
        sha256={str(file): file_hash(file) for file in corpus.files},
    )
    with _claimed(folder):
        for files, own in zip(plan_files(folder, *lens), texts, strict=True):
            for file, text in zip(files, own, strict=True):
                write_file(file, text)
        write_run(folder, run)
    return run


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Make a folder for a run, and keep others from it while the run is written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(f"`output` {folder} cannot be made ({error.strerror}): name another folder") from None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        if (folder / RUN).exists():
            raise InputError(f"`output` {folder} exists already: `resume` it, remove it, or name another")
        yield
    finally:
        os.close(opened)


def run_in(folder: Path, *, resume: bool, limits: Limits, callbacks: Callbacks) -> Outcome:
    """Begin the run in `folder`, or resume it, and write its adapters in the end. InputError naming what changed since it was
    begun; what goes wrong on the way as the error that it is, the last save in its place.
    """
    run = read_run(folder)
    texts = read_plans(run, folder)
    if resume:
        _require_unchanged(run, folder, [*texts[0], *texts[1]])
    from_the_start = not (folder / STATE).exists()
    job = TrainJob(
        store=run.store,
        folder=folder,
        plans=tuple(texts[0]),
        seq_lens=run.seq_lens,
        data=run.train,
        settings=run.settings,
        held_out_plans=tuple(texts[1]),
        held_out_lens=run.held_out_lens,
        held_out=run.held_out,
        hashes=run.hashes,
        resume=resume,
        device=run.device,
        spill_dir=run.spill_dir,
        budget_bytes=run.budget_bytes,
        enforce=limits.enforce,
        limit_bytes=limits.limit_bytes,
    )
    with Log(folder / LOG, run, callbacks.warn) as log:

        def report(found: Report) -> None:
            log.report(found)
            callbacks.report(found)

        trained = train(job, report, callbacks.ready)
        log.end(trained)
    complete = from_the_start and trained.ending == "all updates"
    trained = replace(trained, peak_bytes=max(trained.peak_bytes, peak_so_far(folder / LOG)))
    plans = [parse_plan(text, "a plan of the run") for text in texts[0]]
    written = write_adapters(folder, run, plans, trained, trained.seconds if complete else None, callbacks.warn)
    _warn_of_changes(run, callbacks)
    return Outcome(run=run, trained=trained, adapters=written, complete=complete)


def _require_unchanged(run: Run, folder: Path, plan_texts: list[str]) -> None:
    """InputError naming what is no longer what the run was begun with."""
    train_file, valid_file = run.source.files()
    tokenizer = open_record_tokenizer(run.store)
    now = {MODEL: store_hash(run.store), PLANS: plans_hash(plan_texts), DATA: tokenizer.digest_of(train_file)}
    if run.held_out is not None:
        now[HELD_OUT] = tokenizer.digest_of(valid_file, "`valid`") if valid_file else now[DATA]
    for name, digest in run.hashes.items():
        if now.get(name) != digest:
            raise InputError(f"{name} changed since the run in {folder} was begun: put it back, or begin a new run")
    read_tokens(train_file, tokenizer)  # made again where they were removed
    if valid_file is not None:
        read_tokens(valid_file, tokenizer, what="`valid`")


def _warn_of_changes(run: Run, callbacks: Callbacks) -> None:
    """Warn where data are no longer what the run used: the tokens that were kept of them."""
    try:
        train_file, valid_file = run.source.files()
        tokenizer = open_record_tokenizer(run.store)
        for file, own in ((train_file, run.train), (valid_file, run.held_out)):
            if file is not None and own is not None and tokenizer.digest_of(file) != own.digest:
                callbacks.warn(f"{file} changed during training, which used it as it was: `resume` refuses until it is put back")
    except MebpError as error:
        callbacks.warn(f"{error}; the run used what was there when it began")
