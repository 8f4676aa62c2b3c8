"""`mebp-plan train`: plan a fine-tuning run for this machine, then train, and write the adapter."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from mebp.cli.command.target import this_machine
from mebp.cli.flag import OUTPUT, RUN, STEP, Flag, FlagGroup, ModelFlags, ProfileFlags, SearchFlags, StepFlags
from mebp.cli.flag import TARGET as BUDGET
from mebp.cli.screen import interruptible, note, stdout, working
from mebp.errors import InputError
from mebp.unit import parse_nbytes

if TYPE_CHECKING:
    from rich.console import Console

    from mebp.executor.train.settings import Settings
    from mebp.models.format import WeightFormats
    from mebp.models.optimizer import Decay
    from mebp.models.workload import Workload
    from mebp.sim.device import Device
    from mebp.task.model import FoundModel
    from mebp.task.train.corpus import Corpus, Source
    from mebp.task.train.planning import TrainingPlan
    from mebp.task.train.run import Limits, Outcome

DATA, TRAINING = "Data", "Training"
METHODS = ("backprop", "mezo")
WARM_UP = 0.03  # of the updates, where nothing is said
EVALUATIONS = 10  # of held-out data, where nothing is said
DEFAULT_EPOCHS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainStepFlags(StepFlags):
    """The step, with the defaults of training."""

    optimizer: Annotated[str, Flag("--optimizer", help="adamw or sgd.", rich_help_panel=STEP)] = "adamw"
    clip_norm: Annotated[
        float, Flag("--clip-norm", help="Clip the gradient of all adapters together to this 2-norm; 0: off.", rich_help_panel=STEP)
    ] = 1.0
    accumulate: Annotated[
        int, Flag("--accumulate", help="Batches whose gradients make one update, by their labels.", rich_help_panel=STEP)
    ] = 1
    seq_len: Annotated[int, Flag("--seq-len", help="Tokens of a sequence at most; longer ones are cut.", rich_help_panel=DATA)] = (
        256
    )
    method: Annotated[
        str, Flag("--method", help="backprop, or mezo: two forwards and no backward, an estimate.", rich_help_panel=STEP)
    ] = "backprop"

    def workload(self, formats: "WeightFormats | None" = None) -> "Workload":
        """The step that the flags describe; MeZO has no gradient to clip."""
        from mebp.models.workload import Method  # noqa: PLC0415

        if self.method not in METHODS:
            raise InputError(f"--method = {self.method!r}: must be one of {', '.join(METHODS)}")
        found = StepFlags.workload(self, formats)
        if self.method == "mezo":
            found = replace(found, optimizer="sgd", clip_norm=0.0)
        return replace(found, method=cast(Method, self.method))


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFlags(FlagGroup):
    """What is trained on."""

    data: Annotated[
        Path | None,
        Flag(
            "--data",
            help="JSON lines with messages, prompt and completion, or text; a text file; or a folder with train.jsonl.",
            rich_help_panel=DATA,
        ),
    ] = None
    valid: Annotated[
        Path | None, Flag("--valid", help="Held-out data. Default: the folder's valid.jsonl.", rich_help_panel=DATA)
    ] = None
    hold_out: Annotated[
        float, Flag("--hold-out", help="Part of the data, at its end, to hold out instead: 0.05.", rich_help_panel=DATA)
    ] = 0.0
    pack: Annotated[
        bool | None,
        Flag("--pack/--no-pack", help="Cut all records as one stream. Default: for plain text alone.", rich_help_panel=DATA),
    ] = None
    buckets: Annotated[
        int, Flag("--buckets", help="Lengths that samples are padded to, each with a plan of its own.", rich_help_panel=DATA)
    ] = 2

    def source(self, seq_len: int) -> "Source":
        """Which data, as the library takes it."""
        from mebp.task.train.corpus import Source  # noqa: PLC0415

        if self.data is None:
            raise InputError("--data is missing: name a file of text or JSON lines, or a folder with train.jsonl")
        return Source(
            data=self.data.absolute(),
            valid=None if self.valid is None else self.valid.absolute(),
            hold_out=self.hold_out,
            seq_len=seq_len,
            buckets=self.buckets,
            packed=self.pack,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainFlags(FlagGroup):
    """How it is trained."""

    steps: Annotated[int | None, Flag("--steps", help="Updates of the adapters.", rich_help_panel=TRAINING)] = None
    epochs: Annotated[float | None, Flag("--epochs", help="Or passes over the data. Default: 1.", rich_help_panel=TRAINING)] = None
    learning_rate: Annotated[
        float | None,
        Flag(
            "--learning-rate", "--lr", help="Highest learning rate. Default: 2e-4 (SGD: 0.1, MeZO: 1e-4).", rich_help_panel=TRAINING
        ),
    ] = None
    schedule: Annotated[
        str, Flag("--schedule", help="How the rate decays: cosine, linear or constant.", rich_help_panel=TRAINING)
    ] = "cosine"
    warm_up: Annotated[
        int | None, Flag("--warm-up", help="Updates over which the rate climbs. Default: 3% of all.", rich_help_panel=TRAINING)
    ] = None
    lowest_rate: Annotated[
        float, Flag("--lowest-rate", help="Where the rate ends, as a part of the highest.", rich_help_panel=TRAINING)
    ] = 0.0
    weight_decay: Annotated[float, Flag("--weight-decay", help="Decoupled decay of adapters.", rich_help_panel=TRAINING)] = 0.0
    beta1: Annotated[float, Flag("--beta1", help="AdamW's.", rich_help_panel=TRAINING)] = 0.9
    beta2: Annotated[float, Flag("--beta2", help="AdamW's.", rich_help_panel=TRAINING)] = 0.999
    perturbation: Annotated[float, Flag("--perturbation", help="MeZO's step to either side.", rich_help_panel=TRAINING)] = 1e-3
    tokens_per_step: Annotated[
        int | None,
        Flag(
            "--tokens-per-step",
            help="Tokens of an update: batch size and accumulation are chosen for most tokens a second.",
            rich_help_panel=TRAINING,
        ),
    ] = None
    evaluate_every: Annotated[
        int | None,
        Flag("--evaluate-every", help="Updates between evaluations. Default: a tenth of all; 0: none.", rich_help_panel=TRAINING),
    ] = None
    patience: Annotated[
        int, Flag("--patience", help="End after so many evaluations without a better loss; 0: never.", rich_help_panel=TRAINING)
    ] = 0
    save_every: Annotated[
        int, Flag("--save-every", help="Updates between saves; 0: at the end alone.", rich_help_panel=TRAINING)
    ] = 50

    def settings(self, workload: "Workload", updates_per_epoch: int, seed: int, *, evaluates: bool) -> "Settings":
        """The settings of a run on data of which an epoch takes so many updates."""
        from mebp.executor.train.settings import Settings, require_settings  # noqa: PLC0415
        from mebp.models.optimizer import Optimizer, Schedule  # noqa: PLC0415

        updates = self.updates(updates_per_epoch)
        warm_up = min(updates - 1, round(WARM_UP * updates)) if self.warm_up is None else self.warm_up
        rates = {"mezo": 1e-4, "sgd": 0.1, "adamw": 2e-4}
        kind = "mezo" if workload.method == "mezo" else workload.optimizer
        every = max(1, updates // EVALUATIONS) if self.evaluate_every is None else self.evaluate_every
        settings = Settings(
            updates=updates,
            accumulate=workload.accumulate,
            optimizer=Optimizer(
                rate=rates[kind] if self.learning_rate is None else self.learning_rate,
                betas=(self.beta1, self.beta2),
                weight_decay=self.weight_decay,
                perturbation=self.perturbation,
                schedule=Schedule(decay=cast("Decay", self.schedule), warm_up=warm_up, updates=updates, lowest=self.lowest_rate),
            ),
            evaluate_every=every if evaluates else 0,
            patience=self.patience,
            save_every=self.save_every,
            seed=seed,
        )
        if self.patience and not evaluates:
            raise InputError(f"`patience` = {self.patience} counts evaluations of held-out data: name `valid`, or `hold_out`")
        require_settings(settings)
        return settings

    def updates(self, updates_per_epoch: int) -> int:
        """Updates of the whole run."""
        if self.steps is not None and self.epochs is not None:
            raise InputError(f"--steps {self.steps} and --epochs {self.epochs:g} both say how long: leave one of the two out")
        if self.steps is not None:
            return self.steps
        epochs = DEFAULT_EPOCHS if self.epochs is None else self.epochs
        if not 0 < epochs <= 1e6:
            raise InputError(f"`epochs` = {epochs:g}: must be above 0, and 1000000 at most")
        return max(1, round(epochs * updates_per_epoch))

    def check(self, workload: "Workload", seed: int) -> None:
        """Refuse, before anything is read, what no run can take."""
        self.settings(workload, 100, seed, evaluates=True)
        if self.tokens_per_step is not None and self.tokens_per_step < 2:
            raise InputError(f"`tokens_per_step` = {self.tokens_per_step}: must be 2 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFlags(FlagGroup):
    """Where the run goes and what it may take."""

    output: Annotated[
        Path | None, Flag("--output", "-o", help="Folder of the run, made new: adapter, state, log.", rich_help_panel=OUTPUT)
    ] = None
    to: Annotated[
        str, Flag("--to", help="Forms of the adapter: peft, gguf, mlx, or several: peft,gguf.", rich_help_panel=OUTPUT)
    ] = "peft"
    as_json: Annotated[bool, Flag("--json", help="Print JSON in the end.", rich_help_panel=OUTPUT)] = False
    resume: Annotated[
        Path | None, Flag("--resume", help="Go on with the run in this folder; it decides all but limits.", rich_help_panel=RUN)
    ] = None
    enforce: Annotated[bool, Flag("--enforce", help="Stop where memory exceeds the budget.", rich_help_panel=RUN)] = False
    limit: Annotated[
        str | None,
        Flag("--limit", help="Limit in a memory cgroup, where page cache counts too, such as 1GiB.", rich_help_panel=RUN),
    ] = None
    spill_dir: Annotated[
        Path | None, Flag("--spill-dir", help="Folder for the spill file and for states in a file.", rich_help_panel=RUN)
    ] = None
    torch_device: Annotated[str, Flag("--torch-device", help="cpu, cuda or mps.", rich_help_panel=RUN)] = "cpu"

    def limits(self) -> "Limits":
        from mebp.task.train.run import Limits  # noqa: PLC0415

        return Limits(enforce=self.enforce, limit_bytes=0 if self.limit is None else parse_nbytes(self.limit, "--limit"))

    def forms(self) -> tuple[str, ...]:
        """Forms that the adapter is written in."""
        from mebp.task.train.run import FORMS  # noqa: PLC0415

        found = tuple(dict.fromkeys(part.strip() for part in self.to.split(",") if part.strip()))
        unknown = [form for form in found if form not in FORMS]
        if unknown or not found:
            raise InputError(f"`to` = {self.to!r}: take some of {', '.join(FORMS)}")
        return found


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
        Flag("--budget", "-b", help="Memory of the process: 512MB. Default: the machine's.", rich_help_panel=BUDGET),
    ] = None,
) -> None:
    """Fine-tune a model on this machine, within a budget of memory: data in, an adapter out.

    Plans first, says what the run will take, then trains. Ctrl-C finishes the update, saves, and says how to go on.
    """
    limits = run.limits()
    if run.resume is not None:
        _refuse_with_resume(model, data, step, training, search, run, budget)
        folder = run.resume
    else:
        folder = _begin(model, data, step, training, profile, search, run, budget)
    outcome = _run(folder, limits, resume=run.resume is not None)
    _print(outcome, folder, as_json=run.as_json)


def _refuse_with_resume(
    model: ModelFlags,
    data: DataFlags,
    step: TrainStepFlags,
    training: TrainFlags,
    search: SearchFlags,
    run: RunFlags,
    budget: str | None,
) -> None:
    given = [*model.given(), *data.given(), *step.given(), *training.given(), *search.given()]
    given += ["--budget"] if budget is not None else []
    given += [flag for flag, value in (("-o", run.output), ("--spill-dir", run.spill_dir)) if value is not None]
    given += ["--to"] if run.to != "peft" else []
    if given:
        raise InputError(f"--resume {run.resume}: the run decides {sorted(given)[0]} itself: leave the flag out")


def _begin(
    model: ModelFlags,
    data: DataFlags,
    step: TrainStepFlags,
    training: TrainFlags,
    profile: ProfileFlags,
    search: SearchFlags,
    run: RunFlags,
    budget: str | None,
) -> Path:
    """Plan a new run, print what it will take, and write it into its folder."""
    from mebp.cli.view.train import print_plan  # noqa: PLC0415
    from mebp.data.order import Order  # noqa: PLC0415
    from mebp.sim.profile import override  # noqa: PLC0415
    from mebp.task.run import require_spill_dir  # noqa: PLC0415
    from mebp.task.train.folder import BaseModel  # noqa: PLC0415
    from mebp.task.train.planning import with_batches_of  # noqa: PLC0415
    from mebp.task.train.run import new_run, require_new_folder  # noqa: PLC0415

    training.check(step.workload(), search.seed)
    source, forms = data.source(step.seq_len), run.forms()
    source.files()
    require_spill_dir(run.spill_dir)
    asked = None if budget is None else parse_nbytes(budget, "--budget")
    folder = run.output or Path(f"{source.data.stem}-adapter")
    found = _weights(model, step)
    assert found.store is not None
    workload = step.workload(found.formats)
    require_new_folder(folder)
    corpus = _read(source, found)
    machine = override(this_machine(found.config, _longest(workload, corpus), run.spill_dir), profile.overrides())
    budget_bytes = machine.default_budget_bytes if asked is None else min(asked, int(machine.hardware.app_limit_bytes))
    if training.tokens_per_step is not None:
        with working("choosing the batch size"):
            effort = search.effort()
            workload = interruptible(
                lambda: with_batches_of(
                    training.tokens_per_step or 0, found.config, workload, corpus, machine, budget_bytes, effort
                ),
                effort.stop,
            )
        note(f"batches of {workload.batch_size}, {workload.accumulate} for each update")
        machine = override(this_machine(found.config, _longest(workload, corpus), run.spill_dir), profile.overrides())
    order = Order(corpus.train.samples, corpus.train.seq_lens, batch_size=workload.batch_size, accumulate=workload.accumulate)
    settings = training.settings(workload, order.updates_per_epoch, search.seed, evaluates=corpus.held_out is not None)
    plan = _planned(found, workload, corpus, settings, machine, budget_bytes, search)
    print_plan(stdout() if not run.as_json else _stderr(), found.config.name, corpus, plan, settings, workload)
    base = BaseModel(name=model.model or str(found.store), wrapper=found.wrapper, architecture=found.architecture)
    command = ("mebp-plan", *sys.argv[1:])
    new_run(
        folder,
        found.store,
        base,
        source,
        corpus,
        plan,
        settings,
        to=forms,
        command=command,
        device=run.torch_device,
        spill_dir=None if run.spill_dir is None else run.spill_dir.absolute(),
    )
    return folder


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
    from mebp.data.token_set import open_speller  # noqa: PLC0415
    from mebp.task.train.corpus import read_corpus  # noqa: PLC0415

    assert found.store is not None
    with working("reading the data") as status:
        return read_corpus(
            source,
            open_speller(found.store),
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
    settings: "Settings",
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


def _run(folder: Path, limits: "Limits", *, resume: bool) -> "Outcome":
    """Train, with what happens on stderr; signals ask the run to stop, and are said as exit codes by `_print`."""
    from mebp.cli.view.train import Watching  # noqa: PLC0415
    from mebp.task.train.folder import read_run  # noqa: PLC0415
    from mebp.task.train.run import Watch, run_in  # noqa: PLC0415

    with Watching(read_run(folder)) as watching, _stoppable(watching.say) as ready:
        watch = Watch(report=watching.report, complain=watching.say, ready=ready)
        return run_in(folder, resume=resume, limits=limits, watch=watch)


STOPPED: list[int] = []


@contextmanager
def _stoppable(say: Callable[[str], None]) -> Iterator[Callable[[Callable[[], None]], None]]:
    """While this is entered Ctrl-C, SIGTERM and a hang-up ask the run to stop after its update; a third one does not wait."""
    stops: list[Callable[[], None]] = []
    STOPPED.clear()

    def heard(number: int, _: object) -> None:
        STOPPED.append(number)
        if len(STOPPED) > 2 or not stops:
            raise KeyboardInterrupt
        say("stopping after this update; once more still waits for it, a third time does not" if len(STOPPED) == 1 else "stopping")
        stops[0]()

    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield stops.append
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print(outcome: "Outcome", folder: Path, *, as_json: bool) -> None:
    from mebp.cli.view.train import outcome_json, print_outcome  # noqa: PLC0415

    if as_json:
        typer.echo(outcome_json(outcome), nl=False)
    else:
        print_outcome(stdout(), outcome)
    if outcome.trained.ending == "stopped":
        note(
            f"mebp-plan: stopped after update {outcome.trained.number} of {outcome.run.settings.updates}, saved: go on with"
            f" mebp-plan train --resume {folder}"
        )
        number = STOPPED[0] if STOPPED else signal.SIGINT
        raise typer.Exit(130 if number == signal.SIGINT else 128 + number)


def _stderr() -> "Console":
    from rich.console import Console  # noqa: PLC0415

    return Console(stderr=True, highlight=False)
