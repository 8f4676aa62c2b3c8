"""A plan file, shown: on the profile that it was made with, and on another."""

import json
from pathlib import Path

import pytest

from mebp.cli.command.show import load_row
from mebp.plan import read_plan
from tests.cli.typed import QUICK, command, refused


def test_a_width_of_nothing_is_no_traceback(plan_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    assert command("show", plan_file, "--limit", "1") == 0


def test_a_plan_that_lies_about_its_gradient_is_refused(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mezo.json"
    assert command("--model", tiny, "-o", str(path), "--plan", "mezo", *QUICK) == 0
    path.write_text(path.read_text().replace('"exact":false', '"exact":true', 1))
    capsys.readouterr()
    assert "exact where it has a backward" in refused(capsys, "show", str(path))


def test_a_plan_is_timed_again_on_the_profile_it_was_made_with(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    slow = ["--set", "runtime.unpack_rate=1e6", "--max-flash-write", "0"]
    assert command("--model", tiny, "-o", str(path), "--plan", "checkpoint-1", "--json", *slow, *QUICK) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["plans"]}
    assert read_plan(path).overrides == ("runtime.unpack_rate=1e6", "runtime.flash_write_cap_bytes=0")
    row, _ = load_row(path, None)
    assert row.prediction.step_ns // 1000 == pytest.approx(rows["checkpoint-1"]["step_time_us"], abs=1)
    assert load_row(path, "iphone15promax")[0].prediction.step_ns < row.prediction.step_ns
    command("show", str(path), "--limit", "1")
    assert "iphone15promax with runtime.unpack_rate=1e6" in capsys.readouterr().out.replace("\n", " ")


def test_bounds_are_shown_on_the_device_they_were_proven_for_only(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    assert command("--model", tiny, "-o", str(path), "--plan", "solved", "--budget", "142MB", *QUICK) in (0, 1)
    command("show", str(path), "--limit", "1")
    assert "proven" in capsys.readouterr().out
    command("show", str(path), "--limit", "1", "--device", "mba_m3")
    assert "proven" not in capsys.readouterr().out
