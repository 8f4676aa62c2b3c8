"""`mebp-plan verify`: a grid of plans executed here, each prediction beside its measurement, and the errors in one table."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from mebp.cli.command.device import calibrated
from mebp.cli.command.plan import search_limits
from mebp.cli.command.run import MAX_STEPS, default_store, measure
from mebp.cli.request import Flag, Request
from mebp.cli.screen import note, stdout, working
from mebp.cli.unit import show_nbytes, show_ns
from mebp.errors import Disagreement, InfeasibleBudget, InputError
from mebp.models.graph import Graph
from mebp.plan import Plan
from mebp.sim.cost import floor_ns
from mebp.sim.device import Device
from mebp.sim.profile import override
from mebp.sim.simulate import Prediction, simulate

if TYPE_CHECKING:
    from mebp.executor.measure.worker import Measurement

FIXED = ("checkpoint-1", "mebp", "keep-all")
BUDGETS = (1.1, 1.5)  # times the least plan's footprint, for solved plans
LEAST_FLOOR_S = 0.02
WORST_MEMORY, WORST_TIME, MEDIAN_TIME = 0.03, 0.20, 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One plan, what was predicted of it and what was measured."""

    name: str
    plan: Plan
    predicted: Prediction
    measured: "Measurement"
    floor_ns: float  # of the step's dense products, as the profile has it

    @property
    def memory_error(self) -> float:
        """Of the process's anonymous peak, relative."""
        return self.measured.peak_bytes / self.predicted.peak_bytes - 1

    @property
    def time_error(self) -> float:
        """Of the median step, relative."""
        return median(self.measured.step_s) * 1e9 / self.predicted.step_ns - 1

    @property
    def speed(self) -> float:
        """How fast dense products were right after the run, against calibration: a machine's clock need not be its own. 1
        where they are too short to tell.
        """
        return self.floor_ns / (self.measured.floor_s * 1e9) if self.measured.floor_s > LEAST_FLOOR_S else 1.0

    @property
    def time_error_at_its_speed(self) -> float:
        """Of the median step, relative, had calibration found the machine as fast as it was then."""
        return (1 + self.time_error) * self.speed - 1

    @property
    def arena_exact(self) -> bool:
        return self.measured.arena_bytes == self.plan.arena_bytes


def verify(
    request: Request,
    steps: Annotated[int, Flag("--steps", help="Steps to time of each plan, after one to warm up.")] = 3,
    store: Annotated[Path | None, Flag("--store", help="Folder of compressed weights; default: random ones, written once.")] = None,
    spill_dir: Annotated[Path | None, Flag("--spill-dir", help="Folder for the spill file.")] = None,
    as_json: Annotated[bool, Flag("--json", help="Print JSON.")] = False,
) -> None:
    """Calibrate at this model's shapes, execute six plans, and print how far each prediction is off."""
    if not 1 <= steps <= MAX_STEPS:
        raise InputError(f"--steps = {steps}: must be between 1 and {MAX_STEPS}")
    refused = sorted(request.given & {"device", "budget"})
    if refused:
        raise InputError(f"verify runs on this machine at budgets of its own: leave --{refused[0]} out")
    folder = store or default_store(request.config, request.workload.weights)
    machine = calibrated(request.config, request.workload, spill_dir)
    device = override(machine, request.overrides)
    graph = request.graph()
    from mebp.executor.measure.worker import Job  # noqa: PLC0415  (--help does without)

    found = []
    for name, plan, own in _plans(request, graph, device):
        note(f"running {name}")
        measured = measure(plan, Job(store=folder, steps=steps, spill_dir=spill_dir, seed=request.seed))
        predicted = simulate(plan, own, device)
        found.append(Comparison(name=name, plan=plan, predicted=predicted, measured=measured, floor_ns=floor_ns(own, machine)))
    typer.echo(_json(found), nl=False) if as_json else _print(request, found)
    _require_agreement(found)


