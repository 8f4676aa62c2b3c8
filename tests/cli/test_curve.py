"""The trade-off curve as a table and as CSV, under its name and its old one."""

from pathlib import Path

import pytest

from tests.cli.typed import QUICK, command, refused


def test_the_curve_prints_rows_and_writes_csv(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "points.csv"
    assert command("curve", "--model", tiny, "--points", "3", "-o", str(path), *QUICK) == 0
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) <= 80
    header, *rows = path.read_text().splitlines()
    assert header.startswith("budget_bytes,peak_bytes,step_time_us")
    assert len(rows) == 3
    assert "--points" in refused(capsys, "frontier", "--model", tiny, "--points", "1", *QUICK)


def test_a_curve_above_the_budget_exits_with_1_under_its_old_name_too(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("frontier", "--model", tiny, "--points", "2", "--budget", "1MB", *QUICK) == 1
    assert "nothing fits 1.00 MB: the least budget found is" in capsys.readouterr().err
