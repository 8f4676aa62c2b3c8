"""The trade-off table: every fixed strategy and the solved plans on one graph, device and budget, and which of them to take."""

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from mebp.errors import InfeasibleBudget, NoPlanInTime
from mebp.models.graph import Graph
from mebp.plan import Plan
from mebp.planner.curve import Corner, outline
from mebp.planner.effort import Effort, Phase
from mebp.planner.knob import Knob, knobs, longest_sequence
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.planner.row import Row, row_of, strategy_row
from mebp.planner.solver.solve import SLACK
from mebp.planner.tiling import Tilings, tilings
from mebp.sim.device import Device
from mebp.sim.simulate import simulate
from mebp.sim.uncertainty import Uncertainty
from mebp.unit import require_budget, require_kind, show_nbytes

Found = TypeVar("Found")
CORNERS = 6  # budgets of the outline
MUCH_LESS = 0.9  # of the bytes that the fastest row writes
MORE_BYTES = 64 << 20
ESSENTIAL = ("mebp", "checkpoint-1")  # recipes that are planned however little time there is, and after a stop
SOLVED, LEAST, PAPER = "solved", "least", "mebp"
SUMMARIES = {name: strategy.summary for name, strategy in STRATEGIES.items()} | {
    SOLVED: "the fastest plan that CP-SAT finds",
    LEAST: "the plan with the least memory found",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tradeoff:
    """All rows, the fastest exact one that fits (None: nothing does), and the least budget under which something is known to.

    `out_of_time` where a search ended without a solution: then what does not fit is not known to. `interrupted` where one was cut
    short. `outline` is the trade-off curve by its bound; `more_saves_ns` is what MORE_BYTES of budget more would save of the chosen
    plan's step at most, `writing` what writing more than the solved plan would. `remedies` are changes under which something fits,
    where nothing does (None: not looked for). `uncertainty` is the range of the chosen plan's prediction.
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
    writing: "Writing | None" = None
    remedies: tuple[Knob, ...] | None = None
    uncertainty: Uncertainty | None = None

    def __repr__(self) -> str:
        chosen = self.chosen.name if self.chosen else "nothing fits"
        where = f"{self.graph.config.name} on {self.device.name} in {show_nbytes(self.budget_bytes)}"
        return f"<Tradeoff of {where}: {len(self.rows)} rows, {chosen}>"

    @property
    def tight(self) -> bool:
        """Whether the chosen plan fits as predicted, and does not at the upper end of its range."""
        return self.chosen is not None and self.chosen.fits and not self.chosen.surely

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """What a plan that writes more would do: bytes per step in addition, and ns per step saved."""

    more_bytes: int
    saves_ns: int


def tradeoff(
    graph: Graph, device: Device, budget_bytes: int, effort: Effort | None = None, *, recipes: Collection[str] = STRATEGIES
) -> Tradeoff:
    """Plan `graph` every way there is, of fixed recipes those that are named. A stop ends the search with the best plans so far,
    the essential recipes among them.

    Plans are made for the budget less the margin by which predictions may be too low; where none is found, for all of it. The
    solver runs concurrently with the fixed strategies: CP-SAT releases the GIL.
    """
    require_kind("`graph`", graph, Graph, remedy="build_graph makes one")
    require_kind("`device`", device, Device, remedy="load_device makes one")
    require_budget(budget_bytes)
    effort = effort or Effort()
    with ThreadPoolExecutor(max_workers=1) as pool:
        solver = pool.submit(_solved, graph, device, budget_bytes, effort)
        rows = [
            strategy_row(strategy, graph, device, budget_bytes)
            for strategy in sorted(STRATEGIES.values(), key=lambda strategy: strategy.name not in ESSENTIAL)
            if strategy.name in ESSENTIAL or (strategy.name in recipes and not (effort.stop.asked or effort.over))
        ]
        solved = solver.result()
    rows += solved.rows
    exact = [row for row in rows if row.plan.exact]
    chosen = chosen_of(exact)
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
        writing=solved.writing if chosen is not None and chosen.name == SOLVED else None,
    )


def chosen_of(exact: Sequence[Row]) -> Row | None:
    """The fastest row that fits surely, else of those that fit; where rows about as fast write much less, the one that writes
    least.
    """
    fitting = [row for row in exact if row.surely] or [row for row in exact if row.fits]
    if not fitting:
        return None
    fastest = min(fitting, key=lambda row: (row.prediction.step_ns, row.prediction.flash_written_bytes, row.name != SOLVED))
    alike = [row for row in fitting if row.prediction.step_ns <= fastest.prediction.step_ns * (1 + SLACK)]
    less = [row for row in alike if row.prediction.flash_written_bytes < MUCH_LESS * fastest.prediction.flash_written_bytes]
    return min(less, key=lambda row: (row.prediction.flash_written_bytes, row.prediction.step_ns), default=fastest)


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
        f"does not fit {found.budget_bytes} bytes: the least budget found is {found.least_budget_bytes} bytes"
        f" (plan {least.name}; most of it {binding}): raise `budget`, or lower `seq_len`, `batch_size` or `rank`",
        found.budget_bytes,
        found.least_budget_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Solutions:
    """The solved rows, whether a search found nothing in its time, and the lower bounds of the trade-off curve."""

    rows: tuple[Row, ...]
    out_of_time: bool
    outline: tuple[Corner, ...] = ()
    best_with_more_ns: int | None = None
    writing: Writing | None = None


def _solved(graph: Graph, device: Device, budget_bytes: int, effort: Effort) -> _Solutions:
    step = tilings(graph, device, effort)
    smallest = _in_time(lambda: step.least(budget_bytes, replace(effort, progress=None)))
    found, out_of_time = _solution(step, budget_bytes, effort, smallest)
    thrifty = step.write_less(found, effort) if found else None
    if thrifty and (smallest is None or step.footprint(thrifty) < step.footprint(smallest)):
        smallest = replace(thrifty, name=LEAST, solver=None)
    rows = tuple(
        row_of(replace(plan, budget_bytes=budget_bytes), step.graph_of(plan), device)
        for plan in (thrifty, smallest)
        if plan is not None
    )
    least = rows[-1].prediction.peak_bytes if smallest else None
    fits = least is not None and least <= budget_bytes
    return _Solutions(
        rows=rows,
        out_of_time=out_of_time or smallest is None,
        outline=_in_time(lambda: outline(step, least, budget_bytes, CORNERS)) or () if least is not None else (),
        best_with_more_ns=_in_time(lambda: step.best_step_ns(budget_bytes + MORE_BYTES)) if fits else None,
        writing=_writing(found, rows[0], device) if found else None,
    )


def _solution(step: Tilings, budget_bytes: int, effort: Effort, least: Plan | None) -> tuple[Plan | None, bool]:
    """The solved plan, None where there is none, and whether there was no time for one."""
    for surely in (True, False):
        try:
            return step.solve(budget_bytes, effort, least, surely=surely), False
        except NoPlanInTime:
            return None, True
        except InfeasibleBudget:
            continue
    return None, False


def _writing(fastest: Plan, row: Row, device: Device) -> Writing | None:
    """What the fastest plan writes and saves in addition to the one that was chosen for writing less."""
    before = simulate(fastest, row.graph, device)
    more = before.flash_written_bytes - row.prediction.flash_written_bytes
    saves = row.prediction.step_ns - before.step_ns
    return Writing(more_bytes=more, saves_ns=saves) if more > 0 and saves > 0 else None


def _in_time(search: Callable[[], Found]) -> Found | None:
    """What a search finds, None where it finds nothing in its time."""
    try:
        return search()
    except NoPlanInTime:
        return None


def remedies(found: Tradeoff, effort: Effort) -> tuple[Knob, ...] | None:
    """Changes under which something fits the budget of a table in which nothing does: the longest sequence first. None where the
    time was over before any was tried.
    """
    if found.device.runtime.footprint_bytes >= found.budget_bytes:
        return ()
    if effort.over:
        return None
    limited = effort.of(Phase.REMEDY)
    longest = longest_sequence(found.graph, found.device, found.budget_bytes, found.least_budget_bytes, limited)
    tried = knobs(found.graph, found.device, found.budget_bytes, limited, only_other=True)
    others = [knob for knob in tried if knob.least_budget_bytes <= found.budget_bytes]
    fitting = (*([longest] if longest else []), *sorted(others, key=lambda knob: knob.least_budget_bytes))
    return None if not fitting and effort.over else fitting
