"""Every --json document by its field names: programs read them, so they are part of the interface."""

import json
from pathlib import Path

import pytest

from mebp.cli.view.fields import run_json
from mebp.cli.view.verify import verified_json
from mebp.executor.measure.job import GradientCheck, Measurement
from mebp.models.graph import Graph
from mebp.sim.device import Device
from mebp.sim.simulate import simulate
from mebp.task.run import RunResult
from tests.cli.typed import QUICK, command
from tests.plans import fixed

PREDICTION = [
    *("peak_bytes", "peak_breakdown", "step_time_us", "time_breakdown", "recompute_time_us", "unpack_time_us"),
    *("flash_read_bytes", "flash_written_bytes", "spill_bytes", "weight_file_bytes"),
]
ROW = ["name", "exact", "fits", *PREDICTION, "arena_bytes", "chunk_tokens", "whole_attention", "solver"]
SOLVER = ["status", "bound_us", "gap", "wall_s", "scope", "whole_bound_us", "whole_gap", "whole_scope"]
KNOB = ["flags", "least_budget_bytes", "best_step_time_us", "weight_file_bytes"]


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    capsys.readouterr()
    assert command(*arguments, "--json") in (0, 1)
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_a_table(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "plan", "--model", tiny, *QUICK)
    assert list(found) == [
        *("schema_version", "model", "device", "workload", "budget_bytes", "verdict", "least_budget_bytes", "chosen"),
        *("frontier", "remedies", "writing", "range", "plans"),
    ]
    assert list(found["model"]) == ["name", "family", "parameters", "trainable", "signature"]
    assert list(found["workload"]) == [
        *("seq_len", "batch_size", "lora_r", "lora_alpha", "lora_targets", "weights", "precision", "optimizer")
    ]
    assert list(found["device"])[:4] == ["name", "title", "ram_bytes", "memory_bandwidth"]
    assert all(list(point) == ["budget_bytes", "best_step_time_us"] for point in found["frontier"])
    assert list(found["range"]) == ["peak_bytes", "step_time_us", "numbers"]
    assert all(list(number) == ["key", "range", "peak_bytes", "step_time_us"] for number in found["range"]["numbers"])
    assert all(list(plan) == ROW for plan in found["plans"])
    assert {plan["name"] for plan in found["plans"] if plan["solver"]} == {"solved"}
    assert all(list(plan["solver"]) == SOLVER for plan in found["plans"] if plan["solver"])


def test_what_does_not_fit_names_remedies(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "plan", "--model", tiny, "--budget", "65.5MB", *QUICK[2:], "--seq-len", "1024")
    assert (found["verdict"], found["chosen"], found["range"]) == ("infeasible", None, None)
    assert found["remedies"]
    assert all(list(remedy) == ["flags", "least_budget_bytes"] for remedy in found["remedies"])


def test_a_curve(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "curve", "--model", tiny, "--points", "2", *QUICK, "--time-limit", "60")
    assert list(found) == ["schema_version", "budget_bytes", "points", "knobs"]
    point = ["budget_bytes", "peak_bytes", "step_time_us", "bound_us", "recompute_time_us", "flash_written_bytes"]
    assert all(list(one) == point for one in found["points"])
    assert all(list(knob) == KNOB for knob in found["knobs"])
    assert found["knobs"][1]["flags"].startswith("--")


def test_devices_and_models_compared(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "compare", "-m", tiny, "-d", "pixel8", "-d", "mba_m2", *QUICK)
    assert list(found) == ["schema_version", "comparisons"]
    names = ["model", "device", "budget_bytes", "verdict", "least_budget_bytes", "chosen"]
    assert all(list(one) == names for one in found["comparisons"])
    assert [one["device"] for one in found["comparisons"]] == ["pixel8", "mba_m2"]
    assert all(list(one["chosen"]) == ROW for one in found["comparisons"])


def test_plans_compared(plan_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "compare", plan_file, plan_file)
    assert list(found) == ["schema_version", "plans"]
    assert all(list(one) == ["file", "device", *ROW] for one in found["plans"])


def test_a_graph_s_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "step.json"
    nodes = [{"id": n, "cost_cpu": 1, "cost_ram": 100} for n in range(4)]
    path.write_text(json.dumps({"nodes": nodes, "links": [{"source": n, "target": n + 1} for n in range(3)]}))
    found = document(capsys, "graph", str(path), "--budget", "1MB")
    assert found["schema_version"] == 2
    assert list(found)[1:] == [
        *("budget_bytes", "cost", "cost_of_one_run_each", "peak_bytes", "status", "bound", "gap", "scope", "order")
    ]
    assert all(list(run) == ["node", "loaded"] for run in found["order"])


@pytest.fixture
def ran(small_graph: Graph, device: Device) -> RunResult:
    plan = fixed("checkpoint-1", small_graph, device)
    measured = Measurement(
        arena_bytes=plan.arena_bytes,
        baseline_bytes=2,
        peak_bytes=3,
        file_bytes=4,
        step_s=(0.5, 0.25),
        loss=(3.0, 2.0),
        spans_ns=(),
        floor_s=0.125,
        gradients=GradientCheck(max_relative_error=1e-7, cosine=1.0),
    )
    return RunResult(plan=plan, graph=small_graph, predicted=simulate(plan, small_graph, device), measured=measured, floor_ns=1e8)


def test_a_run(ran: RunResult) -> None:
    found = json.loads(run_json(ran))
    assert list(found) == ["schema_version", "plan", "predicted", "measured", "loss", "gradients"]
    assert list(found["predicted"]) == [*PREDICTION, "arena_bytes"]
    assert found["measured"] == {
        "arena_bytes": ran.plan.arena_bytes,
        "peak_bytes": 3,
        "baseline_bytes": 2,
        "file_bytes": 4,
        "step_time_us": [500_000, 250_000],
        "floor_us": 125_000,
        "unpacking": "",
    }
    assert found["loss"] == [3.0, 2.0]
    assert found["gradients"] == {"checked": True, "max_relative_error": 1e-7, "cosine": 1.0, "times_reference": None}


def test_plans_verified(ran: RunResult) -> None:
    found = json.loads(verified_json((ran,)))
    assert list(found) == ["schema_version", "plans"]
    assert list(found["plans"][0]) == [
        *("name", "arena_exact", "predicted_peak_bytes", "measured_peak_bytes", "predicted_step_time_us"),
        *("measured_step_time_us", "floor_us", "calibrated_floor_us"),
    ]


def test_the_document_on_json_names_every_field() -> None:
    """docs/json.md against the names that these tests hold."""
    text = (Path(__file__).parents[2] / "docs" / "json.md").read_text()
    named = [*PREDICTION, "arena_bytes", *SOLVER, *KNOB, "baseline_bytes", "file_bytes", "floor_us", "calibrated_floor_us"]
    assert not [name for name in named if f"`{name}`" not in text]
