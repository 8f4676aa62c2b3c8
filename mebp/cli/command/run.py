"""`mebp-plan run`: execute a plan on this machine, and print what was predicted and what was measured."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mebp.cli.command.plan import pick, require_row, solved
from mebp.cli.command.target import this_machine
from mebp.cli.flag import OUTPUT, RUN, Flag, FlagGroup, ModelFlags, ProfileFlags, SearchFlags, StepFlags, TargetFlags, folder_files
from mebp.cli.screen import note, require_apart, stdout, working
from mebp.errors import InfeasibleBudget, InputError, NoPlanInTime
from mebp.plan import HOST
from mebp.text import read_text, require_writable, write_file
from mebp.unit import parse_nbytes, show_nbytes

if TYPE_CHECKING:
    from mebp.executor.measure.job import Job
    from mebp.models.config import ModelConfig
    from mebp.models.format import WeightFormats
    from mebp.models.graph import Graph
    from mebp.models.workload import Workload
    from mebp.plan import Plan
    from mebp.sim.device import Device
    from mebp.task.model import FoundModel
    from mebp.task.run import RunResult


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFlags(FlagGroup):
    """How a plan is run."""

    steps: Annotated[int, Flag("--steps", help="Steps to time, after one to warm up.", rich_help_panel=RUN)] = 3
    store: Annotated[
        Path | None,
        Flag("--store", help="Folder of compressed weights; default: random ones, written once.", rich_help_panel=RUN),
    ] = None
    ids: Annotated[
        Path | None,
        Flag("--ids", help="JSON file of token ids, one list per sequence; default: random ones.", rich_help_panel=RUN),
    ] = None
    text: Annotated[
        Path | None, Flag("--text", help="Text file to step on, by the tokenizer beside the store's weights.", rich_help_panel=RUN)
    ] = None
    spill_dir: Annotated[Path | None, Flag("--spill-dir", help="Folder for the spill file.", rich_help_panel=RUN)] = None
    torch_device: Annotated[str, Flag("--torch-device", help="cpu, cuda or mps.", rich_help_panel=RUN)] = "cpu"
    check_gradients: Annotated[
        bool, Flag("--check-gradients", help="Compare every adapter gradient with autograd's.", rich_help_panel=RUN)
    ] = False
    enforce: Annotated[
        bool, Flag("--enforce", help="Stop the run where its memory exceeds the plan's budget.", rich_help_panel=RUN)
    ] = False
    limit: Annotated[
        str | None,
        Flag("--limit", help="Limit in a memory cgroup, where page cache counts too, such as 1GiB.", rich_help_panel=RUN),
    ] = None

    def job(self, seed: int, store: Path | None) -> "Job":
        """The job for the worker on `store`, which may still have to be found; refuses what no run can take."""
        from mebp.executor.measure.job import Job  # noqa: PLC0415
        from mebp.task.run import NO_STORE, require_job  # noqa: PLC0415

        require_job(self.steps, self.spill_dir, self.torch_device)
        if self.text is not None and (self.ids is not None or store is None):
            missing = "--ids names tokens already: leave one of the two out" if store else "a store has the tokenizer: name one"
            raise InputError(f"--text {self.text}: {missing}")
        return Job(
            store=store or NO_STORE,
            steps=self.steps,
            device=self.torch_device,
            spill_dir=self.spill_dir,
            ids=_token_ids(self.ids),
            seed=seed,
            check_gradients=self.check_gradients,
            enforce=self.enforce,
            limit_bytes=0 if self.limit is None else parse_nbytes(self.limit, "--limit"),
        )

    def with_text(self, job: "Job", workload: "Workload") -> "Job":
        """The job on the tokens of --text, where it is given."""
        from mebp.task.sample import sample_ids  # noqa: PLC0415

        if self.text is None:
            return job
        count, length = workload.batch_size, workload.seq_len
        return replace(job, ids=sample_ids(job.store, self.text, "--text", count=count, length=length))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs(FlagGroup):
    """What is written in addition to the tables."""

    output: Annotated[
        Path | None, Flag("--output", "-o", help="Write the plan that was run to this JSON file.", rich_help_panel=OUTPUT)
    ] = None
    trace: Annotated[Path | None, Flag("--trace", help="Write both timelines as a Chrome trace.", rich_help_panel=OUTPUT)] = None
    as_json: Annotated[bool, Flag("--json", help="Print JSON.", rich_help_panel=OUTPUT)] = False


def run(
    model: ModelFlags,
    step: StepFlags,
    target: TargetFlags,
    profile: ProfileFlags,
    search: SearchFlags,
    flags: RunFlags,
    outputs: Outputs,
    plan_file: Annotated[
        Path | None,
        typer.Argument(metavar="[PLAN.json]", help="A plan that `plan -o` wrote; without it, plan for this machine first."),
    ] = None,
    choose: Annotated[str | None, Flag("--plan", help="Run this row of the table, not the fastest that fits.")] = None,
) -> None:
    """Execute a plan on this machine: predicted vs. measured.

    Without PLAN.json it plans first: for this machine, or with --device for another, whose plan then runs here too. Without --store
    it runs on random weights of the model's shapes.
    """
    from mebp.sim.profile import override  # noqa: PLC0415
    from mebp.task.agreement import require_agreement  # noqa: PLC0415
    from mebp.task.run import require_inputs  # noqa: PLC0415
    from mebp.task.run import run as execute  # noqa: PLC0415

    if plan_file is not None and choose is not None:
        raise InputError(f"--plan {choose} chooses a row of a table, and {plan_file} is one plan: leave one of the two out")
    named = None if plan_file is not None and model.model is None else model.found(flags.store)
    store = named.store if named else flags.store
    job = flags.job(search.seed, store)
    require_row(choose)
    written = {"-o": outputs.output, "--trace": outputs.trace}
    read = [path for path in (plan_file, flags.ids, flags.text) if path is not None]
    require_apart(written, [*read, *model.files(), *target.files(), *folder_files(store)])
    require_writable(written)
    given = None if plan_file is None else _given_plan(plan_file, model, step, target, profile, search)
    config, workload = _shapes(given, named, step)
    job = flags.with_text(job, workload)
    require_inputs(job, config, workload)
    machine = this_machine(config, workload, flags.spill_dir)
    own = given.overrides if given and given.device == HOST else ()
    device = override(machine, (*own, *profile.overrides()))
    plan, graph = _graph_of(given, plan_file) if given else _plan_first(config, workload, device, target, profile, search, choose)
    job = replace(job, store=store or random_store(config, workload.weights))
    with working(f"running {plan.name}") as status:
        result = execute(plan, graph, machine, device, job, lambda n, of: status.update(f"running {plan.name}: step {n} of {of}"))
    _write(result, outputs)
    _print(result, outputs)
    require_agreement(result)


def _shapes(given: "Plan | None", named: "FoundModel | None", step: StepFlags) -> "tuple[ModelConfig, Workload]":
    """Model and step: a plan's own, else those that the flags name."""
    if given is not None:
        return given.config, given.workload
    assert named is not None
    return named.config, step.workload(named.formats)


