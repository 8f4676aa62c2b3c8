"""`mebp-plan run`: execute a plan on this machine, and print what was predicted beside what was measured."""

import hashlib
import json
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import platformdirs
import typer

from mebp.check import check, graph_of
from mebp.cli.command.device import HOST, measure_host
from mebp.cli.command.model import make_store
from mebp.cli.command.plan import pick, search
from mebp.cli.request import Flag, Request
from mebp.cli.screen import note, require_apart, stdout, working, write_file
from mebp.cli.unit import parse_nbytes, show_nbytes
from mebp.errors import Disagreement, InfeasibleBudget, InputError, NoPlanInTime
from mebp.models.build import build_graph
from mebp.models.config import ModelConfig
from mebp.models.format import STORE_VERSION, WeightFormat
from mebp.models.graph import Graph, signature
from mebp.models.workload import Workload
from mebp.plan import Plan, dump_plan, read_plan
from mebp.sim.device import Device
from mebp.sim.profile import load_device, override, user_device_dir
from mebp.sim.shape import knows
from mebp.sim.simulate import Prediction, simulate

if TYPE_CHECKING:
    from mebp.executor.measure.worker import GradientCheck, Job, Measurement

MEMORY_TOLERANCE = 0.10
TIME_TOLERANCE = 2.0  # a shared machine's clock alone moves by a factor of two between calibration and run
MAX_STEPS = 100_000
TORCH_DEVICES = ("cpu", "cuda", "mps")


def run(
    request: Request,
    plan_file: Annotated[
        Path | None,
        typer.Argument(metavar="[PLAN.json]", help="A plan that `plan -o` wrote; without it, plan for this machine first."),
    ] = None,
    steps: Annotated[int, Flag("--steps", help="Steps to time, after one to warm up.")] = 3,
    store: Annotated[Path | None, Flag("--store", help="Folder of compressed weights; default: random ones, written once.")] = None,
    ids: Annotated[Path | None, Flag("--ids", help="JSON file of token ids, one list a sequence; default: random ones.")] = None,
    choose: Annotated[str | None, Flag("--plan", help="Run this row of the table, not the fastest that fits.")] = None,
    spill_dir: Annotated[Path | None, Flag("--spill-dir", help="Folder for the spill file.")] = None,
    torch_device: Annotated[str, Flag("--torch-device", help="cpu, cuda or mps.")] = "cpu",
    check_gradients: Annotated[bool, Flag("--check-gradients", help="Compare every adapter gradient with autograd's.")] = False,
    enforce: Annotated[bool, Flag("--enforce", help="Let the kernel refuse memory beyond the plan's budget.")] = False,
    limit: Annotated[str | None, Flag("--limit", help="A memory cgroup's limit that counts page cache too, such as 1GiB.")] = None,
    output: Annotated[Path | None, Flag("--output", "-o", help="Write the plan that was run to this JSON file.")] = None,
    trace: Annotated[Path | None, Flag("--trace", help="Write both timelines as a Chrome trace.")] = None,
    as_json: Annotated[bool, Flag("--json", help="Print JSON.")] = False,
) -> None:
    """Execute a plan for real: predicted beside measured."""
    _require_flags(steps, spill_dir, torch_device, plan_file, choose)
    limit_bytes, token_ids = 0 if limit is None else parse_nbytes(limit, "--limit"), _token_ids(ids)
    require_apart(request, {"the plan": plan_file, "--ids": ids, "-o": output, "--trace": trace})
    given = None if plan_file is None else _read(plan_file, request)
    config, workload = (given.config, given.workload) if given else (request.config, request.workload)
    own = given.overrides if given and given.device == HOST else ()
    host = override(host_profile(config, workload, spill_dir), (*own, *request.overrides))
    plan, graph = (given, graph_of(given, str(plan_file))) if given else _solve(request, host, choose)
    check(plan, graph)
    prediction = simulate(plan, graph, host)
    _require_room(prediction, limit_bytes, plan.budget_bytes if enforce else 0)
    from mebp.executor.measure.worker import Job  # noqa: PLC0415  (--help does without)

    job = Job(
        store=store or default_store(config, workload.weights),
        steps=steps,
        device=torch_device,
        spill_dir=spill_dir,
        ids=token_ids,
        seed=request.seed,
        check_gradients=check_gradients,
        enforce=enforce,
        limit_bytes=limit_bytes,
    )
    measurement = measure(plan, job)
    if trace is not None:
        _write_trace(trace, plan, prediction, measurement)
    if output is not None:
        write_file(output, dump_plan(plan))
    _print(plan, graph, prediction, measurement, as_json)
    require_agreement(plan, prediction, measurement)


