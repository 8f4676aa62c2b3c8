"""A run from its folder: begin or go on in a process of its own, log what it reports, and write the adapter at the end."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from mebp.data.record import file_hash
from mebp.data.speller import open_speller
from mebp.data.token_set import read_tokens
from mebp.errors import InputError, StoreError
from mebp.executor.measure.job import TrainJob
from mebp.executor.measure.worker import train
from mebp.executor.train.settings import Report, Saved, Settings, Trained
from mebp.leftover import part_name, sweep
from mebp.plan import Plan, dump_plan, parse_plan
from mebp.task.train.card import model_card
from mebp.task.train.corpus import Corpus, Source
from mebp.task.train.folder import (
    ADAPTER,
    DATA,
    HELD_OUT,
    LOG,
    MODEL,
    PLANS,
    BaseModel,
    Predicted,
    Run,
    plan_files,
    plans_hash,
    read_plans,
    read_run,
    store_hash,
    write_run,
)
from mebp.task.train.log import Log, cut_back
from mebp.task.train.planning import TrainingPlan
from mebp.text import write_file

FORMS = ("peft", "gguf", "mlx")
STATE_FILE, LOCK = "state.safetensors", ".lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a run may take: with `enforce` no more than its budget, of all memory `limit_bytes` (0: no limit)."""

    enforce: bool = False
    limit_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A run that ended: its folder's facts, how it ended, its seconds, what was written; and whether it was the `whole` of it, from
    the first update to the last.
    """

    run: Run
    trained: Trained
    seconds: float
    adapters: tuple[Path, ...]
    whole: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Who is told what: each report, a line about something odd, and, once the run can be stopped, how."""

    report: Callable[[Report], None] = lambda _: None
    complain: Callable[[str], None] = lambda _: None
    ready: Callable[[Callable[[], None]], None] = lambda _: None


def require_new_folder(folder: Path) -> None:
    """Refuse a folder that holds something already, or that cannot be made."""
    if str(folder) in ("", ".", "-"):
        raise InputError(f"`output` {str(folder)!r} is no name of a folder: name a new one")
    if os.path.lexists(folder) and (not folder.is_dir() or any(entry.name != LOCK for entry in folder.iterdir())):
        raise InputError(f"`output` {folder} exists already: go on with `resume`, remove it, or name another")
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"`output` {folder} cannot be made in {there}: name another folder")


