"""Plans for a run: one for each length that samples are padded to, and one for each of held-out data, all in one arena under one
budget; and what the run is predicted to take.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mebp.data.order import Order
from mebp.data.sample import bucket_numbers
from mebp.errors import InfeasibleBudget, InputError, Interrupted
from mebp.executor.train.settings import TrainSettings
from mebp.models.build import build_graph
from mebp.models.config import ModelConfig
from mebp.models.graph import Graph
from mebp.models.tensor import WeightId
from mebp.models.workload import Workload
from mebp.planner.effort import Effort
from mebp.planner.recipe.recipe import Recipe
from mebp.planner.recipe.strategies import EVALUATION, STRATEGIES, Strategy
from mebp.planner.row import Row, row_of
from mebp.planner.solver.problem import head_tiles
from mebp.planner.tiling import in_chunks
from mebp.planner.tradeoff import Tradeoff, require_fit, tradeoff
from mebp.sim.cost import CostModel
from mebp.sim.device import Device
from mebp.sim.footprint import outside_arena, session_bytes
from mebp.sim.uncertainty import peak_margin
from mebp.task.train.corpus import Corpus, Split, most_labelled
from mebp.unit import require_budget, show_nbytes

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketPlan:
    """Batches of one length and their plan: how many there are per epoch, and how many of their tokens carry a label at most."""

    seq_len: int
    num_batches: int
    labelled: int
    row: Row


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """The plans of a run and what it is predicted to take: peak by part, ns of an update on average, of an evaluation, of all."""

    train: tuple[BucketPlan, ...]
    held_out: tuple[BucketPlan, ...]
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
    settings: TrainSettings,
    device: Device,
    budget_bytes: int,
    effort: Effort,
    progress: Progress = lambda _: None,
) -> TrainingPlan:
    """Plan `workload` at every length of `corpus`, the longest first. InfeasibleBudget naming the least budget where one does not
    fit, NoPlanInTime where the time was too short, Interrupted at a stop.
    """
    require_budget(budget_bytes)
    shared = _Shared(
        train=_graphs(config, workload, corpus.train),
        held_out=_graphs(config, replace(workload, method="evaluate"), corpus.held_out) if settings.evaluate_every else (),
        device=device,
        budget_bytes=budget_bytes,
    )
    held_out_rows = [shared.forward_row(EVALUATION, graph) for graph in shared.held_out]
    train_rows: list[Row] = []
    for graph in reversed(shared.train):
        progress(f"{graph.workload.seq_len} tokens")
        train_rows.insert(0, _row(shared, graph, effort))
    train = _bucket_plans(corpus.train, train_rows)
    held_out = _bucket_plans(corpus.held_out, held_out_rows) if corpus.held_out else ()
    return _predicted(shared, train, held_out, corpus, workload, settings)


def num_evaluations(settings: TrainSettings, done: int = -1) -> int:
    """Evaluations still to come after `done` updates of a run that ends after all of them; -1: that before the first, too."""
    every = settings.evaluate_every
    if not every:
        return 0
    between = settings.updates // every - max(0, done) // every
    return between + (settings.updates % every > 0) + (done < 0)


def with_batches_of(
    tokens: int,
    config: ModelConfig,
    workload: Workload,
    corpus: Corpus,
    device: Device,
    budget_bytes: int,
    effort: Effort,
) -> Workload:
    """The workload with the batch size and accumulation that give most tokens per second within the budget, for updates of about so
    many tokens: a larger batch unpacks weights less often, and takes more memory. InputError for fewer than a sample has.
    """
    length = float(np.mean(corpus.train.samples.lengths))
    if tokens < length:
        raise InputError(f"`tokens_per_step` = {tokens}: a sample has {length:.0f} tokens on average: raise it")
    found: list[tuple[float, Workload]] = []
    batch_size = 1
    while batch_size * length <= tokens and batch_size <= len(corpus.train.samples):
        tried = replace(workload, batch_size=batch_size, accumulate=max(1, round(tokens / (batch_size * length))))
        train = _graphs(config, tried, corpus.train)
        held_out = _graphs(config, replace(tried, method="evaluate"), corpus.held_out)
        shared = _Shared(train=train, held_out=held_out, device=device, budget_bytes=budget_bytes)
        try:
            for graph in held_out:
                shared.forward_row(EVALUATION, graph)
            row = _row(shared, train[-1], effort)
        except InfeasibleBudget:
            if not found:
                raise
            break
        found.append((train[-1].workload.tokens / row.prediction.step_ns, tried))
        batch_size *= 2
    return max(found, key=lambda pair: pair[0])[1]


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """The graphs of a run, which share adapters, arena and budget."""

    train: Sequence[Graph]
    held_out: Sequence[Graph]
    device: Device
    budget_bytes: int

    @cached_property
    def outside(self) -> dict[str, int]:
        """What lives outside the arena, by name."""
        return session_bytes([*self.train, *self.held_out], self.device)

    def others_bytes(self, graph: Graph) -> int:
        """What the other graphs take outside the arena."""
        return sum(self.outside.values()) - outside_arena(graph, self.device)

    def forward_row(self, strategy: Strategy, graph: Graph) -> Row:
        """A plan of forwards alone whose arena fits: in the largest chunks and with the widest tile of the head that do."""
        needed: list[int] = []
        for chunked in in_chunks(graph):
            outside_bytes = self.others_bytes(graph) + outside_arena(chunked, self.device) + peak_margin(chunked, self.device)
            for tile in sorted(head_tiles(chunked), reverse=True):
                own = replace(strategy, recipe=_with_tile(tile))
                row = row_of(own.plan(chunked, self.device, self.budget_bytes), chunked, self.device)
                needed.append(outside_bytes + row.plan.arena_bytes)
                if needed[-1] <= self.budget_bytes:
                    return row
        raise self.infeasible(graph, min(needed))

    def infeasible(self, graph: Graph, least_bytes: int) -> InfeasibleBudget:
        """What is said where the plans of `graph` do not fit."""
        what = "evaluating" if graph.workload.method == "evaluate" else "training"
        return InfeasibleBudget(
            f"{what} on {graph.workload.tokens} tokens at a time does not fit {show_nbytes(self.budget_bytes)}: the least budget"
            f" found is {show_nbytes(least_bytes, up=True)}: raise `budget`, or lower `seq_len`, `batch_size` or `rank`",
            self.budget_bytes,
            least_bytes,
        )


def _graphs(config: ModelConfig, workload: Workload, split: Split | None) -> tuple[Graph, ...]:
    """A graph for each length of the data."""
    found = []
    for number, length in enumerate(split.seq_lens if split else ()):
        assert split
        labelled = most_labelled(split, number, workload.batch_size)
        most = None if labelled >= workload.batch_size * (length - 1) else labelled
        found.append(build_graph(config, replace(workload, seq_len=length, labelled=most)))
    return tuple(found)


def _row(shared: _Shared, graph: Graph, effort: Effort) -> Row:
    """The fastest plan that fits the room that the other graphs leave, as the trade-off table has it."""
    if graph.workload.method == "mezo":
        return shared.forward_row(replace(STRATEGIES["mezo"], recipe=EVALUATION.recipe), graph)
    others = shared.others_bytes(graph)
    found: Tradeoff = tradeoff(graph, shared.device, max(0, shared.budget_bytes - others), effort)
    if found.interrupted:
        raise Interrupted("interrupted before the run began")
    if found.chosen is None and not found.out_of_time:
        raise shared.infeasible(graph, found.least_budget_bytes + others)
    return require_fit(found)


def _with_tile(tile: int) -> Callable[[Graph, Device, int], Recipe]:
    return lambda graph, device, budget_bytes: Recipe(head_tile=tile)


def _bucket_plans(split: Split, rows: Sequence[Row]) -> tuple[BucketPlan, ...]:
    counts = np.bincount(bucket_numbers(split.samples, split.seq_lens), minlength=len(split.seq_lens))
    return tuple(
        BucketPlan(
            seq_len=row.graph.workload.seq_len,
            num_batches=-(-int(count) // row.graph.workload.batch_size),
            labelled=row.graph.workload.head_rows,
            row=row,
        )
        for count, row in zip(counts, rows, strict=False)
    )


def _predicted(
    shared: _Shared,
    train: tuple[BucketPlan, ...],
    held_out: tuple[BucketPlan, ...],
    corpus: Corpus,
    workload: Workload,
    settings: TrainSettings,
) -> TrainingPlan:
    """What the plans take together."""
    order = Order(corpus.train.samples, corpus.train.seq_lens, batch_size=workload.batch_size, accumulate=settings.accumulate)
    outside = session_bytes([plan.row.graph for plan in (*train, *held_out)], shared.device)
    num_batches = sum(plan.num_batches for plan in held_out)
    evaluated = min(num_batches, settings.evaluate_batches or num_batches)
    unpack_ns = [_resident_ns(plan.row, shared.device) for plan in train]
    update_ns = round((_all_ns(train) + _switches(train) * sum(unpack_ns)) / order.updates_per_epoch)
    evaluation_ns = round(_all_ns(held_out) * evaluated / max(1, num_batches)) + max(unpack_ns)
    return TrainingPlan(
        train=train,
        held_out=held_out,
        budget_bytes=shared.budget_bytes,
        peak_breakdown={"arena": max(plan.row.plan.arena_bytes for plan in (*train, *held_out)), **outside},
        update_ns=update_ns,
        evaluation_ns=evaluation_ns,
        total_ns=update_ns * settings.updates + evaluation_ns * num_evaluations(settings) * bool(held_out),
        updates_per_epoch=order.updates_per_epoch,
    )


def _all_ns(plans: Sequence[BucketPlan]) -> int:
    """All their batches once."""
    return sum(plan.num_batches * plan.row.prediction.step_ns for plan in plans)


def _resident_ns(row: Row, device: Device) -> int:
    """What unpacking a plan's resident weights takes, once another plan had the arena."""
    cost = CostModel(row.graph, device)
    return sum(cost.unpack_ns(row.graph.weights[WeightId(place.tensor)]) for place in row.plan.resident)


def _switches(plans: Sequence[BucketPlan]) -> float:
    """How often per epoch a batch of a bucket follows one of another, in shuffled order."""
    total = sum(plan.num_batches for plan in plans)
    return sum(plan.num_batches * (1 - plan.num_batches / total) for plan in plans) / len(plans)
