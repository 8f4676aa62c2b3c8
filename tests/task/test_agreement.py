"""Whether a run agrees with its prediction: tolerances on either side."""

from types import SimpleNamespace

import pytest

from mebp.errors import Disagreement
from mebp.executor.measure.job import GradientCheck, Measurement
from mebp.task.agreement import require_agreement


def measurement(**changes: object) -> Measurement:
    """A run that agrees with its prediction, but for `changes`."""
    fields: dict[str, object] = {"arena_bytes": 640, "baseline_bytes": 0, "peak_bytes": 1000, "file_bytes": 0}
    fields |= {"step_s": (1.0,), "loss": (1.0,), "spans_ns": ()}
    return Measurement(**(fields | changes))  # type: ignore[arg-type]


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
        ({"gradients": GradientCheck(max_relative_error=1e-6, cosine=1.0)}, None),
        ({"gradients": GradientCheck(max_relative_error=1e-3, cosine=1.0)}, "gradients"),
    ],
)
def test_a_run_that_is_not_as_predicted_exits_with_4(changes: dict[str, object], says: str | None) -> None:
    plan = SimpleNamespace(arena_bytes=640, workload=SimpleNamespace(precision="fp32"))
    prediction = SimpleNamespace(peak_bytes=1000, step_ns=10**9)
    if says is None:
        require_agreement(plan, prediction, measurement(**changes))  # type: ignore[arg-type]
        return
    with pytest.raises(Disagreement, match=says) as caught:
        require_agreement(plan, prediction, measurement(**changes))  # type: ignore[arg-type]
    assert caught.value.exit_code == 4
