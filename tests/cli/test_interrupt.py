"""Ctrl-C: the best plans so far, or one line; nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mebp.plan import read_plan


def interrupted(arguments: list[str], after_s: float, tmp_path: Path) -> subprocess.Popen[str]:
    """Start the command, send Ctrl-C to it and its children after a while, and wait."""
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    running = subprocess.Popen(
        [sys.executable, "-m", "mebp", *arguments], stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    time.sleep(after_s)
    os.killpg(running.pid, signal.SIGINT)
    return running


def outcome(running: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = running.communicate(timeout=60)
    return running.returncode, err.strip()


INTERRUPT_AT_FIRST_SOLUTION = """
import os, signal, sys
from mebp.cli.main import main
from mebp.planner.solver import search
watch, sent = search._Report.on_solution_callback, []
def interrupt(report):
    watch(report)
    if not sent:
        sent.append(os.kill(os.getpid(), signal.SIGINT))
search._Report.on_solution_callback = interrupt
main(sys.argv[1:])
"""

INTERRUPT_AT_THE_START = """
import os, signal, sys, time
from mebp.cli.main import main
from mebp.planner import tradeoff
pose = tradeoff.tilings
def interrupt(*problem):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.2)
    return pose(*problem)
tradeoff.tilings = interrupt
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_ctrl_c_while_solving_gives_the_best_plan_so_far(tmp_path: Path) -> None:
    """The signal comes with the search's first solution, whenever that is."""
    path = tmp_path / "plan.json"
    command_line = [sys.executable, "-c", INTERRUPT_AT_FIRST_SOLUTION, "--model", "0.5b", "--budget", "300MB", "-o", str(path)]
    done = subprocess.run(command_line, capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "mebp-plan: interrupted: these are the best plans so far"
    assert "at least, best at" in done.stdout
    assert read_plan(path).budget_bytes == 300_000_000


@pytest.mark.slow
def test_ctrl_c_before_the_search_gives_the_plans_that_need_none(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    command_line = [sys.executable, "-c", INTERRUPT_AT_THE_START, "--model", "0.5b", "-o", str(path)]
    done = subprocess.run(command_line, capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "mebp-plan: interrupted: these are the best plans so far"
    assert "at least, best at" in done.stdout
    assert read_plan(path).config.name == "qwen2.5-0.5b"


def test_ctrl_c_while_the_command_is_imported_is_no_traceback(tmp_path: Path) -> None:
    running = interrupted(["--model", "4b", "-o", str(tmp_path / "plan.json")], 0.05, tmp_path)
    code, said = outcome(running)
    assert code in (130, -signal.SIGINT)  # the latter before the first line of the command
    assert said in ("", "mebp-plan: interrupted") or ("runpy" in said and "/mebp/" not in said)  # before its first line


@pytest.mark.slow
def test_ctrl_c_while_running_leaves_nothing(plan_file: str, host: None, store: Path, tmp_path: Path) -> None:
    running = interrupted(["run", plan_file, "--store", str(store), "--steps", "100000"], 6, tmp_path)
    assert outcome(running) == (130, "mebp-plan: interrupted")
    assert list((tmp_path / "tmp").iterdir()) == []
