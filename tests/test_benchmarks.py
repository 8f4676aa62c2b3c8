"""The committed iPhone runtime is what the fitting code finds."""

import runpy
from pathlib import Path

import pytest

from mebp.sim.device import load_device

FIT = Path(__file__).parents[1] / "benchmarks" / "fit_paper.py"


def test_the_committed_profile_is_the_fitted_one(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(FIT), run_name="__main__")
    constants, *errors = capsys.readouterr().out.splitlines()
    runtime = load_device("iphone15promax").runtime
    fitted = dict(pair.split() for pair in constants.replace(" footprint", ", footprint").split(", "))
    for name, value in fitted.items():
        assert getattr(runtime, name) == pytest.approx(float(value), rel=2e-3), name
    mean = next(line for line in errors if line.startswith("mean absolute error of time"))
    assert float(mean.split()[-1].rstrip("%")) <= 8.0