def new_run(
    folder: Path,
    store: Path,
    base: BaseModel,
    source: Source,
    corpus: Corpus,
    found: TrainingPlan,
    settings: Settings,
    *,
    to: tuple[str, ...] = ("peft",),
    command: tuple[str, ...] = (),
    device: str = "cpu",
    spill_dir: Path | None = None,
) -> Run:
    """Write a run and its plans into `folder`, ready to begin."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"`output` {folder} cannot be made ({error.strerror}): name another folder") from None
    held_out = corpus.held_out if found.trials else None
    lens = tuple(stage.seq_len for stage in found.stages), tuple(stage.seq_len for stage in found.trials)
    texts = [[dump_plan(stage.row.plan) for stage in stages] for stages in (found.stages, found.trials)]
    hashes = {MODEL: store_hash(store), DATA: corpus.train.cut.digest, PLANS: plans_hash([*texts[0], *texts[1]])}
    run = Run(
        store=store.absolute(),
        base=base,
        source=source,
        settings=settings,
        train=corpus.train.cut,
        seq_lens=lens[0],
        held_out=held_out.cut if held_out else None,
        held_out_lens=lens[1],
        updates_per_epoch=found.updates_per_epoch,
        budget_bytes=found.budget_bytes,
        predicted=Predicted(
            peak_breakdown=found.peak_breakdown,
            update_ns=found.update_ns,
            evaluation_ns=found.evaluation_ns,
            total_ns=found.total_ns,
        ),
        hashes=hashes | ({HELD_OUT: held_out.cut.digest} if held_out else {}),
        to=to,
        command=command,
        device=device,
        spill_dir=spill_dir,
        sha256={file.name: file_hash(file) for file in corpus.files},
    )
    for files, own in zip(plan_files(folder, *lens), texts, strict=True):
        for file, text in zip(files, own, strict=True):
            write_file(file, text)
    write_run(folder, run)
    return run


def run_in(folder: Path, *, resume: bool, limits: Limits, watch: Watch) -> Outcome:
    """Begin the run in `folder`, or go on with it, and write its adapters in the end. InputError naming what changed since it was
    begun; what goes wrong on the way as the error that it is, the last save in its place.
    """
    run = read_run(folder)
    hashes = _hashes_now(run, folder) if resume else run.hashes
    for name, digest in run.hashes.items():
        if hashes.get(name) != digest:
            raise InputError(f"{name} changed since the run in {folder} was begun: put it back, or begin a new run")
    texts = read_plans(run, folder)
    log = _Begin(folder, run, watch)
    from_the_start = not (resume and (folder / STATE_FILE).exists())
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
    begin = time.monotonic()
    try:
        trained = train(job, log.report, watch.ready)
    finally:
        log.close()
    seconds = time.monotonic() - begin
    _say_what_changed(run, watch)
    plans = [parse_plan(text, "a plan of the run") for text in texts[0]]
    written = write_adapters(folder, run, plans, trained, seconds)
    log.end(trained, seconds)
    whole = from_the_start and trained.ending == "all updates"
    return Outcome(run=run, trained=trained, seconds=seconds, adapters=written, whole=whole)


class _Begin:
    """The log of a run that begins, or goes on: what came after its last save is cut off when its first report comes."""

    def __init__(self, folder: Path, run: Run, watch: Watch) -> None:
        self._file = folder / LOG
        self._run = run
        self._watch = watch
        self._log: Log | None = None

    def report(self, report: Report) -> None:
        if self._log is None:
            first = report.number if not isinstance(report, Saved) else report.number + 1
            cut_back(self._file, first - 1)
            self._log = Log(self._file, self._watch.complain)
            facts = {"predicted_peak_bytes": self._run.predicted.peak_bytes, "budget_bytes": self._run.budget_bytes}
            times = {"predicted_update_ns": self._run.predicted.update_ns, "updates": self._run.settings.updates}
            self._log.add("begin", {"time": time.time(), "from": first, **facts, **times, "hashes": dict(self._run.hashes)})
        self._log.report(report)
        self._watch.report(report)

    def end(self, trained: Trained, seconds: float) -> None:
        if self._log is not None:
            self._log.add("end", {"time": time.time(), "seconds": seconds, **asdict(trained)})

    def close(self) -> None:
        if self._log is not None:
            self._log.close()


def _hashes_now(run: Run, folder: Path) -> dict[str, str]:
    """The hashes of what the run is made of, as it is now."""
    texts = read_plans(run, folder)
    train_file, valid_file = run.source.files()
    found = {MODEL: store_hash(run.store), PLANS: plans_hash([*texts[0], *texts[1]])}
    speller = open_speller(run.store)
    found[DATA] = read_tokens(train_file, speller).digest
    if run.held_out is not None:
        found[HELD_OUT] = read_tokens(valid_file, speller).digest if valid_file else found[DATA]
    return found


def _say_what_changed(run: Run, watch: Watch) -> None:
    """Say where data are no longer what the run used: the tokens that were kept of them."""
    train_file, valid_file = run.source.files()
    speller = open_speller(run.store)
    for file, own in ((train_file, run.train), (valid_file, run.held_out)):
        if file is not None and own is not None and speller.digest_of(file) != own.digest:
            watch.complain(
                f"{file} changed while the run went on, which used it as it was: it cannot be resumed with what is there now"
            )


def write_adapters(folder: Path, run: Run, plans: list[Plan], trained: Trained, seconds: float) -> tuple[Path, ...]:
    """Write the best adapters, or the last ones where nothing was evaluated, in every form that the run asks for."""
    from mebp.executor.train.state import BEST, STATE, read_pairs  # noqa: PLC0415  (torch)
    from mebp.export.base import Base  # noqa: PLC0415
    from mebp.export.gguf_adapter import write_gguf  # noqa: PLC0415
    from mebp.export.lora_set import LoraSet  # noqa: PLC0415
    from mebp.export.mlx_adapter import write_mlx  # noqa: PLC0415
    from mebp.export.peft import write_peft  # noqa: PLC0415

    config, lora = plans[0].config, plans[0].workload.lora
    pairs = read_pairs(folder / (BEST if trained.best_number is not None else STATE))
    adapters = LoraSet(config=config, rank=lora.rank, alpha=lora.scale * lora.rank, pairs=pairs)
    base = Base(config=config, name=run.base.name, wrapper=run.base.wrapper, architecture=run.base.architecture)
    written = []
    for form in run.to:
        target = folder / (f"{ADAPTER}.gguf" if form == "gguf" else ADAPTER if form == "peft" else f"{ADAPTER}-{form}")
        part = target.with_name(part_name(target.name))
        sweep(folder, target.name)
        try:
            {"peft": write_peft, "gguf": write_gguf, "mlx": write_mlx}[form](part, adapters, base)
            if form == "peft":
                (part / "README.md").write_text(model_card(run, plans, trained, seconds), encoding="utf-8")
            _replace(part, target)
        except OSError as error:
            raise StoreError(f"cannot write {target}: {error.strerror}: free disk, then go on with `resume`") from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
        written.append(target)
    return tuple(written)


def _replace(part: Path, target: Path) -> None:
    """Put a file or folder in the place of what has its name."""
    if target.is_dir():
        old = target.with_name(part_name(target.name))
        target.replace(old)
        part.replace(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        part.replace(target)
