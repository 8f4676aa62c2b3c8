"""`mebp-plan train`: plan a fine-tuning run for this machine, then train, and write the adapter."""

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mebp.cli.command.target import this_machine
from mebp.cli.flag import TARGET, Flag, ModelFlags, ProfileFlags, SearchFlags, TargetFlags
from mebp.cli.screen import interruptible, keeps_going, note, stderr, stdout, working
from mebp.cli.stopping import Stopping
from mebp.cli.train_flag import DataFlags, RunFlags, TrainFlags, TrainStepFlags
from mebp.errors import InputError, MebpError
from mebp.unit import parse_nbytes

if TYPE_CHECKING:
    from mebp.executor.train.settings import TrainSettings
    from mebp.models.workload import Workload
    from mebp.sim.device import Device
    from mebp.task.model import FoundModel
    from mebp.task.train.corpus import Corpus, Source
    from mebp.task.train.planning import TrainingPlan
    from mebp.task.train.run import Limits, Outcome


def train(
    model: ModelFlags,
    data: DataFlags,
    step: TrainStepFlags,
    training: TrainFlags,
    profile: ProfileFlags,
    search: SearchFlags,
    run: RunFlags,
    budget: Annotated[
        str | None,
        Flag("--budget", "-b", help="Memory of the process: 512MB. Default: the machine's.", rich_help_panel=TARGET),
    ] = None,
) -> None:
    """Fine-tune a model on this machine, within a budget of memory: data in, an adapter out.

    It plans first, says what the run will take, then trains. --model names a checkpoint's folder, a GGUF file, or a store. Ctrl-C
    finishes the update, saves, and says how to resume.
    """
    asked = _Asked(model=model, data=data, step=step, training=training, profile=profile, search=search, run=run, budget=budget)
    limits = run.limits()
    folder = asked.begin() if run.resume is None else asked.resumed()
    stopping = Stopping()
    outcome = _run(folder, limits, stopping, resume=run.resume is not None)
    _print(outcome, as_json=run.as_json)
    if outcome.trained.ending == "stopped":
        done = f"stopped after update {outcome.trained.number} of {outcome.run.settings.updates}, saved"
        raise stopping.as_error(f"{done}: resume with mebp-plan train --resume {shlex.quote(str(folder))}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """All that was typed."""

    model: ModelFlags
    data: DataFlags
    step: TrainStepFlags
    training: TrainFlags
    profile: ProfileFlags
    search: SearchFlags
    run: RunFlags
    budget: str | None

    def resumed(self) -> Path:
        """The folder of the run to resume; it decides all but limits."""
        assert self.run.resume is not None
        groups = (self.model, self.data, self.step, self.training, self.profile, self.search, self.run)
        given = [flag for group in groups for flag in group.given()] + (["--budget"] if self.budget is not None else [])
        decided = sorted(set(given) - {"--resume", "--enforce", "--limit", "--as-json"})
        if decided:
            raise InputError(f"--resume {self.run.resume}: the run decides {decided[0]} itself: leave the flag out")
        return self.run.resume

    def begin(self) -> Path:
        """Plan a new run, print what it will take, and write it into its folder."""
        from mebp.cli.view.train import print_plan  # noqa: PLC0415
        from mebp.data.order import Order  # noqa: PLC0415
        from mebp.task.train.folder import BaseName  # noqa: PLC0415
        from mebp.task.train.run import new_run  # noqa: PLC0415

        source, folder = self._checked()
        found = _weights(self.model, self.step)
        assert found.store is not None
        corpus = _read(source, found)
        workload, machine, budget_bytes = self._workload(found, corpus)
        order = Order(corpus.train.samples, corpus.train.seq_lens, batch_size=workload.batch_size, accumulate=workload.accumulate)
        evaluates = corpus.held_out is not None
        settings = self.training.settings(workload, order.updates_per_epoch, self.search.seed, evaluates=evaluates)
        plan = _planned(found, workload, corpus, settings, machine, budget_bytes, self.search)
        with keeps_going():
            print_plan(stderr() if self.run.as_json else stdout(), found.config.name, corpus, plan, settings, workload)
        base = BaseName(name=self.run.base or self.model.model or "", wrapper=found.wrapper, architecture=found.architecture)
        spill_dir = None if self.run.spill_dir is None else self.run.spill_dir.absolute()
        new_run(
            folder,
            found.store,
            base,
            source,
            corpus,
            plan,
            settings,
            to=self.run.forms(),
            command=("mebp-plan", *sys.argv[1:]),
            device=self.run.torch_device,
            spill_dir=spill_dir,
        )
        return folder

    def _checked(self) -> "tuple[Source, Path]":
        """Data and folder; InputError for what can be refused before anything is worked out."""
        from mebp.task.train.run import require_new_folder  # noqa: PLC0415

        self.training.check(self.step, self.search.seed)
        source = self.data.source(self.step.seq_len)
        source.files()
        self.run.forms()
        self.run.require_devices()
        if self.budget is not None:
            parse_nbytes(self.budget, "--budget")
        folder = self.run.output or Path(f"{Path(source.data).stem}-adapter")
        require_new_folder(folder)
        return source, folder

    def _workload(self, found: "FoundModel", corpus: "Corpus") -> "tuple[Workload, Device, int]":
        """The step, this machine, measured at the step's shapes, and the budget in bytes."""
        from mebp.models.workload import require_workload  # noqa: PLC0415
        from mebp.task.train.planning import with_batches_of  # noqa: PLC0415

        workload = self.step.workload(found.formats)
        if self.step.weights is not None and workload.weights != found.formats:
            assert found.formats
            raise InputError(f"--weights {self.step.weights}: the store is in {found.formats.name}: leave the flag out")
        require_workload(found.config, workload)
        machine = self._machine(found, workload, corpus)
        budget_bytes = TargetFlags(budget=self.budget).budget_on(machine, note)
        tokens = self.training.tokens_per_step
        if tokens is None:
            return workload, machine, budget_bytes
        effort = self.search.effort()
        with working("choosing the batch size"):
            workload = interruptible(
                lambda: with_batches_of(tokens, found.config, workload, corpus, machine, budget_bytes, effort), effort.stop
            )
        note(f"batches of {workload.batch_size}, {workload.accumulate} for each update")
        return workload, self._machine(found, workload, corpus), budget_bytes

    def _machine(self, found: "FoundModel", workload: "Workload", corpus: "Corpus") -> "Device":
        from mebp.sim.profile import override  # noqa: PLC0415

        longest = _longest(workload, corpus)
        return override(this_machine(found.config, longest, self.run.spill_dir), self.profile.overrides())


def _weights(model: ModelFlags, step: TrainStepFlags) -> "FoundModel":
    """The model with a store of its weights: its own, or one that is made of its checkpoint or GGUF file once."""
    from mebp.models.format import weight_formats  # noqa: PLC0415
    from mebp.task.weights import compressed_store  # noqa: PLC0415

    if model.model is None:
        raise InputError("--model is missing: name a checkpoint's folder, a GGUF file, or a store that `compress` wrote")
    found = model.found()
    if found.store is not None:
        return found
    path = Path(model.model)
    if not path.exists():
        raise InputError(f"--model {model.model} names no weights: name a checkpoint's folder, a GGUF file, or a store")
    formats = None if step.weights is None else weight_formats(step.weights)
    with working(f"compressing {path.name}") as status:
        store, written = compressed_store(
            path, formats, lambda done, total: status.update(f"compressing {path.name}: {done / total:.0%}")
        )
    if written:
        note(f"compressed {path} to {store}")
    from mebp.task.model import found_store  # noqa: PLC0415

    return replace(found_store(store), wrapper=found.wrapper, architecture=found.architecture)


def _read(source: "Source", found: "FoundModel") -> "Corpus":
    from mebp.data.record_tokenizer import open_record_tokenizer  # noqa: PLC0415
    from mebp.task.train.corpus import read_corpus  # noqa: PLC0415

    assert found.store is not None
    tokenizer = open_record_tokenizer(found.store)
    if tokenizer.end is None:
        note("the model's tokenizer names no end of a text: completions and texts are learnt without one")
    with working("reading the data") as status:
        return read_corpus(
            source,
            tokenizer,
            found.config.vocab,
            lambda file, count: status.update(f"reading {file.name}: {count:,} records"),
        )


def _longest(workload: "Workload", corpus: "Corpus") -> "Workload":
    """The workload at the longest bucket, as it is calibrated for."""
    from mebp.task.train.corpus import most_labelled  # noqa: PLC0415

    split = corpus.train
    labelled = most_labelled(split, len(split.seq_lens) - 1, workload.batch_size)
    return replace(workload, seq_len=split.seq_lens[-1], labelled=labelled, method="backprop")


def _planned(
    found: "FoundModel",
    workload: "Workload",
    corpus: "Corpus",
    settings: "TrainSettings",
    machine: "Device",
    budget_bytes: int,
    search: SearchFlags,
) -> "TrainingPlan":
    from mebp.task.train.planning import plan_training  # noqa: PLC0415

    effort = search.effort()
    with working(f"planning {found.config.name}") as status:
        return interruptible(
            lambda: plan_training(
                found.config,
                workload,
                corpus,
                settings,
                machine,
                budget_bytes,
                effort,
                lambda what: status.update(f"planning {found.config.name}: {what}"),
            ),
            effort.stop,
        )


def _run(folder: Path, limits: "Limits", stopping: Stopping, *, resume: bool) -> "Outcome":
    """Train, with what happens on stderr; signals ask the run to stop."""
    from mebp.cli.view.live import LiveView  # noqa: PLC0415
    from mebp.task.train.folder import read_run  # noqa: PLC0415
    from mebp.task.train.run import Callbacks, run_in  # noqa: PLC0415

    with LiveView(read_run(folder)) as live, stopping.listens(live.say):
        callbacks = Callbacks(report=live.report, warn=live.say, ready=stopping.ready)
        try:
            return run_in(folder, resume=resume, limits=limits, callbacks=callbacks)
        except (MebpError, KeyboardInterrupt):
            if live.saved is not None:
                live.say(f"update {live.saved} is saved: resume with mebp-plan train --resume {shlex.quote(str(folder))}")
            raise


def _print(outcome: "Outcome", *, as_json: bool) -> None:
    from mebp.cli.view.train import outcome_json, print_outcome  # noqa: PLC0415

    if as_json:
        typer.echo(outcome_json(outcome), nl=False)
    else:
        print_outcome(stdout(), outcome)
