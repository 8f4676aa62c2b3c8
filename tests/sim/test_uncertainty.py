"""Ranges of predictions: ends on both sides of the prediction, wider with wider numbers, nothing where nothing is uncertain."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mebp.errors import ProfileError
from mebp.models.build import build_graph
from mebp.models.catalogue import load_model
from mebp.models.format import weight_formats
from mebp.models.graph import Graph
from mebp.models.workload import Lora, Workload
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.planner.row import row_of
from mebp.planner.tradeoff import Tradeoff
from mebp.sim.device import Device, Source
from mebp.sim.profile import dump_device, load_device, override, parse_device
from mebp.sim.simulate import simulate
from mebp.sim.uncertainty import UNCERTAIN, number_range, uncertainty
from tests.conftest import small_config, small_workload


def widened(device: Device, factor: float) -> Device:
    """Every uncertain number `factor` times as uncertain."""
    sources = dict(device.sources)
    for key in UNCERTAIN:
        low, high = number_range(device, key)
        value = device.value(key)
        ends = (max(0.0, value - factor * (value - low)), value + factor * (high - value))
        sources[key] = replace(sources[key], range=ends)
    return replace(device, sources=sources)


def test_a_range_holds_the_prediction_and_its_effects_are_the_simulators(small_graph: Graph, device: Device) -> None:
    plan = STRATEGIES["checkpoint-1"].plan(small_graph, device, 10**9)
    predicted, found = simulate(plan, small_graph, device), uncertainty(plan, small_graph, device)
    assert found.peak_bytes[0] < predicted.peak_bytes < found.peak_bytes[1]
    assert found.step_ns[0] < predicted.step_ns < found.step_ns[1]
    assert {effect.key for effect in found.effects} == set(UNCERTAIN)
    for effect in found.effects:
        for value, peak, step in zip(effect.values, effect.peak_bytes, effect.step_ns, strict=True):
            moved = simulate(plan, small_graph, override(device, [f"{effect.key}={value}"]))
            assert (moved.peak_bytes, moved.step_ns) == (peak, step), effect.key
    assert found.effects[0].key in ("runtime.head_fraction", "runtime.footprint_bytes", "runtime.launch_seconds")
    weights = [
        max(abs(e.step_ns[1] - e.step_ns[0]) / predicted.step_ns, abs(e.peak_bytes[1] - e.peak_bytes[0]) / predicted.peak_bytes)
        for e in found.effects
    ]
    assert weights == sorted(weights, reverse=True)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(factor=st.floats(1.0, 3.0))
def test_wider_numbers_never_turn_what_does_not_fit_into_what_fits(factor: float) -> None:
    device = load_device("iphone15promax")
    graph = build_graph(small_config(), small_workload())
    for budget in (50_000_000, 64_500_000, 80_000_000, 95_000_000, 400_000_000):
        verdicts = []
        for profile in (device, widened(device, factor)):
            row = row_of(STRATEGIES["checkpoint-1"].plan(graph, profile, budget), graph, profile)
            ranges = uncertainty(row.plan, graph, profile)
            table = Tradeoff(
                graph=graph, device=profile, budget_bytes=budget, rows=(row,), chosen=row, least_budget_bytes=0, uncertainty=ranges
            )
            verdicts.append((row.fits, row.fits and not table.tight))
        (fits, surely), (still_fits, still_surely) = verdicts
        assert still_fits == fits
        assert surely or not still_surely


def test_a_number_that_is_set_is_not_uncertain(small_graph: Graph, device: Device) -> None:
    exact = override(device, [f"{key}={device.value(key)}" for key in UNCERTAIN])
    plan = STRATEGIES["checkpoint-1"].plan(small_graph, exact, 10**9)
    found, predicted = uncertainty(plan, small_graph, exact), simulate(plan, small_graph, exact)
    assert found.step_ns == (predicted.step_ns, predicted.step_ns)
    assert found.peak_bytes == (predicted.peak_bytes, predicted.peak_bytes)
    assert found.to_measure(lambda effect: effect.step_ns) is None


def test_a_range_is_read_and_written_with_its_number(device: Device) -> None:
    assert device.sources["runtime.footprint_bytes"].range == (50.7e6, 76.4e6)
    assert parse_device(dump_device(device), "dumped") == device


@pytest.mark.parametrize(
    ("given_range", "says"),
    [("[1]", r"must be \[low, high\]"), ("[1e6, 2e6]", "must contain its value"), ('["a", 2]', "number between")],
)
def test_a_range_that_is_none_is_refused(given_range: str, says: str, device: Device) -> None:
    source = Source(kind="measured", source="here", range=(1e6, 9e7))
    text = dump_device(replace(device, sources={**device.sources, "runtime.footprint_bytes": source}))
    with pytest.raises(ProfileError, match=says):
        parse_device(text.replace("[1000000, 90000000]", given_range), "text")


@pytest.mark.parametrize("name", ["mebp", "mezo"])
def test_the_range_of_a_published_implementation_holds_its_peak(name: str) -> None:
    """Its footprint is what was measured of it, and so is the range: 4b takes 1.02 GB on the phone that the paper used."""
    device = load_device("iphone15promax")
    workload = Workload(lora=Lora(), weights=weight_formats("int4-g64"))
    graph = STRATEGIES[name].graph(build_graph(load_model("4b"), workload))
    plan = STRATEGIES[name].plan(graph, device, 0)
    found = uncertainty(plan, graph, device)
    assert found.peak_bytes[0] < simulate(plan, graph, device).peak_bytes < found.peak_bytes[1]
    assert "runtime.kept_heads" in {effect.key for effect in found.effects if effect.peak_bytes[0] != effect.peak_bytes[1]}
