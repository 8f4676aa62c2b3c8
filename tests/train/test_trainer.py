"""The training loop against transformers + PEFT with torch.optim, and what it does when things go wrong."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mebp.data.order import Order
from mebp.errors import InputError, NotFinite, StoreError
from mebp.executor.train.settings import STATE, Evaluated, Report, Saved, TrainSettings, Updated
from mebp.executor.train.trainer import HeldOut, Trainer
from mebp.models.optimizer import Optimizer, Schedule
from tests.executor.families import Trial, trial
from tests.train.loop import LENGTHS, largest_difference, peft_run, plans_for, samples_of, with_adapters

SAMPLES = (9, 21, 12, 7, 18, 3, 15, 20, 11, 13, 8)


def order_of(given: Trial, settings: TrainSettings, *, seed: int | None = 0, batch_size: int = 2) -> Order:
    samples = samples_of(SAMPLES, given.config.vocab)
    return Order(samples, LENGTHS, batch_size=batch_size, accumulate=settings.accumulate, seed=seed)


def updates(reports: list[Report]) -> list[Updated]:
    return [report for report in reports if isinstance(report, Updated)]


def run(trainer: Trainer) -> list[Report]:
    return list(trainer.run())


def test_one_step_of_sgd_is_pefts(tmp_path: Path) -> None:
    given = trial("qwen2", tmp_path, labelled=22)
    settings = TrainSettings(updates=1, optimizer=Optimizer(rate=0.05))
    trainer = with_adapters(Trainer(plans_for(given), given.store, order_of(given, settings), settings), given)
    (update,) = updates(run(trainer))
    ((loss, model),) = peft_run(given, given.fresh_adapters(), order_of(given, settings), settings, given.workload)
    assert update.loss == pytest.approx(loss, rel=1e-5)
    assert largest_difference(trainer.adapters, model) <= 1e-5


@pytest.mark.parametrize("name", ["checkpoint-1", "greedy"])
def test_twenty_steps_of_adamw_are_pefts(name: str, tmp_path: Path) -> None:
    """Padded and masked batches of two lengths, accumulation of four, clipping, cosine and weight decay."""
    given = trial("qwen2", tmp_path, optimizer="adamw", accumulate=4, clip_norm=0.05, labelled=22)
    schedule = Schedule(decay="cosine", warm_up=3, updates=20)
    settings = TrainSettings(updates=20, accumulate=4, optimizer=Optimizer(rate=3e-3, weight_decay=0.1, schedule=schedule))
    trainer = with_adapters(Trainer(plans_for(given, name), given.store, order_of(given, settings), settings), given)
    ours = updates(run(trainer))
    theirs = list(peft_run(given, given.fresh_adapters(), order_of(given, settings), settings, given.workload))
    assert [update.loss for update in ours] == pytest.approx([loss for loss, _ in theirs], rel=1e-4)
    assert largest_difference(trainer.adapters, theirs[-1][1]) <= 1e-4
    assert {length for update in ours for length in update.seq_lens} == set(LENGTHS)
    assert any(update.gradient_norm > 0.05 for update in ours)


def test_the_memory_for_gradients_and_arena_is_one_for_all_buckets(tmp_path: Path) -> None:
    given = trial("qwen2", tmp_path)
    plans = plans_for(given)
    trainer = Trainer(plans, given.store, order_of(given, TrainSettings(updates=1)), TrainSettings(updates=1))
    run(trainer)
    assert trainer.result().arena_bytes == max(plan.arena_bytes for plan in plans)


def evaluated(given: Trial, settings: TrainSettings, folder: Path | None = None) -> Trainer:
    order = Order(samples_of((10, 20, 14), given.config.vocab, seed=5), LENGTHS, batch_size=2, seed=None)
    held_out = HeldOut(plans=plans_for(given, "evaluate", method="evaluate"), order=order)
    return Trainer(plans_for(given), given.store, order_of(given, settings), settings, held_out=held_out, folder=folder)


def test_held_out_data_are_evaluated_before_between_and_after(tmp_path: Path) -> None:
    given = trial("qwen2", tmp_path)
    settings = TrainSettings(updates=5, evaluate_every=2, optimizer=Optimizer(rate=0.1))
    reports = run(evaluated(given, settings))
    found = [report for report in reports if isinstance(report, Evaluated)]
    assert [report.number for report in found] == [0, 2, 4, 5]
    losses = [report.loss for report in found]
    assert [report.best for report in found] == [losses[at] == min(losses[: at + 1]) for at in range(4)]


def test_an_evaluation_changes_nothing_of_the_training(tmp_path: Path) -> None:
    given = trial("qwen2", tmp_path)
    settings = TrainSettings(updates=4, evaluate_every=1)
    plain = Trainer(plans_for(given), given.store, order_of(given, settings), TrainSettings(updates=4))
    beside = evaluated(given, settings)
    assert [u.loss for u in updates(run(plain))] == [u.loss for u in updates(run(beside))]


def test_a_run_ends_early_when_evaluations_get_no_better(tmp_path: Path) -> None:
    given = trial("qwen2", tmp_path)
    settings = TrainSettings(updates=50, evaluate_every=1, patience=2, optimizer=Optimizer(rate=20.0))
    trainer = evaluated(given, settings)
    run(trainer)
    result = trainer.result()
    assert result.ending == "early stop"
    assert result.number == (result.best_number or 0) + 2


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = trial("qwen2", tmp_path, accumulate=2)
    settings = TrainSettings(updates=3, accumulate=2)
    trainer = with_adapters(Trainer(plans_for(given), given.store, order_of(given, settings), settings), given)
    step, calls = type(trainer)._step, []

    def fail_on_the_fourth(self: Trainer, *args: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise NotFinite("the loss is nan")
        return step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "_step", fail_on_the_fourth)
    reports = trainer.run()
    next(reports)
    before = {name: adapter.copy_to("cpu") for name, adapter in trainer.adapters.items()}
    second = next(reports)
    assert isinstance(second, Updated)
    assert second.skipped == "the loss is nan"
    assert all(torch.equal(before[name].A, adapter.A) for name, adapter in trainer.adapters.items())
    assert not any(deferred.any() for adapter in trainer.adapters.values() for deferred in adapter.deferred)
    third = next(reports)
    assert isinstance(third, Updated)
    assert third.skipped is None
    assert trainer.result().skipped == 1


def test_nothing_but_losses_that_are_not_finite_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = trial("qwen2", tmp_path)
    settings = TrainSettings(updates=30)
    trainer = Trainer(plans_for(given), given.store, order_of(given, settings), settings)

    def fail(*_: object) -> None:
        raise NotFinite("the loss is nan")

    monkeypatch.setattr(Trainer, "_step", fail)
    with pytest.raises(NotFinite, match=r"the last 10 updates were skipped \(the loss is nan\)"):
        run(trainer)


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("method", ["adamw", "dropout", "mezo"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(method: str, stop_after: int, tmp_path: Path) -> None:
    from mebp.models.workload import Lora  # noqa: PLC0415

    changes = {"adamw": {"optimizer": "adamw", "clip_norm": 0.1}, "dropout": {"lora": Lora(rank=4, dropout=0.2)}, "mezo": {}}[
        method
    ]
    given = trial("qwen2", tmp_path, **changes)
    name = "mezo" if method == "mezo" else "checkpoint-1"
    settings = TrainSettings(updates=7, save_every=2, optimizer=Optimizer(rate=0.01, schedule=Schedule(decay="linear", updates=7)))

    def trainer(folder: Path | None) -> Trainer:
        return Trainer(
            plans_for(given, name), given.store, order_of(given, settings), settings, folder=folder, hashes={"data": "1"}
        )

    whole = trainer(None)
    losses = [update.loss for update in updates(run(whole))]
    first, seen = trainer(tmp_path), []
    for report in first.run():
        if isinstance(report, Updated):
            seen.append(report.loss)
            if report.number == stop_after:
                first.stop()
    assert first.result().ending == "stopped"
    second = trainer(tmp_path)
    second.resume()
    seen += [update.loss for update in updates(run(second))]
    assert seen == losses
    for adapter_name, adapter in whole.adapters.items():
        again = second.adapters[adapter_name]
        assert all(
            torch.equal(one, other)
            for one, other in zip([adapter.A, adapter.B, *adapter.states], [again.A, again.B, *again.states], strict=True)
        )


def test_a_run_that_was_killed_before_its_first_save_begins_again(tmp_path: Path) -> None:
    given = trial("qwen2", tmp_path)
    settings = TrainSettings(updates=2)
    plain, again = (Trainer(plans_for(given), given.store, order_of(given, settings), settings, folder=tmp_path) for _ in range(2))
    again.resume()
    assert [u.loss for u in updates(run(again))] == [u.loss for u in updates(run(plain))]


def test_a_run_whose_data_changed_does_not_go_on(tmp_path: Path) -> None:
    given = trial("qwen2", tmp_path)
    settings = TrainSettings(updates=2)
    run(Trainer(plans_for(given), given.store, order_of(given, settings), settings, folder=tmp_path, hashes={"the data": "1"}))
    other = Trainer(plans_for(given), given.store, order_of(given, settings), settings, folder=tmp_path, hashes={"the data": "2"})
    with pytest.raises(InputError, match="the data changed since"):
        other.resume()


def test_a_state_that_was_cut_off_is_refused_in_a_line(tmp_path: Path) -> None:
    given = trial("qwen2", tmp_path)
    settings = TrainSettings(updates=2)
    run(Trainer(plans_for(given), given.store, order_of(given, settings), settings, folder=tmp_path))
    raw = (tmp_path / STATE).read_bytes()
    for damaged in (raw[: len(raw) // 2], b"", b"{}" * 40):
        (tmp_path / STATE).write_bytes(damaged)
        with pytest.raises(StoreError, match="cannot read"):
            Trainer(plans_for(given), given.store, order_of(given, settings), settings, folder=tmp_path).resume()


def test_a_save_that_fails_keeps_the_one_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = trial("qwen2", tmp_path)
    settings = TrainSettings(updates=4, save_every=1)
    trainer = Trainer(plans_for(given), given.store, order_of(given, settings), settings, folder=tmp_path)
    reports = trainer.run()
    assert [type(next(reports)) for _ in range(2)] == [Updated, Saved]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mebp.executor.train.state.reserve", full)
    next(reports)
    failed = next(reports)
    assert failed == Saved(number=2, problem="No space left on device")
    kept = (tmp_path / STATE).read_bytes()
    with pytest.raises(StoreError, match="No space left on device; the state after update 1 is kept"):
        list(reports)
    assert (tmp_path / STATE).read_bytes() == kept
    assert not list(tmp_path.glob("*.part"))
    assert not list(tmp_path.glob(".*.part"))


def test_saving_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    """A tensor at a time, from where it lies: no copy of the state."""
    from torch.profiler import ProfilerActivity, profile  # noqa: PLC0415

    given = trial("qwen2", tmp_path, optimizer="adamw")
    trainer = Trainer(
        plans_for(given), given.store, order_of(given, TrainSettings(updates=1)), TrainSettings(updates=1), folder=tmp_path
    )
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        list(trainer._save())
    assert all(event.self_cpu_memory_usage <= 0 for event in profiled.events())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"updates": 0}, "`steps` = 0"),
        ({"optimizer": Optimizer(rate=0.0)}, "`learning_rate` = 0"),
        ({"optimizer": Optimizer(rate=float("nan"))}, "`learning_rate` = nan"),
        ({"optimizer": Optimizer(weight_decay=-1.0)}, "`weight_decay` = -1"),
        ({"optimizer": Optimizer(schedule=Schedule(decay="square"))}, "`schedule` = 'square'"),
        ({"patience": 2}, "`patience` = 2"),
        ({"accumulate": 3}, "`accumulate` = 3"),
    ],
)
def test_settings_that_no_run_can_take_are_refused(changes: dict[str, object], says: str, tmp_path: Path) -> None:
    given = trial("qwen2", tmp_path)
    settings = TrainSettings(**({"updates": 1} | changes))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=says):
        Trainer(plans_for(given), given.store, order_of(given, TrainSettings(updates=1)), settings)


def test_mezo_trains_under_the_same_loop(tmp_path: Path) -> None:
    given = trial("qwen2", tmp_path)
    settings = TrainSettings(updates=80, optimizer=Optimizer(rate=0.05))
    order = Order(samples_of((12,), given.config.vocab, labelled=1.0), LENGTHS, batch_size=2)
    trainer = Trainer(plans_for(given, "mezo"), given.store, order, settings)
    losses = [update.loss for update in updates(run(trainer))]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


def test_plans_of_one_bucket_train_packed_data(tmp_path: Path) -> None:
    given = trial("llama", tmp_path)
    samples = samples_of((21,) * 8, given.config.vocab, labelled=1.0)
    order = Order(samples, (21,), batch_size=2, seed=1)
    plans = plans_for(given)[1:]
    trainer = Trainer(plans, given.store, order, TrainSettings(updates=40, optimizer=Optimizer(rate=0.3)))
    losses = [update.loss for update in updates(run(trainer))]
    assert losses[-1] < losses[0] - 0.05
