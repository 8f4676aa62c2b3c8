"""Plans for a run: one for each length that samples are padded to, and one for each of held-out data, all in one arena under one
budget; and what the run is predicted to take.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mebp.data.order import Order
from mebp.errors import InfeasibleBudget, InputError, Interrupted
from mebp.executor.train.settings import Settings
from mebp.models.build import build_graph
from mebp.models.config import ModelConfig
from mebp.models.graph import Graph
from mebp.models.workload import Workload
from mebp.planner.effort import Effort
from mebp.planner.recipe.recipe import Recipe
from mebp.planner.recipe.strategies import EVALUATION, STRATEGIES, Strategy
from mebp.planner.row import Row, row_of
from mebp.planner.solver.problem import head_tiles
from mebp.planner.tradeoff import require_fit, tradeoff
from mebp.sim.device import Device
from mebp.sim.footprint import outside_arena, session_bytes
from mebp.sim.uncertainty import peak_margin
from mebp.task.train.corpus import Corpus, Split, most_labelled
from mebp.unit import require_budget, show_nbytes

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Batches of one length and their plan: how many there are per epoch, and how many of their tokens carry a label at most."""

    seq_len: int
    batches: int
    labelled: int
    row: Row


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """The plans of a run and what it is predicted to take: peak by part, ns of an update on average, of an evaluation, of all."""

    stages: tuple[Stage, ...]
    trials: tuple[Stage, ...]
    budget_bytes: int
    peak_breakdown: Mapping[str, int]
    update_ns: int
    evaluation_ns: int
    total_ns: int
    updates_per_epoch: int

    @property
    def peak_bytes(self) -> int:
        return sum(self.peak_breakdown.values())


def plan_training(
    config: ModelConfig,
    workload: Workload,
    corpus: Corpus,
    settings: Settings,
    device: Device,
    budget_bytes: int,
    effort: Effort,
    progress: Progress = lambda _: None,
) -> TrainingPlan:
    """Plan `workload` at every length of `corpus`, the longest first. InfeasibleBudget naming the least budget where one does not
    fit, NoPlanInTime where the time was too short, Interrupted at a stop.
    """
    require_budget(budget_bytes)
    pairs = list(_graphs(config, workload, corpus.train))
    trials = list(_graphs(config, replace(workload, method="evaluate"), corpus.held_out)) if settings.evaluate_every else []
    graphs = [graph for _, graph in (*pairs, *trials)]
    outside = session_bytes(graphs, device)
    shared = sum(outside.values())
    rows: dict[int, Row] = {}
    for number, graph in reversed(pairs):
        progress(f"{graph.workload.seq_len} tokens")
        others = shared - outside_arena(graph, device)
        rows[number] = _row(graph, device, budget_bytes, others, effort)
    room = budget_bytes - shared - max(peak_margin(graph, device) for graph in graphs)
    trial_rows = [_trial_row(graph, device, room) for _, graph in trials]
    stages = tuple(_stage(corpus.train, number, graph, rows[number]) for number, graph in pairs)
    trial_stages = tuple(
        _stage(corpus.held_out, number, graph, row)
        for (number, graph), row in zip(trials, trial_rows, strict=True)
        if corpus.held_out
    )
    arena = max(stage.row.plan.arena_bytes for stage in (*stages, *trial_stages))
    order = Order(corpus.train.samples, corpus.train.seq_lens, batch_size=workload.batch_size, accumulate=settings.accumulate)
    epoch_ns, all_trials_ns = (
        sum(stage.batches * stage.row.prediction.step_ns for stage in some) for some in (stages, trial_stages)
    )
    batches = sum(stage.batches for stage in trial_stages)
    evaluated = min(batches, settings.evaluate_batches or batches)
    evaluation_ns = round(all_trials_ns * evaluated / max(1, batches))
    update_ns = round(epoch_ns / order.updates_per_epoch)
    return TrainingPlan(
        stages=stages,
        trials=trial_stages,
        budget_bytes=budget_bytes,
        peak_breakdown={"arena": arena, **outside},
        update_ns=update_ns,
        evaluation_ns=evaluation_ns,
        total_ns=update_ns * settings.updates + evaluation_ns * num_evaluations(settings) * bool(trial_stages),
        updates_per_epoch=order.updates_per_epoch,
    )


def num_evaluations(settings: Settings) -> int:
    """Evaluations of a run that ends after all its updates."""
    every = settings.evaluate_every
    return 1 + settings.updates // every + (settings.updates % every > 0) if every else 0


