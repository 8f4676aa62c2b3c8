"""Devices and models, or plan files, in one table."""

import pytest

from tests.cli.typed import QUICK, command, refused


def test_devices_and_models_are_one_table(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("compare", "-m", tiny, "-d", "pixel8", "-d", "rpi5_nvme", *QUICK) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    rows = [line.split() for line in out.splitlines() if line.split()[:1] == ["tiny"]]
    assert [row[1] for row in rows] == ["pixel8", "rpi5_nvme"]
    assert all("yes" in row for row in rows)


def test_a_budget_is_for_every_device(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("compare", "-m", tiny, "-d", "pixel8", "-d", "mba_m2", "--budget", "1MB", *QUICK) == 1
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["tiny"]]
    assert all("no" in row for row in rows)


def test_two_plans_are_two_columns(plan_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("compare", plan_file, plan_file) == 0
    out = capsys.readouterr().out
    assert out.count("plan: mebp") == 2
    assert "written to flash" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "nothing to compare"),
        (["-m", "nothing"], "nothing"),
        (["-d", "iphone99"], "iphone99"),
        (["/nowhere/plan.json"], "/nowhere/plan.json"),
        (["-m", "0.5b", "--budget", "much"], "--budget"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capsys, "compare", *arguments)


def test_plan_files_leave_models_and_second_devices_out(plan_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--model with plan files" in refused(capsys, "compare", plan_file, "-m", "0.5b")
    assert "name one device" in refused(capsys, "compare", plan_file, "-d", "pixel8", "-d", "mba_m2")
