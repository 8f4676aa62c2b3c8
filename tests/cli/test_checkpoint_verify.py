"""compress, verify and the limits of run, as a person meets them."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from mebp.errors import InputError
from mebp.sim.device import Device
from mebp.sim.profile import dump_device, load_device
from tests.cli.typed import QUICK, command, refused
from tests.executor.families import hf_config


@pytest.fixture
def host(tmp_path: Path) -> None:
    """A profile of this machine, so that nothing is calibrated."""
    folder = tmp_path / "config" / "mebp-plan" / "devices"
    folder.mkdir(parents=True)
    (folder / "host.toml").write_text(dump_device(load_device("iphone15promax")))


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """A tiny model that transformers saved."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415  (slow to import)

    AutoModelForCausalLM.from_config(hf_config("qwen3")).save_pretrained(tmp_path / "hf")
    return str(tmp_path / "hf")


def test_compress_writes_a_store_and_names_the_worst_weight(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "store")
    assert command("compress", checkpoint, "-o", store, "--weights", "int4-g32") == 0
    out = capsys.readouterr().out
    assert "hf in int4-g32" in out
    assert "worst" in out
    assert "already" in refused(capsys, "compress", checkpoint, "-o", store)
    assert "own folder" in refused(capsys, "compress", checkpoint, "-o", checkpoint)
    assert "config.json" in refused(capsys, "compress", str(tmp_path), "-o", str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_run_takes_a_checkpoint_its_store_and_token_ids(
    checkpoint: str, host: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, ids = str(tmp_path / "store"), tmp_path / "ids.json"
    assert command("compress", checkpoint, "-o", store, "--weights", "int4-g32") == 0
    ids.write_text(json.dumps([list(range(1, 17))]))
    monkeypatch.setattr("mebp.task.agreement.require_agreement", lambda *_: None)  # the profile is a phone's
    capsys.readouterr()
    run = ("run", "--model", checkpoint, "--store", store, "--ids", str(ids), "--steps", "1", "--enforce", "--check-gradients")
    assert command(*run, "--precision", "fp32", "--json", *QUICK) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["gradients"]["max_relative_error"] <= 1e-4
    assert found["measured"]["floor_us"] > 0


@pytest.mark.slow
def test_verify_runs_its_grid_and_says_how_far_it_is_off(
    tiny: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("mebp.task.calibrate.calibrate", lambda *_: load_device("iphone15promax"))
    assert command("verify", "--model", tiny, "--steps", "1", *QUICK) in (0, 4)  # a phone's profile: memory and time may be off
    out = capsys.readouterr().out
    assert out.count("exact") >= 5
    assert "WRONG" not in out
    assert "speed: of dense products" in out
    assert "at the machine's speed in each run" in " ".join(out.split())
    assert max(len(line) for line in out.splitlines()) <= 80
    assert "No such option: --budget" in refused(capsys, "verify", "--model", tiny, "--budget", "1GB")


def test_a_limit_that_is_no_size_is_refused(tiny: str, host: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("run", "--model", tiny, "--limit", "much", *QUICK) == 2
    assert "--limit = 'much'" in capsys.readouterr().err.splitlines()[-1]


def test_a_limit_below_the_plan_s_own_memory_is_refused_before_it_runs(
    tiny: str,
    host: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command("run", "--model", tiny, "--limit", "1MB", *QUICK) == 1
    assert "--limit 1.00 MB is below the predicted peak of the plan" in capsys.readouterr().err.splitlines()[-1]
    assert "no such folder" in refused(capsys, "run", "--model", tiny, "--spill-dir", str(tmp_path / "none"), *QUICK)
    assert "must be one of cpu, cuda, mps" in refused(capsys, "run", "--model", tiny, "--torch-device", "xyz", *QUICK)


def test_the_time_to_search_begins_when_the_machine_is_measured(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Calibrating takes longer than the limit here; the plans are searched for all the same."""
    seen: list[float] = []

    def slow(*_: object) -> Device:
        time.sleep(1.1)
        return load_device("laptop16")

    def compare(*given: Any) -> None:
        seen.append(given[4].left_s)
        raise InputError("as far as this goes")

    monkeypatch.setattr("mebp.task.calibrate.calibrate", slow)
    monkeypatch.setattr("mebp.task.verify.verify", compare)
    assert command("verify", "--model", tiny, *QUICK, "--time-limit", "1") == 2
    assert seen[0] > 0
