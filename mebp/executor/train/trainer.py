"""The training loop: batches in, adapters out, by plans that were made for them. Knows no process, terminal or device profile."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mebp.check import graph_of
from mebp.data.order import Batch, Order
from mebp.errors import InputError, NotFinite, StoreError
from mebp.executor.adapter import Adapter, new_adapters
from mebp.executor.arena import Arena
from mebp.executor.env import Clock, Turn
from mebp.executor.executor import Executor, StepResult
from mebp.executor.train.settings import Ending, Evaluated, Report, Saved, Settings, Trained, Updated, require_settings
from mebp.executor.train.state import BEST, STATE, Facts, read_facts, read_into, write_state
from mebp.plan import Plan
from mebp.store.reader import Store

MOST_SKIPPED = 10  # updates in a row


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
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
        settings: Settings,
        *,
        trials: Trials | None = None,
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
        self.settings = settings
        self.order = order
        self._trials = trials
        self._folder = folder
        self._hashes = dict(hashes or {})
        self._clock = Clock()
        everything = [*plans, *(trials.plans if trials else ())]
        graphs = [graph_of(plan, plan.name) for plan in everything]
        self.adapters: dict[str, Adapter] = new_adapters(graphs[0], seed=settings.seed, device=device, spill_dir=spill_dir)
        self.config, self.workload = graphs[0].config, graphs[0].workload
        if self.workload.method == "mezo" and settings.accumulate > 1:
            raise InputError(f"`accumulate` = {settings.accumulate}: MeZO makes an update of every batch: leave it out")
        if self.workload.accumulate != settings.accumulate:
            raise InputError(f"`accumulate` = {settings.accumulate}: the plans are for {self.workload.accumulate}: plan again")
        self.arena = Arena(max(plan.arena_bytes for plan in everything), torch.device(device))
        executors = [
            Executor(
                plan,
                graph,
                store,
                self.adapters,
                device=device,
                spill_dir=spill_dir,
                optimizer=settings.optimizer,
                seed=settings.seed,
                window_bytes=window_bytes,
                clock=self._clock if at < len(plans) else Clock(),
                arena=self.arena,
            )
            for at, (plan, graph) in enumerate(zip(everything, graphs, strict=True))
        ]
        self._executors, self._evaluators = executors[: len(plans)], executors[len(plans) :]
        self._number = self._skipped_in_a_row = self._stale = 0
        self._saved = -1
        self._best: tuple[int, float] | None = None
        self._asked_to_stop = False

    def stop(self) -> None:
        """End the run after the update that it is at, saved."""
        self._asked_to_stop = True

    def resume(self) -> None:
        """Go on where the state in the folder is; StoreError where that is no state, InputError naming what is no longer what the
        run was begun with.
        """
        assert self._folder
        facts = read_facts(self._folder / STATE)
        for name, digest in self._hashes.items():
            if facts.hashes.get(name) != digest:
                raise InputError(f"{name} changed since the run in {self._folder} was saved: put it back, or begin a new run")
        read_into(self._folder / STATE, self.adapters)
        self._number = self._saved = facts.number
        self._clock.step, self._clock.updates, self._stale = facts.step, facts.applied, facts.stale
        if facts.best_number is not None and facts.best_loss is not None:
            self._best = facts.best_number, facts.best_loss

    def run(self) -> Iterator[Report]:
        """Train to the end; the last save is at the last report. NotFinite where nothing but losses and gradients that are not
        finite comes any more, StoreError where the last state cannot be saved.
        """
        if self._number == 0 and self._evaluates:
            yield self._evaluate()
        while self._ending() is None:
            yield self._update()
            if self._evaluates and (self._number % self.settings.evaluate_every == 0 or self._number == self.settings.updates):
                yield self._evaluate()
            if self._ending() is None and self.settings.save_every and self._number % self.settings.save_every == 0:
                yield from self._save()
        for report in self._save():
            yield report
            if isinstance(report, Saved) and report.problem:
                kept = f"that after update {self._saved} is still there" if self._saved >= 0 else "there is none before it"
                raise StoreError(
                    f"cannot save the state in {self._folder}: {report.problem}; {kept}: free disk, then go on with it"
                )

    def result(self) -> Trained:
        """How the run stands."""
        best = self._best or (None, None)
        return Trained(
            number=self._number,
            ending=self._ending() or "stopped",
            skipped=self._number - self._clock.updates,
            saved=max(0, self._saved),
            best_number=best[0],
            best_loss=best[1],
            arena_bytes=self.arena.used_bytes,
        )

    @property
    def _evaluates(self) -> bool:
        return self._trials is not None and self.settings.evaluate_every > 0

    def _ending(self) -> Ending | None:
        """Why the run is over; None where it is not."""
        if self._number >= self.settings.updates:
            return "all updates"
        if self.settings.patience and self._stale >= self.settings.patience:
            return "early stop"
        return "stopped" if self._asked_to_stop else None

    def _update(self) -> Updated:
        """One update along the gradient of its batches, each by its part of the labelled tokens; none where that is not finite."""
        batches = self.order.update(self._number)
        labelled, rate = sum(batch.labelled for batch in batches), self.settings.optimizer.rate_at(self._clock.updates)
        begin, loss, norm, skipped = time.perf_counter(), 0.0, None, None
        first_step = self._clock.step
        try:
            for at, batch in enumerate(batches):
                share = batch.labelled / labelled
                result = self._step(self._executors[batch.bucket], batch, Turn(share=share, last=at == len(batches) - 1))
                loss, norm = loss + share * result.loss, result.gradient_norm
        except NotFinite as error:
            skipped, loss = str(error), float("nan")
            for adapter in self.adapters.values():
                for deferred in adapter.deferred:
                    deferred.zero_()
        self._clock.step = first_step + len(batches)  # the noise of an update does not hang on what became of others
        self._number += 1
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        if self._skipped_in_a_row >= MOST_SKIPPED:
            raise NotFinite(
                f"{skipped}, as it was in {MOST_SKIPPED} updates in a row: lower `learning_rate`, or check the weights; the state"
                f" after update {max(0, self._saved)} is saved"
            )
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

    def _step(self, executor: Executor, batch: Batch, turn: Turn | None = None) -> StepResult:
        return executor.step(torch.from_numpy(batch.ids), torch.from_numpy(batch.labels), turn=turn)

    def _evaluate(self) -> Evaluated:
        """The loss on held-out data; the adapters are kept where it is the best."""
        assert self._trials
        order, begin = self._trials.order, time.perf_counter()
        loss, labelled = 0.0, 0
        count = min(order.num_batches, self.settings.evaluate_batches or order.num_batches)
        for at in range(count):
            batch = order.batch(at * order.num_batches // count)
            try:
                loss += batch.labelled * self._step(self._evaluators[batch.bucket], batch).loss
            except NotFinite:
                loss = float("inf")
            labelled += batch.labelled
        loss /= labelled
        better = self._best is None or loss < self._best[1]
        self._stale = 0 if better else self._stale + 1
        if better:
            self._best = self._number, loss
            self._keep_best()
        return Evaluated(number=self._number, loss=loss, labelled=labelled, seconds=time.perf_counter() - begin, best=better)

    def _keep_best(self) -> None:
        """The adapters as they are now, beside the state."""
        if self._folder:
            try:
                write_state(self._folder / BEST, self.adapters, self._facts(), moments=False)
            except OSError as error:
                raise StoreError(
                    f"cannot keep the best adapters in {self._folder}: {error.strerror}: free disk, then go on"
                ) from None

    def _save(self) -> Iterator[Saved]:
        if self._folder is None or self._saved == self._number:
            return
        try:
            write_state(self._folder / STATE, self.adapters, self._facts())
        except OSError as error:
            yield Saved(number=self._number, problem=error.strerror or str(error))
            return
        self._saved = self._number
        yield Saved(number=self._number)

    def _facts(self) -> Facts:
        best = self._best or (None, None)
        return Facts(
            number=self._number,
            applied=self._clock.updates,
            step=self._clock.step,
            best_number=best[0],
            best_loss=best[1],
            stale=self._stale,
            hashes=self._hashes,
        )
