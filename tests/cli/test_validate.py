"""`validate`, `calibrate --from` and `plan --sensitivity`: what is printed, what is written, and bad measurements in one line."""

import json
from pathlib import Path

import pytest

from mebp.sim.profile import load_device, read_device
from tests.cli.typed import command

FIGURES = Path(__file__).parents[2] / "mebp" / "task" / "fit" / "paper.csv"


@pytest.mark.slow
def test_the_papers_figures_are_printed_with_their_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("validate", "--paper") == 0
    out = capsys.readouterr().out
    assert sum(line.split()[1:2] in (["mebp"], ["mezo"]) for line in out.splitlines()) == 20
    assert "mean |error|" in out
    assert max(map(len, out.splitlines())) <= 80
    assert command("validate", "--paper", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["figures"]) == 10
    assert found["mean_absolute_error"]["left_out_step_time"] <= 0.12
    assert found["warnings"] == []


@pytest.mark.slow
def test_a_phone_is_fitted_to_measurements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = tmp_path / "phone.toml"
    assert command("calibrate", "--from", str(FIGURES), "--device", "iphone15promax", "-o", str(profile)) == 0
    assert "mean |error|" in capsys.readouterr().out
    device = read_device(profile)
    footprint = device.sources["runtime.footprint_bytes"]
    assert footprint.source == "fitted to 10 measurements of paper.csv"
    assert footprint.range == load_device("iphone15promax").sources["runtime.footprint_bytes"].range
    assert device.runtime.kernel_bytes == 0
    assert command("--device", str(profile), "--model", "0.5b", "--time-limit", "0.5", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] in ("fits", "tight")
    low, high = found["range"]["step_time_us"]
    chosen = next(plan for plan in found["plans"] if plan["name"] == found["chosen"])
    assert low < chosen["step_time_us"] < high


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model,method\n", "column seq_len is missing"),
        ("model,method,seq_len,lora_r,peak_mb,step_s\n0.5b,mebp,256,8,320,-3\n", "step_s = '-3'"),
        ("\x00\x01", "column model is missing"),
    ],
)
def test_bad_measurements_write_nothing(text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "m.csv", tmp_path / "phone.toml"
    source.write_text(text)
    assert command("calibrate", "--from", str(source), "-o", str(target)) == 2
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err
    assert not target.exists()
    assert command("validate", "--from", str(tmp_path / "none.csv")) == 2
    assert "No such file" in capsys.readouterr().err


def test_a_profile_does_not_replace_its_measurements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "m.csv"
    source.write_text(FIGURES.read_text())
    assert command("calibrate", "--from", str(source), "-o", str(source)) == 2
    assert "name another file" in capsys.readouterr().err
    assert source.read_text() == FIGURES.read_text()


def test_one_measurement_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "m.csv"
    source.write_text("model,method,seq_len,lora_r,peak_mb,step_s\n0.5b,mebp,256,8,320,3.85\n")
    assert command("validate", "--from", str(source)) == 0
    assert "1 measurement leaves open: forward, backward, head" in capsys.readouterr().err


def test_validate_needs_something_to_compare_with(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("validate") == 2
    assert "--paper" in capsys.readouterr().err
    assert command("calibrate", "--from", str(FIGURES)) == 2
    assert "-o PROFILE.toml" in capsys.readouterr().err


@pytest.mark.slow
def test_numbers_are_ranked_by_what_their_ranges_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--model", "0.5b", "--budget", "100MB", "--time-limit", "20", "--sensitivity") == 0
    out = capsys.readouterr().out
    assert out.index("head_fraction") < out.index("launch_seconds")
    assert max(map(len, out.splitlines())) <= 80
    assert "fits: needs" in out
    assert "tight, since it may take" in " ".join(out.split())