def _plans(request: Request, graph: Graph, device: Device) -> list[tuple[str, Plan, Graph]]:
    """The grid, each with the graph that it runs: fixed recipes, the least plan, and solved ones between."""
    from mebp.planner.recipe.strategies import STRATEGIES  # noqa: PLC0415
    from mebp.planner.solver.problem import pose  # noqa: PLC0415
    from mebp.planner.solver.solve import least_plan, solve  # noqa: PLC0415
    from mebp.planner.tradeoff import strategy_row  # noqa: PLC0415
    from mebp.sim.footprint import outside_arena  # noqa: PLC0415  (the solver takes half a second to import)

    with working("planning"):
        rows = [strategy_row(STRATEGIES[name], graph, device, device.default_budget_bytes) for name in FIXED]
        found = [(row.name, row.plan, row.graph) for row in rows]
        problem, limits = pose(graph, device), search_limits(request)
        least = least_plan(problem, 0, limits)
        found.append(("least", least, graph))
        for factor in BUDGETS:
            budget = int(factor * (outside_arena(graph, device) + least.arena_bytes))
            try:
                found.append((f"solved at {show_nbytes(budget)}", solve(problem, budget, limits), graph))
            except InfeasibleBudget:
                continue
    return found


def _print(request: Request, found: list[Comparison]) -> None:
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    w = request.workload
    console = stdout()
    console.print(f"{request.config.name}, {w.batch_size} x {w.seq_len} tokens, on this machine, just calibrated", markup=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("plan", no_wrap=True)
    for title in ("arena", "peak", "off by", "step", "off by", "speed", "at it", "floor"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in found:
        step = median(one.measured.step_s)
        floor = f"{step / one.measured.floor_s:.2f}" if one.measured.floor_s else "-"
        arena = "exact" if one.arena_exact else "WRONG"
        memory, seconds = show_nbytes(one.measured.peak_bytes), show_ns(step * 1e9)
        speed = f"{one.speed:.2f}", _error(one.time_error_at_its_speed)
        table.add_row(one.name, arena, memory, _error(one.memory_error), seconds, _error(one.time_error), *speed, floor)
    console.print(table)
    console.print(
        "speed: of dense products right after the run, against calibration; at it: the step against the prediction for a machine"
        " of that speed; floor: the step against the time of its dense products",
        style="dim",
        markup=False,
    )
    console.print(_summary(found), markup=False)


def _error(part: float) -> str:
    """A relative error, short where it is absurd."""
    return f"{part:+.1%}" if abs(part) < 1 else f"{part:+.0%}"


def _summary(found: list[Comparison]) -> str:
    memory = max(abs(one.memory_error) for one in found)
    times, fair = [abs(one.time_error) for one in found], [abs(one.time_error_at_its_speed) for one in found]
    return (
        f"peak off by {memory:.1%} at worst; step off by {median(times):.1%} in the median, {max(times):.1%} at worst,"
        f" at the machine's speed of each run {median(fair):.1%} and {max(fair):.1%}"
    )


def _json(found: list[Comparison]) -> str:
    rows = [
        {
            "name": one.name,
            "arena_exact": one.arena_exact,
            "predicted_peak_bytes": one.predicted.peak_bytes,
            "measured_peak_bytes": one.measured.peak_bytes,
            "predicted_step_time_us": round(one.predicted.step_ns / 1000),
            "measured_step_time_us": round(median(one.measured.step_s) * 1e6),
            "floor_us": round(one.measured.floor_s * 1e6),
            "calibrated_floor_us": round(one.floor_ns / 1000),
        }
        for one in found
    ]
    return json.dumps({"schema_version": 1, "plans": rows}, indent=2) + "\n"


def _require_agreement(found: list[Comparison]) -> None:
    """Raise Disagreement (exit 4) where predictions are off by more than they may be, at the machine's speed of each run."""
    times = [abs(one.time_error_at_its_speed) for one in found]
    wrong = [one.name for one in found if not one.arena_exact or abs(one.memory_error) > WORST_MEMORY]
    if wrong:
        raise Disagreement(f"memory of {', '.join(wrong)} is off by more than {WORST_MEMORY:.0%}")
    if max(times) > WORST_TIME or median(times) > MEDIAN_TIME:
        raise Disagreement(f"{_summary(found)} (bounds: {MEDIAN_TIME:.0%}, {WORST_TIME:.0%}): try again on a quiet machine")
