"""Whether a run agrees with its prediction: tolerances on either side, at the speed that the machine had in the run."""

from types import SimpleNamespace

import pytest

from mebp.errors import Disagreement
from mebp.executor.measure.job import GradientCheck, Measurement
from mebp.task.agreement import require_agreement
from mebp.task.run import RunResult


def result(**changes: object) -> RunResult:
    """A run that agrees with its prediction, but for `changes`."""
    fields: dict[str, object] = {"arena_bytes": 640, "baseline_bytes": 0, "peak_bytes": 1000, "file_bytes": 0}
    fields |= {"step_s": (1.0,), "loss": (1.0,), "spans_ns": (), "floor_s": 0.5}
    plan = SimpleNamespace(arena_bytes=640, workload=SimpleNamespace(precision="fp32"))
    predicted = SimpleNamespace(peak_bytes=1000, step_ns=10**9)
    measured = Measurement(**(fields | changes))  # type: ignore[arg-type]
    return RunResult(plan=plan, graph=None, predicted=predicted, measured=measured, floor_ns=5e8)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, None),
        ({"arena_bytes": 641}, "arena"),
        ({"peak_bytes": 1090}, None),
        ({"peak_bytes": 1110}, "peak"),
        ({"peak_bytes": 890}, "peak"),
        ({"step_s": (1.9, 0.1, 5.0)}, None),
        ({"step_s": (3.1,)}, "step"),
        ({"step_s": (0.3,)}, "step"),
        ({"step_s": (6.0,), "floor_s": 3.0}, None),  # the machine was a sixth as fast as at calibration, and so was the step
        ({"step_s": (1.0,), "floor_s": 2.0}, None),  # it seems to have been a quarter as fast, and the step was as predicted
        ({"step_s": (4.0,), "floor_s": 0.4}, "step"),
        ({"gradients": GradientCheck(max_relative_error=1e-6, cosine=1.0)}, None),
        ({"gradients": GradientCheck(max_relative_error=1e-3, cosine=1.0)}, "gradients"),
        ({"gradients": GradientCheck(max_relative_error=1e-3, cosine=1.0, times_reference=1.2)}, None),  # autograd is as far off
        ({"gradients": GradientCheck(max_relative_error=1e-3, cosine=1.0, times_reference=2.5)}, "gradients"),
    ],
)
def test_a_run_that_is_not_as_predicted_exits_with_4(changes: dict[str, object], says: str | None) -> None:
    if says is None:
        require_agreement(result(**changes))
        return
    with pytest.raises(Disagreement, match=says) as caught:
        require_agreement(result(**changes))
    assert caught.value.exit_code == 4


def test_a_step_is_judged_at_the_speed_of_its_run() -> None:
    """Products took twice as long as at calibration, the step 2.2 times what was predicted: an error of 10%."""
    one = result(step_s=(2.2,), floor_s=1.0, peak_bytes=900)
    assert one.speed == pytest.approx(0.5)
    assert one.time_error == pytest.approx(1.2)
    assert one.time_error_at_its_speed == pytest.approx(0.1)
    assert one.memory_error == pytest.approx(-0.1)
    assert one.arena_exact


def test_products_too_short_to_tell_leave_the_speed_as_calibrated() -> None:
    one = result(step_s=(2.2,), floor_s=0.01)
    assert one.speed == 1.0
    assert one.time_error_at_its_speed == one.time_error
