"""What a run's gradients are judged by: autograd, and double precision where single precision cannot tell."""

from pathlib import Path

import pytest
from torch import Tensor

from mebp.executor.executor import Executor, StepResult
from mebp.executor.measure import reference
from mebp.executor.measure.job import GRADIENT_ERROR, GradientCheck, Job
from mebp.executor.measure.reference import compare_gradients
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.sim.profile import load_device
from mebp.task.agreement import TIMES_REFERENCE
from tests.executor.families import Trial, trial

DEVICE = load_device("iphone15promax")


@pytest.fixture
def given(tmp_path: Path) -> Trial:
    return trial("llama", tmp_path)


def checked(given: Trial) -> GradientCheck:
    plan = STRATEGIES["checkpoint-1"].plan(given.graph, DEVICE, 0)
    return compare_gradients(plan, given.graph, given.store, (given.ids, given.ids), Job(store=given.store.folder))


def test_gradients_within_their_bound_need_no_second_opinion(given: Trial) -> None:
    found = checked(given)
    assert found.max_relative_error < GRADIENT_ERROR
    assert found.times_reference is None


def test_rounding_that_autograd_has_too_is_no_error(given: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every gradient is doubtful, ours are about as far from double precision as autograd's."""
    monkeypatch.setattr(reference, "GRADIENT_ERROR", 0.0)
    times = checked(given).times_reference
    assert times is not None
    assert 0.1 < times < TIMES_REFERENCE


def test_one_wrong_gradient_among_doubtful_ones_is_an_error(given: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "GRADIENT_ERROR", 0.0)
    step = Executor.step

    def spoiled(self: Executor, ids: Tensor, labels: Tensor, **more: object) -> StepResult:
        on_gradient = more["on_gradient"]

        def pass_on(name: str, gradient: Tensor) -> None:
            on_gradient(name, gradient * (1.001 if name == "0.q.dA" else 1.0))  # type: ignore[operator]

        return step(self, ids, labels, on_gradient=pass_on)

    monkeypatch.setattr(Executor, "step", spoiled)
    times = checked(given).times_reference
    assert times is not None
    assert times > TIMES_REFERENCE
