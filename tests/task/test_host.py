"""Whose machine a plan was made for, and on what profile it is timed here."""

from dataclasses import replace
from pathlib import Path

import pytest

from mebp.errors import InputError
from mebp.models.graph import Graph
from mebp.plan import HOST, Plan
from mebp.sim.device import Device
from mebp.sim.profile import dump_device, load_device
from mebp.task.host import device_of, host_path, made_elsewhere, measure_host, require_writable, why_calibrate
from tests.conftest import small_config, small_workload
from tests.plans import fixed

HERE, THERE = "my board, measured with 0.5b", "another board, measured with 0.5b"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@pytest.fixture
def plan(small_graph: Graph, device: Device) -> Plan:
    return replace(fixed("checkpoint-1", small_graph, device), device=HOST, device_title=HERE)


def measured(title: str) -> None:
    """This machine was measured as `title`."""
    host_path().parent.mkdir(parents=True, exist_ok=True)
    host_path().write_text(dump_device(replace(load_device("laptop16"), name=HOST, title=title)))


def test_a_plan_made_here_is_timed_on_this_machine_with_any_model(plan: Plan) -> None:
    measured(HERE.replace("0.5b", "4b"))
    assert made_elsewhere(plan) is None
    device, line = device_of(plan)
    assert (device.name, line) == (HOST, None)


def test_a_plan_of_another_machine_says_whose_it_is(plan: Plan) -> None:
    measured(THERE)
    assert made_elsewhere(plan) == HERE
    device, line = device_of(plan)
    assert device.name == HOST
    assert line is not None
    assert line.startswith(f"made for {HERE}; no profile of that machine here")


def test_a_plan_of_another_machine_is_timed_on_a_stand_in_where_this_was_never_measured(plan: Plan) -> None:
    device, line = device_of(plan)
    assert device.name == "laptop16"
    assert line is not None
    assert HERE in line


def test_a_plan_for_a_phone_is_timed_on_its_profile(small_graph: Graph, device: Device) -> None:
    plan = fixed("checkpoint-1", small_graph, device)
    assert made_elsewhere(plan) == device.title
    assert device_of(plan) == (device, None)


def test_a_profile_that_no_command_can_read_is_measured_again_and_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(HERE)
    broken = host_path().read_text().replace("product_fraction = { value = ", "product_fraction = { value = 99", 1)
    host_path().write_text(broken)
    why = why_calibrate(small_config(), small_workload())
    assert why is not None
    assert "cannot be used" in why
    assert "product_fraction" in why
    absurd = replace(load_device("laptop16"), name=HOST)
    absurd = replace(absurd, runtime=replace(absurd.runtime, product_fraction=43.1))
    monkeypatch.setattr("mebp.task.calibrate.calibrate", lambda *_: absurd)
    found = measure_host(small_config(), small_workload(), lambda _: None)
    assert found.not_kept is not None
    assert "product_fraction" in found.not_kept
    assert host_path().read_text() == broken


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(InputError, match="cannot write /proc/x"):
        require_writable(Path("/proc/x"))
