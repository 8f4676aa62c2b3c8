"""`mebp-plan train`: plan a fine-tuning run for this machine, then train, and write the adapter."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mebp.cli.command.target import this_machine
from mebp.cli.flag import TARGET, Flag, ModelFlags, ProfileFlags, SearchFlags
from mebp.cli.screen import interruptible, note, stdout, working
from mebp.cli.stopping import Stopping
from mebp.cli.train_flag import DataFlags, RunFlags, TrainFlags, TrainStepFlags
from mebp.errors import InputError
from mebp.unit import parse_nbytes

if TYPE_CHECKING:
    from rich.console import Console

    from mebp.executor.train.settings import Settings
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

    Plans first, says what the run will take, then trains. Ctrl-C finishes the update, saves, and says how to go on.
    """
    limits = run.limits()
    if run.resume is not None:
        _refuse_with_resume(model, data, step, training, search, run, budget)
        folder = run.resume
    else:
        folder = _begin(model, data, step, training, profile, search, run, budget)
    stopping = Stopping()
    outcome = _run(folder, limits, stopping, resume=run.resume is not None)
    _print(outcome, folder, as_json=run.as_json)
    if outcome.trained.ending == "stopped":
        done = f"stopped after update {outcome.trained.number} of {outcome.run.settings.updates}, saved"
        raise stopping.as_error(f"{done}: go on with mebp-plan train --resume {folder}")


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
    folder = run.output or Path(f"{Path(source.data).stem}-adapter")
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
    from mebp.data.speller import open_speller  # noqa: PLC0415
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


def _run(folder: Path, limits: "Limits", stopping: Stopping, *, resume: bool) -> "Outcome":
    """Train, with what happens on stderr; signals ask the run to stop."""
    from mebp.cli.view.watching import Watching  # noqa: PLC0415
    from mebp.task.train.folder import read_run  # noqa: PLC0415
    from mebp.task.train.run import Watch, run_in  # noqa: PLC0415

    with Watching(read_run(folder)) as watching, stopping.listens(watching.say):
        watch = Watch(report=watching.report, complain=watching.say, ready=stopping.ready)
        return run_in(folder, resume=resume, limits=limits, watch=watch)


def _print(outcome: "Outcome", folder: Path, *, as_json: bool) -> None:
    from mebp.cli.view.train import outcome_json, print_outcome  # noqa: PLC0415

    if as_json:
        typer.echo(outcome_json(outcome), nl=False)
    else:
        print_outcome(stdout(), outcome)


def _stderr() -> "Console":
    from rich.console import Console  # noqa: PLC0415

    return Console(stderr=True, highlight=False)
