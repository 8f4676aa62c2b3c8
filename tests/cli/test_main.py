"""The command without a command: help, lists, and a standard output that is closed."""

import subprocess
import sys
from pathlib import Path

import pytest

from mebp.cli.main import COMMANDS
from tests.cli.typed import command


@pytest.mark.parametrize("name", ["devices", "models"])
def test_lists_print(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(name) == 0
    assert ("iphone15promax" if name == "devices" else "gemma-3-4b") in capsys.readouterr().out


def test_a_device_shows_value_kind_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("devices", "show", "iphone15promax") == 0
    out = capsys.readouterr().out
    assert "JazzDiskBench" in " ".join(out.split())
    assert "assumed" in out


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--help") == 0
    out = capsys.readouterr().out
    for name in ("plan", "run", "show", "compare", "devices", "models", "calibrate", "synthesize"):
        assert name in out


def test_a_closed_standard_output_is_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(f"{sys.executable} -m mebp models >&-", shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == ["mebp-plan: standard output is closed: send it to a file, or to /dev/null"]


def test_the_bare_command_says_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert command() == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for line in ("mebp-plan --device iphone15promax --model 4b", "mebp-plan run --model 0.5b --budget 400MB", "mebp-plan --help"):
        assert line in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_its_own_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(name, "--help") == 0
    out = capsys.readouterr().out
    assert f"Usage: mebp-plan {name}" in out
    assert max(map(len, out.splitlines())) <= 80


def test_help_groups_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("plan", "--help") == 0
    out = capsys.readouterr().out
    titles = [line.rstrip(":") for line in out.splitlines() if line and not line.startswith(" ")]
    assert titles[1:] == ["Model", "Training step", "Device and budget", "Search", "Output", "Options"]


def test_help_needs_no_solver_and_no_torch() -> None:
    program = "import sys; from mebp.cli.main import main\ntry: main(['plan', '--help'])\nexcept SystemExit: pass\n"
    program += "print([name for name in ('torch', 'ortools', 'rich.table', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
