"""The commands for problems that are not transformers: graph and pack."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mebp.planner.dag.graph import read_dag
from mebp.planner.dag.order import Run, measure
from tests.cli.typed import command, refused


@pytest.fixture
def step(tmp_path: Path) -> Path:
    """A chain of four and its backward, each backward node reading its forward node."""
    nodes = [{"id": n, "name": f"n{n}", "cost_cpu": 2 + n, "cost_ram": 100} for n in range(8)]
    links = [(n, n + 1) for n in range(7)] + [(n, 7 - n) for n in range(3)]
    data = {"nodes": nodes, "links": [{"source": u, "target": v} for u, v in links]}
    (tmp_path / "step.json").write_text(json.dumps(data))
    return tmp_path / "step.json"


@pytest.fixture
def buffers(tmp_path: Path) -> Path:
    (tmp_path / "b.csv").write_text("id,lower,upper,size\na,0,10,64\nb,5,20,128\nc,10,30,64\n")
    return tmp_path / "b.csv"


def test_graph_prints_an_order_that_the_checker_accepts(step: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("graph", str(step), "--budget", "300", "--fixed-order", "--time-limit", "10", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    dag = read_dag(step)
    runs = [Run(node=dag.ids.index(run["node"]), loaded=run["loaded"]) for run in found["order"]]
    assert measure(dag, runs).cost == found["cost"] >= found["bound"]
    assert measure(dag, runs).peak == found["peak_bytes"] <= 300
    assert found["status"] == "optimal"


def test_graph_says_what_its_bound_holds_for(step: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("graph", str(step), "--budget", "10kB", "-o", str(tmp_path / "order.json")) == 0
    out = capsys.readouterr().out
    assert "0.00% over running every node once; optimal" in out
    assert "holds for any order" in out
    assert json.loads((tmp_path / "order.json").read_text())["gap"] == 0


def test_graph_below_the_largest_working_set_exits_with_1(step: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "one node alone takes 300" in refused(capsys, "graph", str(step), "--budget", "299", code=1)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--budget", "0"], "--budget"),
        (["--budget", "1kB", "--copies", "0"], "--copies"),
        (["--budget", "1kB", "--flash-bandwidth", "-1"], "--flash-bandwidth"),
        (["--budget", "1kB", "--time-limit", "nan"], "--time-limit"),
        (["--budget", "1kB", "--seed", "99999999999"], "--seed"),
    ],
)
def test_graph_refuses_bad_flags_in_one_line(flags: list[str], says: str, step: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capsys, "graph", str(step), *flags)


INTERRUPT_AT_FIRST_ORDER = """
import os, signal, sys, time
from mebp.cli.main import main
from mebp.planner.dag import solve
from mebp.planner.effort import Stop
offer, sent, asked = solve._Best.offer, [], []
ask = Stop.ask
Stop.ask = lambda stop: (ask(stop), asked.append(stop))
def interrupt(best, runs):
    offer(best, runs)
    if best.runs and not sent:
        sent.append(os.kill(os.getpid(), signal.SIGINT))
        for _ in range(600):  # the search would be over before the main thread has a turn
            if not asked:
                time.sleep(0.05)
solve._Best.offer = interrupt
main(sys.argv[1:])
"""


def test_ctrl_c_gives_the_best_order_so_far(step: Path) -> None:
    command_line = [sys.executable, "-c", INTERRUPT_AT_FIRST_ORDER, "graph", str(step), "--budget", "300", "--json"]
    done = subprocess.run(command_line, capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "mebp-plan: interrupted: this is the best order so far"
    assert json.loads(done.stdout)["peak_bytes"] <= 300


def test_graph_takes_fractional_costs_and_cheap_transfers(step: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Transfers of a thousandth of a run each: nothing runs again."""
    data = json.loads(step.read_text())
    for node in data["nodes"]:
        node["cost_cpu"] /= 8
    step.write_text(json.dumps(data))
    assert command("graph", str(step), "--budget", "300", "--flash-bandwidth", "1e6", "--time-limit", "10", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cost_of_one_run_each"] == sum(node["cost_cpu"] for node in data["nodes"])
    assert 0 < found["cost"] - found["cost_of_one_run_each"] < 0.01
    assert all(isinstance(run["node"], int) for run in found["order"])


def test_graph_runs_no_node_more_often_than_it_may(step: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--fixed-order", "--copies", "1", "--time-limit", "10"]
    assert "1 runs of a node" in refused(capsys, "graph", str(step), "--budget", "300", *flags, code=1)


def test_neither_command_writes_over_what_it_reads(step: Path, buffers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = step.read_text(), buffers.read_text()
    refused(capsys, "graph", str(step), "--budget", "1kB", "-o", str(step))
    refused(capsys, "pack", str(buffers), "--capacity", "192", "-o", str(buffers))
    assert (step.read_text(), buffers.read_text()) == before


def test_pack_writes_offsets_within_the_capacity(buffers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("pack", str(buffers), "--capacity", "192") == 0
    captured = capsys.readouterr()
    rows = [line.split(",") for line in captured.out.splitlines()[1:]]
    assert all(int(offset) + int(size) <= 192 for _, _, _, size, offset in rows)
    assert "192 live at once" in captured.err


def test_ids_that_no_line_can_hold_are_shown_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd.json"
    path.write_text(json.dumps({"nodes": [{"id": "\ud800\x1b\n", "cost_cpu": 1, "cost_ram": 5}], "links": []}))
    assert command("graph", str(path), "--budget", "10") == 0
    assert "at '\\ud800\\x1b\\n'" in capsys.readouterr().out


def test_an_order_that_cannot_be_kept_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [{"id": n, "cost_cpu": 1, "cost_ram": 5} for n in (1, 0)]
    (tmp_path / "g.json").write_text(json.dumps({"nodes": nodes, "links": [{"source": 0, "target": 1}]}))
    assert "put them in order" in refused(capsys, "graph", str(tmp_path / "g.json"), "--budget", "100", "--fixed-order")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("id,lower,upper,size,alignment\na,0,5,3,64\n", "alignment = '64'"),
        ("id,lower,upper,size,gaps\na,0,5,3,1-2\n", "gaps = '1-2'"),
        ("id,lower,upper,size,size\na,0,5,3,4\n", "names a field twice"),
    ],
)
def test_pack_refuses_what_it_does_not_honour(text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b.csv").write_text(text)
    assert says in refused(capsys, "pack", str(tmp_path / "b.csv"), "--capacity", "64")


def test_pack_keeps_further_fields_and_refuses_broken_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "b.csv"
    path.write_text("id,lower,upper,size,owner\na,0,10,64,x\n")
    assert command("pack", str(path), "--capacity", "64") == 0
    assert capsys.readouterr().out.splitlines() == ["id,lower,upper,size,owner,offset", "a,0,10,64,x,0"]
    for line in ("a,0,10", "a,0,10,64,x,y"):
        path.write_text(f"id,lower,upper,size,owner\n{line}\n")
        assert "b.csv:2 does not have the 5 fields" in refused(capsys, "pack", str(path), "--capacity", "64")


def test_pack_says_when_nothing_fits(buffers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "192 are live at once" in refused(capsys, "pack", str(buffers), "--capacity", "191", code=1)


def test_a_graph_that_costs_nothing_is_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [{"id": n, "cost_cpu": 0, "cost_ram": 1} for n in range(3)]
    (tmp_path / "free.json").write_text(json.dumps({"nodes": nodes, "links": []}))
    assert command("graph", str(tmp_path / "free.json"), "--budget", "10") == 0
    assert "optimal" in capsys.readouterr().out
