"""The training loop: batches in, adapters out, by plans that were made for them. Knows no process, terminal or device profile."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mebp.check import graph_of
from mebp.data.order import Batch, Order
from mebp.errors import InputError, NotFinite, StoreError
from mebp.executor.adapter import Adapter, new_adapters
from mebp.executor.arena import Arena
from mebp.executor.env import Clock, UpdateShare
from mebp.executor.executor import Executor, StepResult
from mebp.executor.train.settings import (
    BEST,
    STATE,
    Ending,
    Evaluated,
    Report,
    Saved,
    Trained,
    TrainSettings,
    Updated,
    require_settings,
)
from mebp.executor.train.state import Position, read_into, read_position, write_state
from mebp.models.graph import Graph
from mebp.plan import Plan
from mebp.store.reader import Store

MOST_SKIPPED = 10  # updates in a row


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Held-out data in order, and a plan for each of their buckets."""

    plans: Sequence[Plan]
    order: Order


class Trainer:
    """Trains the adapters of one model. `run` yields a report of every update, evaluation and save as it happens."""

    def __init__(
        self,
        plans: Sequence[Plan],
        store: Store,
        order: Order,
        settings: TrainSettings,
        *,
        held_out: HeldOut | None = None,
        folder: Path | None = None,
        hashes: Mapping[str, str] | None = None,
        device: str = "cpu",
        spill_dir: Path | None = None,
        window_bytes: int = 0,
    ) -> None:
        """`plans` are those of the buckets of `order`, all of one workload but for their length. The state is saved in `folder`
        (None: nowhere), with the `hashes` of what the run is made of. InputError for plans or settings that do not go together.
        """
        require_settings(settings)
        held_out_plans = held_out.plans if held_out else ()
        _require_together(plans, order, settings)
        self.settings = settings
        self.order = order
        self._held_out = held_out
        self._folder = folder
        self._hashes = dict(hashes or {})
        self._clock = Clock()
        graphs = [graph_of(plan, plan.name) for plan in (*plans, *held_out_plans)]
        self.config, self.workload = graphs[0].config, graphs[0].workload
        self.adapters: dict[str, Adapter] = new_adapters(graphs[0], seed=settings.seed, device=device, spill_dir=spill_dir)
        self.arena = Arena(max(plan.arena_bytes for plan in (*plans, *held_out_plans)), torch.device(device))

        def executor(plan: Plan, graph: Graph, clock: Clock) -> Executor:
            return Executor(
                plan,
                graph,
                store,
                self.adapters,
                device=device,
                spill_dir=spill_dir,
                optimizer=settings.optimizer,
                seed=settings.seed,
                window_bytes=window_bytes,
                clock=clock,
                arena=self.arena,
            )

        self._executors = [executor(plan, graph, self._clock) for plan, graph in zip(plans, graphs, strict=False)]
        self._evaluators = [executor(*pair, Clock()) for pair in zip(held_out_plans, graphs[len(plans) :], strict=True)]
        self._number = self._skipped_in_a_row = self._evaluations_since_best = 0
        self.saved: int | None = None
        self._best: tuple[int, float] | None = None
        self._asked_to_stop = False

    def stop(self) -> None:
        """End the run after the update that it is at, saved."""
        self._asked_to_stop = True

    def resume(self) -> None:
        """Resume from the state in the folder, from the beginning where there is none yet; StoreError where it cannot be read,
        InputError naming what is no longer what the run was begun with.
        """
        assert self._folder
        if not (self._folder / STATE).exists():
            return
        position = read_position(self._folder / STATE)
        for name, digest in self._hashes.items():
            if position.hashes.get(name) != digest:
                raise InputError(f"{name} changed since the run in {self._folder} was saved: put it back, or begin a new run")
        read_into(self._folder / STATE, self.adapters)
        self._number = self.saved = position.number
        self._clock.step, self._clock.updates = position.step, position.applied
        self._evaluations_since_best = position.evaluations_since_best
        if position.best_number is not None and position.best_loss is not None:
            self._best = position.best_number, position.best_loss

    def run(self) -> Iterator[Report]:
        """Train to the end; the last save is the last report. NotFinite where update after update is skipped, StoreError where the
        last state cannot be saved.
        """
        if self._number == 0 and self._evaluates:
            yield from self._evaluate()
        while self._ending() is None:
            yield self._update()
            if self._evaluates and (self._number % self.settings.evaluate_every == 0 or self._number == self.settings.updates):
                yield from self._evaluate()
            if self._ending() is None and self.settings.save_every and self._number % self.settings.save_every == 0:
                yield from self._save()
        for report in self._save():
            yield report
            if report.problem:
                raise StoreError(
                    f"cannot save the state in {self._folder}: {report.problem}; {self._last_save()}: free disk, then `resume`"
                )

    def result(self) -> Trained:
        """How the run stands."""
        best = self._best or (None, None)
        return Trained(
            number=self._number,
            ending=self._ending() or "stopped",
            skipped=self._number - self._clock.updates,
            saved=self.saved,
            best_number=best[0],
            best_loss=best[1],
            arena_bytes=self.arena.used_bytes,
        )

    @property
    def _evaluates(self) -> bool:
        return self._held_out is not None and self.settings.evaluate_every > 0

    def _ending(self) -> Ending | None:
        """Why the run is over; None where it is not."""
        if self._number >= self.settings.updates:
            return "all updates"
        if self.settings.patience and self._evaluations_since_best >= self.settings.patience:
            return "early stop"
        return "stopped" if self._asked_to_stop else None

    def _last_save(self) -> str:
        return "nothing is saved yet" if self.saved is None else f"the state after update {self.saved} is kept"

    def _update(self) -> Updated:
        """One update along the gradient of its batches, each by its part of the labelled tokens; skipped where that is not
        finite.
        """
        batches = self.order.update(self._number)
        labelled, rate = sum(batch.labelled for batch in batches), self.settings.optimizer.rate_at(self._clock.updates)
        begin, first_step = time.perf_counter(), self._clock.step
        loss, norm, skipped = 0.0, None, None
        try:
            for at, batch in enumerate(batches):
                share = batch.labelled / labelled
                last = at == len(batches) - 1
                result = self._step(self._executors[batch.bucket], batch, UpdateShare(part=share, last=last))
                loss, norm = loss + share * result.loss, result.gradient_norm
        except NotFinite as error:
            skipped, loss = str(error), float("nan")
            self._drop_gradients()
        self._clock.step = first_step + len(batches)  # an update's noise must not depend on whether others were skipped
        self._number += 1
        self._require_progress(skipped)
        return Updated(
            number=self._number,
            epochs=self._number / self.order.updates_per_epoch,
            loss=loss,
            rate=rate,
            gradient_norm=norm,
            tokens=sum(batch.tokens for batch in batches),
            labelled=labelled,
            seconds=time.perf_counter() - begin,
            seq_lens=tuple(batch.ids.shape[1] for batch in batches),
            skipped=skipped,
        )

    def _drop_gradients(self) -> None:
        """Forget gradients that wait for an update."""
        for adapter in self.adapters.values():
            for deferred in adapter.deferred:
                deferred.zero_()

    def _require_progress(self, skipped: str | None) -> None:
        """NotFinite where update after update is skipped."""
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        if self._skipped_in_a_row >= MOST_SKIPPED:
            remedy = "lower `learning_rate`, or check the weights"
            raise NotFinite(f"the last {MOST_SKIPPED} updates were skipped ({skipped}): {remedy}; {self._last_save()}")

    def _step(self, executor: Executor, batch: Batch, share: UpdateShare | None = None) -> StepResult:
        return executor.step(torch.from_numpy(batch.ids), torch.from_numpy(batch.labels), share=share)

    def _evaluate(self) -> Iterator[Report]:
        """The loss on held-out data; the adapters are kept where it is the best."""
        begin = time.perf_counter()
        loss, labelled = self._held_out_loss()
        best = self._best is None or loss < self._best[1]
        problem = self._keep_best(loss) if best else None
        self._evaluations_since_best = 0 if best else self._evaluations_since_best + 1
        seconds = time.perf_counter() - begin
        yield Evaluated(number=self._number, loss=loss, labelled=labelled, seconds=seconds, best=best)
        if problem:
            yield Saved(number=self._number, problem=problem)

    def _held_out_loss(self) -> tuple[float, int]:
        """On average over labelled tokens, and how many these are."""
        assert self._held_out
        order, loss, labelled = self._held_out.order, 0.0, 0
        count = min(order.num_batches, self.settings.evaluate_batches or order.num_batches)
        for at in range(count):
            batch = order.batch(at * order.num_batches // count)
            labelled += batch.labelled
            try:
                loss += batch.labelled * self._step(self._evaluators[batch.bucket], batch).loss
            except NotFinite:
                loss = float("inf")
        return loss / labelled, labelled

    def _keep_best(self, loss: float) -> str | None:
        """Keep the adapters as they are now; where they cannot be, those kept before stay the best, and why is returned."""
        before, self._best = self._best, (self._number, loss)
        if self._folder is None:
            return None
        try:
            write_state(self._folder / BEST, self.adapters, self._position(), moments=False)
        except OSError as error:
            self._best = before
            return error.strerror or str(error)
        return None

    def _save(self) -> Iterator[Saved]:
        if self._folder is None or self.saved == self._number:
            return
        try:
            write_state(self._folder / STATE, self.adapters, self._position())
        except OSError as error:
            yield Saved(number=self._number, problem=error.strerror or str(error))
            return
        self.saved = self._number
        yield Saved(number=self._number)

    def _position(self) -> Position:
        best = self._best or (None, None)
        return Position(
            number=self._number,
            applied=self._clock.updates,
            step=self._clock.step,
            best_number=best[0],
            best_loss=best[1],
            evaluations_since_best=self._evaluations_since_best,
            hashes=self._hashes,
        )


def _require_together(plans: Sequence[Plan], order: Order, settings: TrainSettings) -> None:
    """Refuse plans that are not those of an order's buckets, of one workload, with as many batches per update."""
    lens = tuple(plan.workload.seq_len for plan in plans)
    if lens != order.seq_lens:
        raise InputError(f"the plans are for sequences of {lens} tokens, the data for {order.seq_lens}: plan again")
    first = plans[0].workload
    if any(replace(plan.workload, seq_len=first.seq_len, labelled=first.labelled) != first for plan in plans):
        raise InputError("the plans are of workloads that differ in more than their lengths: plan again")
    if first.method == "mezo" and settings.accumulate > 1:
        raise InputError(f"`accumulate` = {settings.accumulate}: MeZO makes an update of every batch: leave it out")
    if first.accumulate != settings.accumulate:
        raise InputError(f"`accumulate` = {settings.accumulate}: the plans are for {first.accumulate}: plan again")
