"""Folders of a test's own, a tiny model, a plan and a store of it, and a profile of this machine."""

import json
from pathlib import Path

import pytest

from mebp.models.catalogue import load_model
from mebp.models.format import weight_formats
from mebp.sim.profile import dump_device, load_device
from mebp.store.synthetic import synthesize
from tests.cli.typed import QUICK, TINY, command


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Config and cache folders of this test alone, 80 columns, no colour."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    return str(folder)


@pytest.fixture
def plan_file(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    path = tmp_path / "plan.json"
    assert command("--model", tiny, "-o", str(path), "--plan", "mebp", *QUICK) == 0
    capsys.readouterr()
    return str(path)


@pytest.fixture
def host(tmp_path: Path) -> None:
    """A profile of this machine that is wrong in every number but saves the calibration."""
    folder = tmp_path / "config" / "mebp-plan" / "devices"
    folder.mkdir(parents=True)
    (folder / "host.toml").write_text(dump_device(load_device("laptop16")))


@pytest.fixture
def store(tiny: str, tmp_path: Path) -> Path:
    return synthesize(tmp_path / "store", load_model(tiny), weight_formats("int4-g32"))


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a search nor a calibration may begin."""

    def begun(*_: object, **__: object) -> None:
        raise AssertionError("work had begun before the input was looked at")

    for work in ("mebp.planner.tradeoff.tradeoff", "mebp.task.host.measure_host", "mebp.planner.dag.solve.solve_dag"):
        monkeypatch.setattr(work, begun)
