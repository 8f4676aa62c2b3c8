"""The flags of `mebp-plan train`, in groups: the step with training's defaults, the data, the training itself, where it goes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from mebp.cli.flag import OUTPUT, RUN, STEP, Flag, FlagGroup, StepFlags
from mebp.errors import InputError
from mebp.unit import parse_nbytes, require_whole

if TYPE_CHECKING:
    from mebp.executor.train.settings import TrainSettings
    from mebp.models.format import WeightFormats
    from mebp.models.optimizer import Decay
    from mebp.models.workload import Workload
    from mebp.task.train.corpus import Source
    from mebp.task.train.run import Limits

DATA, TRAINING = "Data", "Training"
METHODS = ("backprop", "mezo")
WARM_UP = 0.03  # of the updates, where nothing is said
EVALUATIONS = 10  # of held-out data, where nothing is said
DEFAULT_EPOCHS = 1.0
MOST_TOKENS = 1 << 30  # of an update
RATES = {"mezo": 1e-4, "sgd": 0.1, "adamw": 2e-4}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainStepFlags(StepFlags):
    """The step, with the defaults of training."""

    optimizer: Annotated[str, Flag("--optimizer", help="adamw or sgd.", rich_help_panel=STEP)] = "adamw"
    clip_norm: Annotated[
        float, Flag("--clip-norm", help="Clip the gradient of all adapters together to this 2-norm; 0: off.", rich_help_panel=STEP)
    ] = 1.0
    accumulate: Annotated[
        int, Flag("--accumulate", help="Batches per update; their gradients are weighted by labelled tokens.", rich_help_panel=STEP)
    ] = 1
    seq_len: Annotated[
        int, Flag("--seq-len", help="Longest sequence, in tokens; longer records are cut.", rich_help_panel=DATA)
    ] = 256
    method: Annotated[
        str, Flag("--method", help="backprop, or mezo: two forwards and no backward, an estimate.", rich_help_panel=STEP)
    ] = "backprop"

    def workload(self, formats: "WeightFormats | None" = None) -> "Workload":
        """The step that the flags describe; MeZO has no gradient to clip."""
        from mebp.models.workload import Method  # noqa: PLC0415

        if self.labelled is not None:
            raise InputError(f"--labelled = {self.labelled}: the data decide which tokens carry a label: leave it out")
        if self.method == "mezo" and self.accumulate > 1:
            raise InputError(f"`accumulate` = {self.accumulate}: MeZO makes an update of every batch: leave it out")
        if self.optimizer not in RATES:
            raise InputError(f"`optimizer` = {self.optimizer!r}: must be one of adamw, sgd")
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
    epochs: Annotated[
        float | None, Flag("--epochs", help="Passes over the data, instead of --steps. Default: 1.", rich_help_panel=TRAINING)
    ] = None
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
        float, Flag("--lowest-rate", help="Final learning rate, as a fraction of the highest.", rich_help_panel=TRAINING)
    ] = 0.0
    weight_decay: Annotated[float, Flag("--weight-decay", help="Decoupled decay of adapters.", rich_help_panel=TRAINING)] = 0.0
    beta1: Annotated[float, Flag("--beta1", help="AdamW: decay of the first moment.", rich_help_panel=TRAINING)] = 0.9
    beta2: Annotated[float, Flag("--beta2", help="AdamW: decay of the second moment.", rich_help_panel=TRAINING)] = 0.999
    perturbation: Annotated[float, Flag("--perturbation", help="MeZO: size of the perturbation.", rich_help_panel=TRAINING)] = 1e-3
    tokens_per_step: Annotated[
        int | None,
        Flag(
            "--tokens-per-step",
            help="Tokens per update: batch size and accumulation are chosen for most tokens per second.",
            rich_help_panel=TRAINING,
        ),
    ] = None
    evaluate_every: Annotated[
        int | None,
        Flag("--evaluate-every", help="Updates between evaluations. Default: a tenth of all; 0: none.", rich_help_panel=TRAINING),
    ] = None
    evaluate_batches: Annotated[
        int, Flag("--evaluate-batches", help="Held-out batches of an evaluation, evenly spread; 0: all.", rich_help_panel=TRAINING)
    ] = 25
    patience: Annotated[
        int, Flag("--patience", help="Stop after N evaluations without a better loss; 0: never.", rich_help_panel=TRAINING)
    ] = 0
    save_every: Annotated[
        int, Flag("--save-every", help="Updates between saves; 0: at the end alone.", rich_help_panel=TRAINING)
    ] = 50

    def settings(self, workload: "Workload", updates_per_epoch: int, seed: int, *, evaluates: bool) -> "TrainSettings":
        """The settings of a run on data of which an epoch takes so many updates."""
        from mebp.executor.train.settings import TrainSettings, require_settings  # noqa: PLC0415
        from mebp.models.optimizer import Optimizer, Schedule  # noqa: PLC0415

        updates = self.updates(updates_per_epoch)
        warm_up = min(updates - 1, round(WARM_UP * updates)) if self.warm_up is None else self.warm_up
        if self.warm_up is not None and self.warm_up > updates:
            raise InputError(f"`warm_up` = {self.warm_up}: the run makes {updates} updates: must be between 0 and that")
        kind = "mezo" if workload.method == "mezo" else workload.optimizer
        every = max(1, updates // EVALUATIONS) if self.evaluate_every is None else self.evaluate_every
        settings = TrainSettings(
            updates=updates,
            accumulate=workload.accumulate,
            optimizer=Optimizer(
                rate=RATES[kind] if self.learning_rate is None else self.learning_rate,
                betas=(self.beta1, self.beta2),
                weight_decay=self.weight_decay,
                perturbation=self.perturbation,
                schedule=Schedule(decay=cast("Decay", self.schedule), warm_up=warm_up, updates=updates, lowest=self.lowest_rate),
            ),
            evaluate_every=every if evaluates else 0,
            evaluate_batches=self.evaluate_batches,
            patience=self.patience,
            save_every=self.save_every,
            seed=seed,
        )
        if not evaluates and (self.patience or self.evaluate_every):
            name, value = ("patience", self.patience) if self.patience else ("evaluate_every", self.evaluate_every)
            raise InputError(f"`{name}` = {value}: there are no held-out data to evaluate: name `valid`, or `hold_out`")
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

    def check(self, step: TrainStepFlags, seed: int) -> None:
        """Refuse, before anything is read, what no run can take."""
        self.settings(step.workload(), 1_000_000, seed, evaluates=True)
        if self.tokens_per_step is None:
            return
        require_whole("`tokens_per_step`", self.tokens_per_step, 2, MOST_TOKENS)
        for flag, given in (
            ("--batch-size", step.batch_size > 1),
            ("--accumulate", step.accumulate > 1),
            ("--method", step.method == "mezo"),
        ):
            if given:
                raise InputError(f"--tokens-per-step decides batch size and accumulation of gradients: leave {flag} out")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFlags(FlagGroup):
    """Where the run goes and what it may take."""

    output: Annotated[
        Path | None,
        Flag(
            "--output",
            "-o",
            help="Folder of the run, made new: adapter, state, log. Default: DATA-adapter.",
            rich_help_panel=OUTPUT,
        ),
    ] = None
    to: Annotated[
        str, Flag("--to", help="Forms of the adapter: peft, gguf, mlx, or several: peft,gguf.", rich_help_panel=OUTPUT)
    ] = "peft"
    base: Annotated[
        str | None,
        Flag("--base", help="Hub id or path that the adapter names as its model. Default: --model.", rich_help_panel=OUTPUT),
    ] = None
    as_json: Annotated[bool, Flag("--json", help="Print the result as JSON.", rich_help_panel=OUTPUT)] = False
    resume: Annotated[
        Path | None,
        Flag(
            "--resume", help="Resume the run in this folder. Only --enforce, --limit and --json may be added.", rich_help_panel=RUN
        ),
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

    def require_devices(self) -> None:
        """Refuse a folder for spilling, or a torch device, that no run can take."""
        from mebp.task.run import require_job  # noqa: PLC0415

        require_job(1, self.spill_dir, self.torch_device)

    def limits(self) -> "Limits":
        """What the run may take."""
        from mebp.task.train.run import Limits  # noqa: PLC0415

        return Limits(enforce=self.enforce, limit_bytes=0 if self.limit is None else parse_nbytes(self.limit, "--limit"))

    def forms(self) -> tuple[str, ...]:
        """Forms that the adapter is written in."""
        from mebp.task.train.adapter import FORMS  # noqa: PLC0415

        found = tuple(dict.fromkeys(part.strip() for part in self.to.split(",") if part.strip()))
        unknown = [form for form in found if form not in FORMS]
        if unknown or not found:
            raise InputError(f"`to` = {self.to!r}: take some of {', '.join(FORMS)}")
        return found