def _require_flags(steps: int, spill_dir: Path | None, torch_device: str, plan_file: Path | None, choose: str | None) -> None:
    """Refuse flags that no run can take."""
    if not 1 <= steps <= MAX_STEPS:
        raise InputError(f"--steps = {steps}: must be between 1 and {MAX_STEPS}")
    if spill_dir is not None and not spill_dir.is_dir():
        raise InputError(f"--spill-dir {spill_dir}: no such folder: make it, or leave the flag out")
    if plan_file is not None and choose is not None:
        raise InputError(f"--plan {choose} chooses a row of a table, and {plan_file} is one plan: leave one of the two out")
    if torch_device.partition(":")[0] not in TORCH_DEVICES:
        raise InputError(f"--torch-device = {torch_device!r}: must be one of {', '.join(TORCH_DEVICES)}")


def _require_room(prediction: Prediction, limit_bytes: int, budget_bytes: int) -> None:
    """Refuse a --limit, or a budget to --enforce (0: none), below what the process takes by itself here."""
    for what, nbytes in (("--limit", limit_bytes), ("--enforce: the plan's budget of", budget_bytes)):
        if 0 < nbytes < prediction.peak_bytes:
            peak = show_nbytes(prediction.peak_bytes, up=True)
            message = f"{what} {show_nbytes(nbytes)} is below what the process takes by itself, {peak}: raise it, or plan for less"
            raise InfeasibleBudget(message, nbytes, prediction.peak_bytes)


def _read(path: Path, request: Request) -> Plan:
    """A plan file; flags that it decides itself are refused, and --model must name its model."""
    plan = read_plan(path)
    decided = sorted(request.given - {"model", "seed", "set"})
    if decided:
        raise InputError(f"{path} decides --{decided[0].replace('_', '-')} itself: leave the flag out, or plan again with it")
    if "model" in request.given and signature(request.config, plan.workload) != plan.signature:
        asked = request.config.name
        raise InputError(f"{path} is a plan for {plan.config.name}, --model asks for {asked}: plan again, or leave --model out")
    return plan


def _solve(request: Request, host: Device, choose: str | None) -> tuple[Plan, Graph]:
    """Plan for this machine, or for the device asked for."""
    device = host if request.device_name in (None, HOST) else request.device(HOST)
    found = search(request, device)
    if found.interrupted:
        raise KeyboardInterrupt
    row = pick(found, choose)
    if row is None:
        from mebp.cli.view.table import refusal  # noqa: PLC0415

        if found.out_of_time:
            raise NoPlanInTime(refusal(found))
        raise InfeasibleBudget(refusal(found), found.budget_bytes, found.least_budget_bytes)
    return row.plan, row.graph


def host_profile(config: ModelConfig, workload: Workload, spill_dir: Path | None) -> Device:
    """This machine's profile, measured first where there is none, or where it was measured at other shapes only."""
    path = user_device_dir() / f"{HOST}.toml"
    if path.is_file():
        known = load_device(HOST)
        if not known.shapes or knows(known, build_graph(config, workload)):
            return known
        note(f"no measurements at the shapes of {config.name} yet: calibrating first (under a minute)")
    else:
        note("no profile of this machine yet: calibrating first (under a minute)")
    return measure_host(config, workload, spill_dir, path)


