"""Whose machine a plan was made for, and on what profile it is timed here."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mebp.errors import InputError, ProfileError
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


def test_a_profile_that_cannot_be_read_names_the_command_that_mends_it() -> None:
    measured(HERE)
    host_path().write_text(host_path().read_text().replace("product_fraction = { value = ", "product_fraction = { value = 99", 1))
    with pytest.raises(ProfileError, match=r"product_fraction.*: `mebp-plan calibrate` measures this machine again"):
        load_device(HOST)
    why = why_calibrate(small_config(), small_workload())
    assert why is not None
    assert "cannot be used" in why


def factors(*values: float) -> Iterator[Device]:
    """Profiles of this machine in which fp32 products take so many times as long."""
    device = replace(load_device("laptop16"), name=HOST)
    return (device.with_value("runtime.fp32_factor", value) for value in values)


def test_implausible_numbers_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = factors(558.0, 2.0)
    monkeypatch.setattr("mebp.task.calibrate.calibrate", lambda *_: next(found))
    said: list[str] = []
    assert measure_host(small_config(), small_workload(), said.append).device.runtime.fp32_factor == 2.0
    assert said == ["again, since runtime.fp32_factor came out as 558"]
    assert load_device(HOST).runtime.fp32_factor == 2.0


def test_numbers_that_stay_implausible_are_bounded_and_said_so_in_a_profile_that_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    found = factors(*[558.0] * 9)
    monkeypatch.setattr("mebp.task.calibrate.calibrate", lambda *_: next(found))
    assert measure_host(small_config(), small_workload(), lambda _: None).not_kept is None
    assert load_device(HOST).runtime.fp32_factor == 100.0
    assert "measured as 558" in load_device(HOST).sources["runtime.fp32_factor"].source


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(InputError, match="cannot write /proc/x"):
        require_writable(Path("/proc/x"))
