"""The trade-off table: every fixed strategy and the solved plans on one graph, device and budget, and which of them to take."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from mebp.check import check
from mebp.errors import InfeasibleBudget, Interrupted, NoPlanInTime
from mebp.models.graph import Graph
from mebp.plan import Plan
from mebp.planner.curve import Corner, best_step_ns, outline
from mebp.planner.effort import Effort, Phase
from mebp.planner.knob import Knob, knobs
from mebp.planner.recipe.strategies import STRATEGIES, Strategy
from mebp.planner.solver.problem import pose
from mebp.planner.solver.solve import least_plan, solve
from mebp.sim.device import Device
from mebp.sim.simulate import Prediction, simulate
from mebp.sim.uncertainty import Uncertainty

CORNERS = 6  # budgets of the outline
MORE_BYTES = 64 << 20
HELPS = 0.98  # of the least budget, the runtime's own footprint apart: a remedy leads to no more than that
SOLVED, LEAST, PAPER = "solved", "least", "mebp"
SUMMARIES = {name: strategy.summary for name, strategy in STRATEGIES.items()} | {
    SOLVED: "the fastest plan that CP-SAT finds",
    LEAST: "the plan with the least memory found",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One plan, checked and simulated."""

    plan: Plan
    graph: Graph
    prediction: Prediction
    fits: bool
    within_cap: bool

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def status(self) -> str | None:
        """`optimal` where the simulated step meets the solver's bound, else `feasible`; None for fixed strategies."""
        return None if self.gap is None else "optimal" if self.gap == 0 else "feasible"

    @property
    def proven(self) -> bool:
        """Whether the solver's bounds hold for this time: it is the one that they were proven for."""
        solver = self.plan.solver
        return solver is not None and solver.objective_ns == self.prediction.step_ns

    @property
    def gap(self) -> float | None:
        """How far the simulated step can be above the optimum of the solver's class; None where nothing is proven."""
        solver = self.plan.solver
        return 1 - solver.bound_ns / self.prediction.step_ns if solver and self.proven else None

    @property
    def whole_gap(self) -> float | None:
        """How far the simulated step is above a bound on every plan of the language; None where nothing is proven."""
        solver = self.plan.solver
        return 1 - solver.whole_bound_ns / self.prediction.step_ns if solver and self.proven else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tradeoff:
    """All rows, the fastest exact one that fits (None: nothing does), and the least budget under which something is known to.

    `out_of_time` where a search ended without a solution: then what does not fit is not known to. `interrupted` where one was cut
    short. `outline` is the trade-off curve by its bound; `more_saves_ns` is what MORE_BYTES of budget more would save of the chosen
    plan's step at most. `remedies` are changes that lower the least budget, where nothing fits. `uncertainty` is the range of the
    chosen plan's prediction.
    """

    graph: Graph
    device: Device
    budget_bytes: int
    rows: tuple[Row, ...]
    chosen: Row | None
    least_budget_bytes: int
    out_of_time: bool = False
    interrupted: bool = False
    outline: tuple[Corner, ...] = ()
    more_saves_ns: int | None = None
    remedies: tuple[Knob, ...] = ()
    uncertainty: Uncertainty | None = None

    @property
    def tight(self) -> bool:
        """Whether the chosen plan fits as predicted, and does not at the upper end of its range."""
        fits = self.chosen is not None and self.chosen.fits
        return fits and self.uncertainty is not None and self.uncertainty.peak_bytes[1] > self.budget_bytes

    @property
    def least(self) -> Row:
        """The exact row with the lowest peak that writes no more than it may."""
        return min((row for row in self.rows if row.plan.exact and row.within_cap), key=lambda row: row.prediction.peak_bytes)

    def row(self, name: str) -> Row | None:
        """The row called `name`, if there is one."""
        return next((row for row in self.rows if row.name == name), None)

    def pick(self, name: str) -> "Tradeoff":
        """The same table with the row called `name` chosen; KeyError where there is none."""
        row = self.row(name)
        if row is None:
            raise KeyError(name)
        return replace(self, chosen=row)