def with_batches_of(
    tokens: int, config: ModelConfig, workload: Workload, corpus: Corpus, device: Device, budget_bytes: int, effort: Effort
) -> Workload:
    """The workload with the batch size and accumulation that give most tokens a second within the budget, for updates of about so
    many tokens: a larger batch decompresses weights less often, and takes more memory. InputError for fewer than a sample has.
    """
    length = float(np.mean(corpus.train.samples.lengths))
    if tokens < length:
        raise InputError(f"`tokens_per_step` = {tokens}: a sample has {length:.0f} tokens on average: raise it")
    found: list[tuple[float, Workload]] = []
    batch_size = 1
    while batch_size * length <= tokens and batch_size <= len(corpus.train.samples):
        accumulate = max(1, round(tokens / (batch_size * length)))
        tried = replace(workload, batch_size=batch_size, accumulate=accumulate)
        *_, (_, graph) = _graphs(config, tried, corpus.train)
        table = tradeoff(graph, device, budget_bytes, effort)
        if table.interrupted:
            raise Interrupted("interrupted before a plan was found")
        if table.chosen is not None:
            found.append((graph.workload.tokens / table.chosen.prediction.step_ns, tried))
        elif not found:
            require_fit(table)
        batch_size *= 2
    return max(found, key=lambda pair: pair[0])[1]


def _graphs(config: ModelConfig, workload: Workload, split: Split | None) -> Iterator[tuple[int, Graph]]:
    """A graph for each length that there are samples of, with its number."""
    if split is None:
        return
    for number, length in enumerate(split.seq_lens):
        labelled = most_labelled(split, number, workload.batch_size)
        most = None if labelled >= workload.batch_size * (length - 1) else labelled
        yield number, build_graph(config, replace(workload, seq_len=length, labelled=most))


def _row(graph: Graph, device: Device, budget_bytes: int, others_bytes: int, effort: Effort) -> Row:
    """The fastest plan that fits, as the trade-off table has it, beside what the other plans of the run take."""
    room = max(0, budget_bytes - others_bytes)
    if graph.workload.method == "mezo":
        strategy = replace(STRATEGIES["mezo"], recipe=EVALUATION.recipe)
        return _widest_tile(strategy, graph, device, room - outside_arena(graph, device))
    found = tradeoff(graph, device, room, effort)
    if found.interrupted:
        raise Interrupted("interrupted before the run began")
    if found.chosen is None and not found.out_of_time:
        least = found.least_budget_bytes + others_bytes
        raise InfeasibleBudget(
            f"training on {graph.workload.tokens} tokens at a time does not fit {show_nbytes(budget_bytes)}: the least budget found"
            f" is {show_nbytes(least, up=True)}: raise `budget`, or lower `seq_len`, `batch_size` or `rank`",
            budget_bytes,
            least,
        )
    return require_fit(found)


def _trial_row(graph: Graph, device: Device, room: int) -> Row:
    return _widest_tile(EVALUATION, graph, device, room)


def _widest_tile(strategy: Strategy, graph: Graph, device: Device, room: int) -> Row:
    """A forward's plan whose arena fits in `room` bytes: the widest tile of the head that does."""
    rows: list[Row] = []
    for tile in sorted(head_tiles(graph), reverse=True):
        own = replace(strategy, recipe=_with_tile(tile))
        row = row_of(own.plan(graph, device, max(0, room) + outside_arena(graph, device)), graph, device)
        if row.plan.arena_bytes <= room:
            return row
        rows.append(row)
    least = min(row.plan.arena_bytes for row in rows)
    raise InfeasibleBudget(
        f"the forward of {graph.workload.tokens} tokens takes an arena of {show_nbytes(least, up=True)}, and `budget` leaves"
        f" {show_nbytes(max(0, room))}: raise it, or lower `seq_len`",
        room,
        least,
    )


def _with_tile(tile: int) -> Callable[[Graph, Device, int], Recipe]:
    return lambda graph, device, budget_bytes: Recipe(head_tile=tile)


def _stage(split: Split | None, number: int, graph: Graph, row: Row) -> Stage:
    assert split
    lengths: Sequence[int] = split.seq_lens
    count = int((np.searchsorted(np.array(lengths), split.samples.lengths) == number).sum())
    return Stage(
        seq_len=graph.workload.seq_len,
        batches=-(-count // graph.workload.batch_size),
        labelled=graph.workload.head_rows,
        row=row,
    )
