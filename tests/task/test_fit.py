"""Fitting a runtime: the paper's figures are met, the committed profile is what comes out, and known constants are found again."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mebp.errors import InputError
from mebp.sim.device import Device
from mebp.sim.uncertainty import number_range
from mebp.task.fit.case import Case, pose_cases, simulated
from mebp.task.fit.fit import Constants, fit, leave_one_out, predict
from mebp.task.fit.least_squares import non_negative
from mebp.task.fit.measured import paper_figures, read_measurements, read_rows
from mebp.task.fit.runtime import doubts, fitted_device

HEADER = "model,method,seq_len,lora_r,peak_mb,step_s\n"


@pytest.fixture(scope="module")
def paper(device: Device) -> tuple[Case, ...]:
    return pose_cases(paper_figures(), device)


def made_of(true: Constants, cases: Sequence[Case]) -> list[Case]:
    """The same cases as if constants had made them."""
    made = predict(true, cases)
    return [
        replace(case, measured=replace(case.measured, peak_bytes=peak, step_s=step))
        for case, peak, step in zip(cases, made.peak_bytes, made.step_s, strict=True)
    ]


def mean(errors: list[float]) -> float:
    return float(np.abs(errors).mean())


def test_the_papers_figures_are_met_by_constants_fitted_on_all_of_them(paper: tuple[Case, ...]) -> None:
    found = fit(paper)
    assert len(found.peak_errors) + len(found.step_errors) == 20
    assert mean(found.peak_errors) <= 0.04
    assert mean(found.step_errors) <= 0.08
    assert max(map(abs, (*found.peak_errors, *found.step_errors))) <= 0.20
    assert not found.warnings


def test_a_model_is_met_by_constants_fitted_on_the_others(paper: tuple[Case, ...]) -> None:
    found = leave_one_out(paper)
    assert mean(found.peak_errors) <= 0.07
    assert mean(found.step_errors) <= 0.12
    assert max(map(abs, (*found.peak_errors, *found.step_errors))) <= 0.20
    assert found.step_s != fit(paper).step_s


def test_mezo_and_mebp_are_in_the_papers_order(paper: tuple[Case, ...]) -> None:
    found = fit(paper)
    values = {m.name: (peak, step) for m, peak, step in zip(found.measured, found.peak_bytes, found.step_s, strict=True)}
    for model in ("0.5b", "1.5b", "3b", "1b", "4b"):
        mezo, mebp = (values[f"{model} {method} 256 r8"] for method in ("mezo", "mebp"))
        assert mezo[1] < mebp[1]
        assert mezo[0] <= mebp[0]


def test_the_committed_profile_is_the_fitted_one(paper: tuple[Case, ...], device: Device) -> None:
    fitted = fitted_device(paper, device, "the test")
    fractions = ("product_fraction", "backward_fraction", "attention_fraction", "head_fraction")
    for name in (*fractions, "unpack_rate", "footprint_bytes", "kept_logits", "kept_heads", "kept_scores", "kept_adapter_bytes"):
        assert getattr(device.runtime, name) == pytest.approx(getattr(fitted.runtime, name), rel=1e-6), name
        assert device.sources[f"runtime.{name}"].range == fitted.sources[f"runtime.{name}"].range, name
    assert number_range(fitted, "hardware.product_flops") == (device.hardware.product_flops,) * 2


def test_the_plans_of_the_papers_methods_take_the_papers_time(paper: tuple[Case, ...], device: Device) -> None:
    errors = [step_ns / 1e9 / case.measured.step_s - 1 for case, (_, step_ns) in zip(paper, simulated(paper, device), strict=True)]
    assert mean(errors) <= 0.08
    assert max(map(abs, errors)) <= 0.20


def test_the_rows_of_a_fitted_device_meet_the_peaks_that_it_was_fitted_to(paper: tuple[Case, ...], device: Device) -> None:
    errors = [peak / case.measured.peak_bytes - 1 for case, (peak, _) in zip(paper, simulated(paper, device), strict=True)]
    assert mean(errors) <= 0.01
    assert max(map(abs, errors)) <= 0.02


LENGTHS = "\n".join(f"1.5b,mebp,{length},{rank},1000,10" for length in (128, 256, 512, 1024, 2048) for rank in (4, 32))


def test_peaks_over_lengths_are_met_with_scores_and_adapters_in_16_bits(device: Device) -> None:
    """Peaks that curve upward with the length, of a runtime with adapters in 16 bits, moved by a hundredth each."""
    cases = pose_cases(read_rows(io.StringIO(HEADER + LENGTHS), "rows"), device)
    true = Constants(
        forward_s=1e-12, backward_s=3e-12, head_s=5e-12, footprint_bytes=9e7, logits=0.2, heads=1.2, scores=1.5, adapter_bytes=2.0
    )
    exact = made_of(true, cases)
    noisy = [
        replace(case, measured=replace(case.measured, peak_bytes=case.measured.peak_bytes * (0.99 if number % 2 else 1.01)))
        for number, case in enumerate(exact)
    ]
    for made, within in ((exact, 1e-3), (noisy, 0.015)):
        found = fit(made)
        assert mean(found.peak_errors) <= within
        assert found.constants.adapter_bytes == 2.0
    assert fit(exact).constants.scores == pytest.approx(1.5, rel=0.02)


def test_a_fraction_above_all_of_the_hardware_is_warned_of(device: Device) -> None:
    assert doubts(device) == []
    fast = device.with_value("runtime.product_fraction", 1.7)
    assert doubts(fast) == [
        "product_fraction 1.7: more than all of hardware.product_flops, which is too low by 1.70 x at least: set it"
    ]


def test_a_number_s_range_holds_the_truth_and_is_none_without_noise(paper: tuple[Case, ...], device: Device) -> None:
    true = Constants(forward_s=1e-12, backward_s=3e-12, head_s=5e-12, footprint_bytes=9e7, logits=0.5, heads=1.25)
    exact = made_of(true, paper)
    assert fitted_device(exact, device, "exact").sources["runtime.backward_fraction"].range == pytest.approx(
        (fitted_device(exact, device, "exact").runtime.backward_fraction,) * 2, rel=0.01
    )
    noisy = [
        replace(case, measured=replace(case.measured, step_s=case.measured.step_s * (1.1 if number % 4 < 2 else 0.9)))
        for number, case in enumerate(exact)
    ]
    fitted = fitted_device(noisy, device, "noisy")
    low, high = number_range(fitted, "runtime.product_fraction")
    assert low < fitted_device(exact, device, "exact").runtime.product_fraction < high


def test_known_constants_are_found_again(paper: tuple[Case, ...]) -> None:
    true = Constants(forward_s=1e-12, backward_s=3e-12, head_s=5e-12, footprint_bytes=9e7, logits=0.5, heads=1.25)
    found = fit(made_of(true, paper))
    for name in Constants.__slots__:
        assert getattr(found.constants, name) == pytest.approx(getattr(true, name), rel=1e-3), name


@pytest.mark.parametrize("names", [("0.5b mebp",), ("0.5b mezo", "0.5b mebp"), ("0.5b mezo", "4b mezo"), ("0.5b mebp", "4b mebp")])
def test_few_measurements_make_a_profile_in_the_proportions_of_its_base(
    names: tuple[str, ...], paper: tuple[Case, ...], device: Device
) -> None:
    cases = [case for case in paper if case.measured.name.removesuffix(" 256 r8") in names]
    found = fit(cases)
    assert max(map(abs, found.step_errors)) <= 0.1
    assert any("stay near the base profile" in warning for warning in found.warnings)
    fitted = fitted_device(cases, device, "few")
    assert fitted.runtime.backward_fraction == pytest.approx(device.runtime.backward_fraction, rel=0.35)


def test_measurements_in_other_units_are_refused(paper: tuple[Case, ...], device: Device) -> None:
    one = paper[0].measured
    with pytest.raises(InputError, match="is it bytes"):
        pose_cases([replace(one, peak_bytes=one.peak_bytes * 1e6)], device)
    with pytest.raises(InputError, match="is it milliseconds"):
        pose_cases([replace(one, step_s=one.step_s * 1e3)], device)


def test_least_squares_never_goes_below_zero() -> None:
    A = np.array([[1.0, 1.0], [1.0, 1.1], [1.0, 0.9]])
    found = non_negative(A, np.array([1.0, 0.5, 1.5]))
    assert (found >= 0).all()
    assert found[1] == 0


def test_too_few_or_contradicting_measurements_are_warned_of(paper: tuple[Case, ...]) -> None:
    one = fit(paper[:1])
    assert one.warnings == (
        "1 measurement leaves open: forward, backward, head, footprint, logits, heads: they stay near the base profile;"
        " measure other models or lengths",
    )
    assert one.step_errors[0] == pytest.approx(0, abs=1e-6)
    twin = replace(paper[0], measured=replace(paper[0].measured, step_s=2 * paper[0].measured.step_s))
    assert any("contradict" in warning for warning in fit([*paper, twin]).warnings)
    assert any("contradict" in warning for warning in fit([twin, *paper]).warnings)
    mezo_only = [case for case in paper if case.measured.method == "mezo"]
    assert any("backward" in warning for warning in fit(mezo_only).warnings)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model,method,seq_len\n", "column lora_r is missing"),
        (HEADER + "0.5b,mebp,256,8,320,-1\n", r"rows:2: step_s = '-1': must be a positive number"),
        (HEADER + "0.5b,mebp,256,8,nan,1\n", "peak_mb = 'nan'"),
        (HEADER + "0.5b,mebp,256,8\n", "peak_mb = None"),
        (HEADER + "0.5b,adam,256,8,320,1\n", "method = 'adam'"),
        (HEADER + "gpt5,mebp,256,8,320,1\n", "gpt5"),
        (HEADER + "0.5b,mebp,2.5,8,320,1\n", "seq_len = '2.5'"),
        (HEADER + "0.5b,mebp,256,8,320,1e-9\n", "rows:2: step_s = 1e-9: is below 0.001"),
        (HEADER + "0.5b,mebp,256,8,1e-9,1\n", "rows:2: peak_mb = 1e-9: is below 1: is it gigabytes"),
        (HEADER + "0.5b,mebp,256,8,320,1\n0.5b,mebp,1,8,320,1\n", "rows:3: seq_len = 1: must be between 2"),
        (HEADER + "0.5b,mebp,256,99999,320,1\n", "rows:2: rank = 99999"),
        (HEADER, "no measurements"),
        ("", "column model is missing"),
    ],
)
def test_bad_measurements_are_one_clear_line(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_rows(io.StringIO(text), "rows")


def test_a_mark_before_the_header_is_understood(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbf" + f"{HEADER}0.5b,mebp,256,8,320,3.85\n".encode())
    (row,) = read_measurements(tmp_path / "x.csv")
    assert (row.model, row.name) == ("0.5b", "0.5b mebp 256 r8")