def default_store(config: ModelConfig, fmt: WeightFormat) -> Path:
    """A store of random weights in the user's cache, written when first asked for."""
    shapes = json.dumps([config.matrices(), config.vectors(), config.norm_offset, STORE_VERSION])
    key = hashlib.sha256(shapes.encode()).hexdigest()[:8]
    folder = platformdirs.user_cache_path("mebp-plan") / "stores" / f"{config.name}-{fmt.name}-{key}"
    if not (folder / "weights.safetensors").is_file():
        size = sum(fmt.nbytes(*shape) for shape in config.matrices().values())
        note(f"no --store given: writing random weights of {config.name} to {folder} ({show_nbytes(size)})")
        make_store(folder, config, fmt, seed=0)
    return folder


def _token_ids(path: Path | None) -> tuple[tuple[int, ...], ...] | None:
    if path is None:
        return None
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        ok = isinstance(rows, list) and rows and all(isinstance(r, list) and r and all(type(t) is int for t in r) for r in rows)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read token ids from {path}: {getattr(error, 'strerror', None) or error}") from None
    if not ok or len({len(row) for row in rows}) != 1:
        raise InputError(f"{path} does not hold token ids: expected a JSON list of lists of integers, all of one length")
    return tuple(tuple(row) for row in rows)


def measure(plan: Plan, job: "Job") -> "Measurement":
    """Run the job in a process of its own, with progress on stderr."""
    from mebp.executor.measure.worker import run_plan  # noqa: PLC0415

    with working(f"running {plan.name}") as status:
        return run_plan(plan, job, lambda done, total: status.update(f"running {plan.name}: step {done} of {total}"))


def _write_trace(path: Path, plan: Plan, prediction: Prediction, measurement: "Measurement") -> None:
    from mebp.sim.trace import Track, chrome_trace, predicted_track  # noqa: PLC0415

    tracks = [predicted_track(plan, prediction), Track(name="measured", spans_ns=measurement.spans_ns, memory=measurement.memory)]
    write_file(path, chrome_trace(plan, prediction, tracks))


def _print(plan: Plan, graph: Graph, prediction: Prediction, measurement: "Measurement", as_json: bool) -> None:
    if as_json:
        from mebp.cli.view.fields import run_json  # noqa: PLC0415

        typer.echo(run_json(plan.name, plan.arena_bytes, prediction, measurement), nl=False)
        return
    from mebp.cli.view.measured import print_run  # noqa: PLC0415

    print_run(stdout(), plan, graph, prediction, measurement)


def require_agreement(plan: Plan, prediction: Prediction, measured: "Measurement") -> None:
    """Raise Disagreement (exit 4) where the run differs from its prediction beyond tolerance."""
    if measured.arena_bytes != plan.arena_bytes:
        raise Disagreement(f"the arena was used up to byte {measured.arena_bytes}, the plan says {plan.arena_bytes}")
    memory = measured.peak_bytes / prediction.peak_bytes - 1
    if abs(memory) > MEMORY_TOLERANCE:
        raise Disagreement(
            f"the measured peak, {show_nbytes(measured.peak_bytes)}, is {memory:+.0%} off the predicted one"
            f" (tolerance {MEMORY_TOLERANCE:.0%}): run `mebp-plan calibrate` for this model and try again"
        )
    check = measured.gradients
    if check is not None and not gradients_agree(plan, check):
        raise Disagreement(
            f"gradients are off autograd's: cosine {check.cosine:.6f}, worst relative error"
            f" {check.max_relative_error:.1e}: a bug to report"
        )
    ratio = median(measured.step_s) * 1e9 / prediction.step_ns
    if not 1 / (1 + TIME_TOLERANCE) <= ratio <= 1 + TIME_TOLERANCE:
        raise Disagreement(
            f"the measured step takes {ratio:.2f} x the predicted time: run `mebp-plan calibrate` on a quiet machine and try again"
        )


def gradients_agree(plan: Plan, check: "GradientCheck") -> bool:
    """fp32: every gradient to 1e-4, relative; bf16: all of them together to a cosine of 0.999."""
    return check.max_relative_error <= 1e-4 if plan.workload.precision == "fp32" else check.cosine >= 0.999