def _given_plan(
    path: Path, model: ModelFlags, step: StepFlags, target: TargetFlags, profile: ProfileFlags, search: SearchFlags
) -> "Plan":
    """A plan file; flags that it decides itself are refused, and --model must name its model."""
    from mebp.models.build import build_graph  # noqa: PLC0415
    from mebp.plan import read_plan  # noqa: PLC0415

    plan = read_plan(path)
    of_profile = [] if profile.max_flash_write is None else ["--max-flash-write"]
    of_search = [] if search.time_limit is None else ["--time-limit"]
    decided = sorted([*step.given(), *target.given(), *of_profile, *of_search])
    if decided:
        raise InputError(f"{path} decides {decided[0]} itself: leave the flag out, or plan again with it")
    if model.model is not None and build_graph(model.config(), plan.workload).signature != plan.signature:
        asked = model.config().name
        raise InputError(f"{path} is a plan for {plan.config.name}, --model asks for {asked}: plan again, or leave --model out")
    return plan


def _graph_of(plan: "Plan", path: Path | None) -> "tuple[Plan, Graph]":
    from mebp.check import graph_of  # noqa: PLC0415

    return plan, graph_of(plan, str(path))


def _plan_first(
    config: "ModelConfig",
    workload: "Workload",
    here: "Device",
    target: TargetFlags,
    profile: ProfileFlags,
    search: SearchFlags,
    choose: str | None,
) -> "tuple[Plan, Graph]":
    """Plan for this machine, or for the device given."""
    from mebp.cli.view.tradeoff import refusal  # noqa: PLC0415
    from mebp.models.build import build_graph  # noqa: PLC0415

    device = here if target.device in (None, HOST) else target.load(profile)
    effort = search.effort()
    found = pick(solved(build_graph(config, workload), device, target.budget_on(device, note), effort), choose)
    if found.interrupted:
        raise KeyboardInterrupt
    if found.chosen is None and found.out_of_time:
        raise NoPlanInTime(refusal(found))
    if found.chosen is None:
        raise InfeasibleBudget(refusal(found), found.budget_bytes, found.least_budget_bytes)
    return found.chosen.plan, found.chosen.graph


def random_store(config: "ModelConfig", formats: "WeightFormats") -> Path:
    """A store of random weights in the user's cache, written on first use, with progress on stderr."""
    from mebp.task.weights import default_store, is_written, store_nbytes, write_default  # noqa: PLC0415

    store = default_store(config, formats)
    if not is_written(store):
        size = show_nbytes(store_nbytes(config, formats))
        note(f"no --store given: writing random weights of {config.name} to {store} ({size})")
        with working(f"synthesizing {config.name}") as status:
            write_default(config, formats, lambda n, of: status.update(f"synthesizing {config.name}: {n / of:.0%}"))
    return store


def _token_ids(path: Path | None) -> tuple[tuple[int, ...], ...] | None:
    if path is None:
        return None
    try:
        rows = json.loads(read_text(path))
        ok = isinstance(rows, list) and rows and all(isinstance(r, list) and r and all(type(t) is int for t in r) for r in rows)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read token ids from {path}: {getattr(error, 'strerror', None) or error}") from None
    if not ok or len({len(row) for row in rows}) != 1:
        raise InputError(f"{path} has no token ids: expected a JSON list of lists of integers, all of one length")
    return tuple(tuple(row) for row in rows)


def _write(result: "RunResult", outputs: Outputs) -> None:
    """Write the plan and both timelines, where files are named."""
    plan, measured = result.plan, result.measured
    if outputs.trace is not None:
        from mebp.sim.trace import Track, chrome_trace, predicted_track  # noqa: PLC0415

        track = Track(name="measured", spans_ns=measured.spans_ns, memory=measured.memory)
        tracks = [predicted_track(plan, result.predicted), track]
        write_file(outputs.trace, chrome_trace(plan, result.predicted, tracks))
    if outputs.output is not None:
        from mebp.plan import dump_plan  # noqa: PLC0415

        write_file(outputs.output, dump_plan(plan))


def _print(result: "RunResult", outputs: Outputs) -> None:
    if outputs.as_json:
        from mebp.cli.view.fields import run_json  # noqa: PLC0415

        typer.echo(run_json(result), nl=False)
        return
    from mebp.cli.view.run import print_run  # noqa: PLC0415

    print_run(stdout(), result)
