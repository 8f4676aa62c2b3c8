"""The trade-off curve as a table and as CSV, under its name and its old one."""

import json
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


def test_lengths_are_a_table_a_file_and_a_picture(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points, picture = tmp_path / "lengths.csv", tmp_path / "lengths.svg"
    over = ["frontier", "--model", tiny, "--over", "seq-len", "64,1k", *QUICK]
    assert command(*over, "-o", str(points), "--plot", str(picture)) == 0
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) <= 80
    header, *rows = points.read_text().splitlines()
    assert header.startswith("seq_len,plan,fits,peak_bytes")
    assert [row.split(",")[:2] for row in rows] == [
        [length, name] for length in ("64", "1024") for name in ("solved", "least", "mebp", "checkpoint-1")
    ]
    assert "tokens of a sequence" in picture.read_text()
    assert command(*over, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 8


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--over", "rank", "4,8"], "--over rank: take seq-len"),
        (["--over", "seq-len", "1k,x"], "'x' is no length"),
        (["--over", "seq-len", "1k,,"], "'' is no length"),
        (["--over", "seq-len", "9999999"], "'9999999' is no length"),
        (["--over", "seq-len", "64", "--plot", "picture.jpg"], "must end in .png or .svg"),
        (["--plot", "picture.png"], "draws lengths"),
    ],
)
def test_lengths_that_are_none_are_refused(typed: list[str], said: str, tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, "curve", "--model", tiny, *typed, *QUICK)
