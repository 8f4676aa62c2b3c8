"""Effort that the kernel keeps: an honest plan runs within them, one that takes more than its budget ends with a line."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mebp.errors import Disagreement, InputError
from mebp.executor.adapter import new_adapters
from mebp.executor.executor import Executor
from mebp.executor.measure.job import Job
from mebp.executor.measure.limit import make_cgroup
from mebp.executor.measure.worker import run_plan
from mebp.models.build import build_graph
from mebp.models.workload import Workload
from mebp.plan import Plan
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.sim.profile import load_device
from tests.executor.families import Trial, trial

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's limits")
DEVICE = load_device("iphone15promax")


@pytest.fixture
def given(tmp_path: Path) -> Trial:
    return trial("qwen2", tmp_path)


def plan_of(given: Trial, name: str = "checkpoint-1", **changes: object) -> Plan:
    workload: Workload = replace(given.workload, **changes)  # type: ignore[arg-type]
    return STRATEGIES[name].plan(build_graph(given.config, workload), DEVICE, 2 * 10**9)


def test_an_honest_plan_runs_under_its_budget(given: Trial) -> None:
    assert run_plan(plan_of(given), Job(store=given.store.folder, steps=1, enforce=True)).loss


def test_a_plan_that_takes_more_than_its_budget_dies_visibly(given: Trial) -> None:
    """keep-all of 256 times the tokens, said to need nothing."""
    lying = replace(plan_of(given, "keep-all", seq_len=2048, batch_size=16), budget_bytes=1)
    assert lying.arena_bytes > 200 << 20
    with pytest.raises(Disagreement, match="memory"):
        run_plan(lying, Job(store=given.store.folder, steps=1, enforce=True))


def test_a_plan_whose_libraries_take_more_than_its_budget_is_stopped_there(given: Trial) -> None:
    """What lies outside the arena counts too, however little it is."""
    plan = plan_of(given)
    taken = run_plan(plan, Job(store=given.store.folder, steps=1)).peak_bytes
    with pytest.raises(Disagreement, match=r"more than the plan's budget of .*: stopped") as caught:
        run_plan(replace(plan, budget_bytes=int(taken * 0.97)), Job(store=given.store.folder, steps=1, enforce=True))
    assert caught.value.exit_code == 4
    assert run_plan(replace(plan, budget_bytes=int(taken * 1.03)), Job(store=given.store.folder, steps=1, enforce=True)).loss


def can_group() -> bool:
    try:
        make_cgroup(1 << 30).remove()
    except InputError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not can_group(), reason="no memory cgroup can be made here")
def test_a_group_counts_and_kills(given: Trial) -> None:
    job = Job(store=given.store.folder, steps=2, limit_bytes=700 << 20)
    assert run_plan(plan_of(given), job).loss
    with pytest.raises(Disagreement, match="killed"):
        run_plan(plan_of(given, "keep-all", seq_len=2048, batch_size=48), job)


def test_reading_ahead_changes_no_gradient(given: Trial) -> None:
    plan = plan_of(given)
    losses = []
    for window in (0, 1, 4096, 1 << 30):
        executor = Executor(plan, given.graph, given.store, new_adapters(given.graph), window_bytes=window)
        losses.append([executor.step(given.ids).loss for _ in range(3)])
    assert losses == [losses[0]] * 4


@pytest.mark.skipif(not can_group(), reason="no memory cgroup can be made here")
def test_a_group_that_a_killed_process_left_is_swept_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    own = os.getpid
    monkeypatch.setattr("mebp.executor.measure.limit.os.getpid", lambda: ended.pid)
    left = make_cgroup(1 << 30)
    monkeypatch.setattr("mebp.executor.measure.limit.os.getpid", own)
    make_cgroup(1 << 30).remove()
    assert not left._folder.exists()