def tradeoff(graph: Graph, device: Device, budget_bytes: int, effort: Effort | None = None) -> Tradeoff:
    """Plan `graph` every way there is. A stop ends the search with the best plans so far; Interrupted where there is none.

    The solver runs concurrently with the fixed strategies: CP-SAT releases the GIL.
    """
    effort = effort or Effort()
    with ThreadPoolExecutor(max_workers=1) as pool:
        solver = pool.submit(_solved, graph, device, budget_bytes, effort)
        rows = [strategy_row(strategy, graph, device, budget_bytes) for strategy in STRATEGIES.values() if not effort.stop.asked]
        solved = solver.result()
    rows += solved.rows
    if not rows:
        raise Interrupted("interrupted")
    exact = [row for row in rows if row.plan.exact]
    fitting = [row for row in exact if row.fits]
    chosen = min(fitting, key=lambda row: (row.prediction.step_ns, row.prediction.flash_written_bytes), default=None)
    return Tradeoff(
        graph=graph,
        device=device,
        budget_bytes=budget_bytes,
        rows=tuple(rows),
        chosen=chosen,
        least_budget_bytes=min(row.prediction.peak_bytes for row in exact if row.within_cap),
        out_of_time=solved.out_of_time,
        interrupted=effort.stop.asked,
        outline=solved.outline,
        more_saves_ns=_more_saves_ns(chosen, solved.best_with_more_ns),
    )


def _more_saves_ns(chosen: Row | None, best_with_more_ns: int | None) -> int | None:
    """At most what more budget saves of the chosen plan's step: how far it is above the bound there."""
    if chosen is None or best_with_more_ns is None:
        return None
    return max(0, chosen.prediction.step_ns - best_with_more_ns)


def require_fit(found: Tradeoff) -> Row:
    """The chosen row; InfeasibleBudget naming the least budget and what binds there, or NoPlanInTime where that is not known."""
    if found.chosen is not None:
        return found.chosen
    if found.out_of_time:
        raise NoPlanInTime(
            f"no plan within {found.budget_bytes} bytes found in time (one of {found.least_budget_bytes} is known):"
            " raise `time_limit` or `budget`"
        )
    least = found.least
    binding = max(least.prediction.peak_breakdown.items(), key=lambda item: item[1])[0]
    raise InfeasibleBudget(
        f"does not fit {found.budget_bytes} bytes: the least feasible budget is {found.least_budget_bytes} bytes"
        f" (plan {least.name}; most of it {binding}): raise `budget`, or lower `seq_len`, `batch_size` or `rank`",
        found.budget_bytes,
        found.least_budget_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Solutions:
    """The solved rows, whether a search found nothing in its time, and the lower bounds of the trade-off curve."""

    rows: tuple[Row, ...]
    out_of_time: bool
    outline: tuple[Corner, ...]
    best_with_more_ns: int | None


def _solved(graph: Graph, device: Device, budget_bytes: int, effort: Effort) -> _Solutions:
    problem = pose(graph, device)
    smallest = _in_time(lambda: least_plan(problem, budget_bytes, replace(effort, progress=None)))
    found: Plan | None
    try:
        found = _in_time(lambda: solve(problem, budget_bytes, effort, smallest))
        out_of_time = found is None or smallest is None
    except InfeasibleBudget:  # the least plan says what budget would do
        found, out_of_time = None, smallest is None
    rows = tuple(row_of(plan, graph, device) for plan in (found, smallest) if plan is not None)
    least = rows[-1].prediction.peak_bytes if smallest else None
    fits = least is not None and least <= budget_bytes
    return _Solutions(
        rows=rows,
        out_of_time=out_of_time,
        outline=outline(problem, least, budget_bytes, CORNERS) if least is not None else (),
        best_with_more_ns=best_step_ns(problem, budget_bytes + MORE_BYTES) if fits else None,
    )


def _in_time(search: Callable[[], Plan]) -> Plan | None:
    """What a search finds, None where it finds nothing in its time."""
    try:
        return search()
    except NoPlanInTime:
        return None


def remedies(found: Tradeoff, effort: Effort) -> tuple[Knob, ...]:
    """Changes that lower the least budget of a table in which nothing fits, the most effective first."""
    tried = knobs(found.graph, found.device, found.budget_bytes, effort.of(Phase.REMEDY))
    fixed = found.device.runtime.footprint_bytes
    enough = fixed + HELPS * (found.least_budget_bytes - fixed)
    lower = [knob for knob in tried if knob.change and knob.least_budget_bytes < enough]
    return tuple(sorted(lower, key=lambda knob: knob.least_budget_bytes))


def strategy_row(strategy: Strategy, graph: Graph, device: Device, budget_bytes: int) -> Row:
    """Plan, check and simulate one fixed strategy."""
    own = strategy.graph(graph)
    return row_of(strategy.plan(own, device, budget_bytes), own, device)


def row_of(plan: Plan, graph: Graph, device: Device) -> Row:
    """Check and simulate a plan; it fits where its peak and its writes stay within budget and cap."""
    check(plan, graph)
    prediction = simulate(plan, graph, device)
    within_cap = prediction.flash_written_bytes <= device.runtime.flash_write_cap_bytes
    fits = prediction.peak_bytes <= plan.budget_bytes and within_cap
    return Row(plan=plan, graph=graph, prediction=prediction, fits=fits, within_cap=within_cap)
