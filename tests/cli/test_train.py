"""`mebp-plan train` and `plot` as they are typed, on a tiny model: what is written, what is refused, and how a run goes on."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file

from mebp.executor.train.settings import STATE
from mebp.export.peft import read_peft
from mebp.models.huggingface import read_model
from mebp.task.train.log import read_log
from tests.cli.typed import command, refused
from tests.data.spelling import chat, write_lines, write_tokenizer

RECORDS = [chat(f"What is {at} + {at}?", f"It is {2 * at}, of course.") for at in range(30)]
SHORT = ["--seq-len", "96", "--time-limit", "10", "--budget", "600MB"]


@pytest.fixture
def weights(store: Path) -> Path:
    """A store with a tokenizer beside it."""
    return write_tokenizer(store)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "chat.jsonl", *RECORDS)


def typed(weights: Path, data: Path, folder: Path, *more: str) -> list[str]:
    return ["train", "--model", str(weights), "--data", str(data), "-o", str(folder), *SHORT, *more]


def begun(arguments: list[str]) -> "subprocess.Popen[str]":
    """The command in a process of its own."""
    line = [sys.executable, "-m", "mebp", *arguments]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def lines_until(running: "subprocess.Popen[str]", sign: str) -> Iterator[str]:
    """What the command says on stderr up to a line with `sign`."""
    assert running.stderr
    for line in running.stderr:
        yield line
        if sign in line:
            return


def await_save(folder: Path) -> None:
    """Return when the run in `folder` has written its state once more."""
    state = folder / STATE
    before, end = state.stat().st_mtime_ns if state.exists() else 0, time.monotonic() + 60
    while not state.exists() or state.stat().st_mtime_ns == before:
        assert time.monotonic() < end
        time.sleep(0.002)


def fill(file: Path) -> None:
    """Write until the disk is full."""
    with file.open("wb", buffering=0) as rest, suppress(OSError):
        while True:
            rest.write(b"\0" * 4096)


def adapters_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / STATE)


def same(one: Path, other: Path) -> bool:
    first, second = adapters_of(one), adapters_of(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_data_go_in_and_an_adapter_comes_out(
    host: None, weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    more = ["--steps", "6", "--hold-out", "0.2", "--accumulate", "2", "--to", "peft,gguf,mlx", "--enforce"]
    assert command(*typed(weights, data, folder, *more)) == 0
    out, err = capsys.readouterr()
    assert "6 updates of 2 batches" in out
    assert "predicted: peak" in out
    assert "anonymous memory, whole process" in out
    assert "update 6/6" in err
    assert "held-out loss" in err
    adapter = read_peft(folder / "adapter", read_model(weights))
    assert len(adapter.pairs) == 14
    assert any(B.any() for _, B in adapter.pairs.values())
    card = (folder / "adapter" / "README.md").read_text()
    assert f'base_model: "{weights}"' in card
    assert "| peak memory |" in card
    best = load_file(folder / "best.safetensors")
    for name, (A, B) in adapter.pairs.items():
        assert torch.equal(A, best[f"{name}.A"])
        assert torch.equal(B, best[f"{name}.B"])
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(folder / "adapter.gguf").tensors}
    assert len(tensors) == 28
    assert (tensors["blk.1.ffn_up.weight.lora_a"] == best["1.up.A"].numpy()).all()
    assert (tensors["blk.1.ffn_up.weight.lora_b"] == best["1.up.B"].numpy()).all()
    assert (folder / "adapter-mlx" / "adapters.safetensors").is_file()
    events = list(read_log(folder / "log.jsonl"))
    assert [event["number"] for event in events if event["event"] == "update"] == [1, 2, 3, 4, 5, 6]
    assert events[0]["event"] == "begin"
    assert events[-1]["event"] == "end"
    assert events[-1]["peak_bytes"] < 606e6
    for kind, mark in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        assert command("plot", str(folder), "-o", str(tmp_path / f"run.{kind}")) == 0
        assert (tmp_path / f"run.{kind}").read_bytes().startswith(mark)


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [
        ["--method", "mezo"],
        ["--optimizer", "sgd", "--clip-norm", "0", "--pack", "--lora-dropout", "0.1"],
        ["--states-in-file", "--hold-out", "0.1", "--layers", "1", "--rslora"],
    ],
)
def test_other_ways_to_train_end_in_an_adapter_too(
    extra: list[str], host: None, weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*typed(weights, data, tmp_path / "run", "--steps", "3", "--json", *extra)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["updates"] == 3
    assert found["measured"]["peak_bytes"] > 0
    assert read_peft(tmp_path / "run" / "adapter", read_model(weights)).pairs


@pytest.mark.slow
def test_memory_does_not_grow_from_update_to_update(host: None, weights: Path, data: Path, tmp_path: Path) -> None:
    """Padded batches of two lengths with any number of labels: what libraries keep for new shapes is kept early."""
    write_lines(data, *(chat(f"{at}?" * (1 + at % 7), "yes " * (1 + at % 5)) for at in range(60)))
    more = ["--steps", "400", "--batch-size", "2", "--save-every", "100", "--hold-out", "0.1", "--enforce"]
    assert command(*typed(weights, data, tmp_path / "run", *more)) == 0
    updates = [event for event in read_log(tmp_path / "run" / "log.jsonl") if event["event"] == "update"]
    early, late = (max(event["memory_bytes"] for event in updates[first:last]) for first, last in ((20, 60), (360, 400)))
    assert late - early < 1_000_000


@pytest.mark.slow
def test_the_batch_size_may_be_left_to_the_planner(
    host: None, weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*typed(weights, data, tmp_path / "run", "--steps", "1", "--tokens-per-step", "200")) == 0
    err = capsys.readouterr().err
    assert "batches of " in err
    plans = [json.loads(file.read_text())["workload"] for file in (tmp_path / "run").glob("plan-*.json")]
    assert {plan["batch_size"] * plan["accumulate"] for plan in plans} <= {3, 4, 5}


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_bit_for_bit(host: None, weights: Path, data: Path, tmp_path: Path) -> None:
    """Killed again and again: once before its first save, then some saves into each process, evaluations among them. MOMENTS in the
    environment asks for more than a few.
    """
    draw, moments = random.Random(1), int(os.environ.get("MOMENTS", "3"))
    more = ["--steps", "600", "--save-every", "3", "--hold-out", "0.2", "--evaluate-every", "7"]
    assert begun(typed(weights, data, tmp_path / "whole", *more)).wait() == 0
    folder = tmp_path / "killed"
    arguments = typed(weights, data, folder, *more)
    for moment in range(moments):
        running = begun(arguments)
        while moment == 0 and not (folder / "run.json").exists():
            time.sleep(0.005)
        for _ in range(draw.randint(1, 3) if moment else 0):
            await_save(folder)
        time.sleep(draw.random() * 0.05 if moment else 0)
        assert running.poll() is None
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
        arguments = ["train", "--resume", str(folder)]
    last = begun(arguments)
    _, err = last.communicate()
    assert last.returncode == 0, err
    assert same(folder, tmp_path / "whole")
    one, other = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (folder, tmp_path / "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    losses = [[e["loss"] for e in read_log(run / "log.jsonl") if e["event"] == "update"] for run in (folder, tmp_path / "whole")]
    assert len(losses[1]) == 600
    assert losses[0][-50:] == losses[1][-50:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "code"), [([signal.SIGINT], 130), ([signal.SIGINT, signal.SIGINT], 130), ([signal.SIGTERM], 143)]
)
def test_a_signal_ends_the_update_saves_and_says_how_to_go_on(
    signals: list[signal.Signals], code: int, host: None, weights: Path, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    running = begun(typed(weights, data, folder, "--steps", "100000", "--save-every", "0"))
    list(lines_until(running, "update 1/"))
    for number in signals:
        os.killpg(running.pid, number)
    out, err = running.communicate(timeout=60)
    assert running.returncode == code, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("mebp-plan: stopped after update ")
    assert last.endswith(f"resume with mebp-plan train --resume {folder}")
    assert "Traceback" not in out + err
    done = int(last.split()[4])
    again = begun(["train", "--resume", str(folder)])
    assert any(f"update {done + 1}/" in line for line in lines_until(again, "update"))
    os.killpg(again.pid, signal.SIGTERM)
    again.communicate(timeout=60)


@pytest.mark.slow
def test_what_changed_since_a_run_was_begun_is_named(
    host: None, weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert command(*typed(weights, data, folder, "--steps", "2")) == 0
    capsys.readouterr()
    (plan,) = folder.glob("plan-*.json")
    text = data.read_text()
    data.write_text(text.replace("course", "curse"))
    assert f"the data changed since the run in {folder} was begun" in refused(capsys, "train", "--resume", str(folder))
    data.write_text(text)
    kept = plan.read_text()
    plan.write_text(kept.replace('"budget_bytes":6', '"budget_bytes":7'))
    assert f"a plan of the run changed since the run in {folder}" in refused(capsys, "train", "--resume", str(folder))
    plan.write_text(kept)
    (weights / "tokenizer.json").unlink()
    assert "there is no tokenizer.json" in refused(capsys, "train", "--resume", str(folder))
    write_tokenizer(weights)
    data.unlink()
    assert "no such file" in refused(capsys, "train", "--resume", str(folder))
    data.write_text(text)
    assert command("train", "--resume", str(folder)) == 0


@pytest.mark.slow
def test_data_that_change_while_it_trains_are_said_and_change_nothing(
    host: None, weights: Path, data: Path, tmp_path: Path
) -> None:
    assert begun(typed(weights, data, tmp_path / "calm", "--steps", "30")).wait() == 0
    running = begun(typed(weights, data, tmp_path / "run", "--steps", "30"))
    list(lines_until(running, "update 1/"))
    data.write_text(data.read_text().replace("course", "curse"))
    _, err = running.communicate()
    assert running.returncode == 0, err
    assert f"{data} changed during training" in err
    assert same(tmp_path / "run", tmp_path / "calm")


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_save_and_says_so(host: None, weights: Path, data: Path, tmp_path: Path) -> None:
    """A file system with room for the run's first files and one state, not for two."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1400k", "tmpfs", str(disk)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("may not mount a small file system here")
    try:
        arguments = typed(weights, data, disk / "run", "--steps", "100", "--save-every", "2")
        running = begun(arguments)
        list(lines_until(running, "update 15/"))
        fill(disk / "rest")
        _, err = running.communicate(timeout=60)
        assert running.returncode == 2, err
        said = err.strip().splitlines()
        assert len([line for line in said if "is not saved: No space left on device" in line]) == 1
        assert said[-1].startswith(
            f"mebp-plan: cannot save the state in {disk / 'run'}: No space left on device; the state after update"
        )
        (disk / "rest").unlink()
        again = begun(["train", "--resume", str(disk / "run")])
        _, err = again.communicate(timeout=60)
        assert again.returncode == 0, err
        assert begun(typed(weights, data, tmp_path / "whole", "--steps", "100")).wait() == 0
        assert same(disk / "run", tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--steps", "0"], "--steps = 0"),
        (["--steps", "3", "--epochs", "1"], "--steps 3 and --epochs 1"),
        (["--epochs", "nan"], "--epochs = nan"),
        (["--learning-rate", "-1"], "--learning-rate = -1"),
        (["--schedule", "square"], "--schedule = 'square'"),
        (["--hold-out", "0.9"], "--hold-out = 0.9"),
        (["--buckets", "0"], "--buckets = 0"),
        (["--method", "adam"], "--method = 'adam'"),
        (["--to", "onnx"], "--to = 'onnx'"),
        (["--patience", "2"], "--patience = 2"),
        (["--layers", "9"], "--layers = 9"),
        (["--lora-dropout", "1"], "--lora-dropout = 1"),
        (["--tokens-per-step", "1"], "--tokens-per-step = 1"),
        (["--spill-dir", "nowhere"], "--spill-dir nowhere"),
        (["--valid", "nowhere.jsonl"], "--valid /"),
        (["--optimizer", "foo"], "--optimizer = 'foo'"),
        (["--optimizer", "sgd", "--states-in-file"], "--states-in-file: sgd"),
        (["--steps", "2", "--warm-up", "3"], "--warm-up = 3"),
        (["--labelled", "5"], "--labelled = 5"),
        (["--method", "mezo", "--accumulate", "2"], "--accumulate = 2"),
        (["--tokens-per-step", "99", "--batch-size", "2"], "leave --batch-size out"),
        (["--evaluate-every", "3"], "--evaluate-every = 3"),
        (["--weights", "int8"], "the store is in int4-g32"),
        (["--torch-device", "tpu"], "--torch-device = 'tpu'"),
        (["--seq-len", "1"], "--seq-len = 1"),
        (["--beta1", "1.5"], "--beta1 = 1.5"),
        (["--budget", "0"], "--budget"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_planned(
    flags: list[str],
    says: str,
    host: None,
    never: None,
    weights: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert says in refused(capsys, *typed(weights, data, tmp_path / "run", *flags))


def test_what_names_no_weights_or_data_is_refused(
    never: None, weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--data is missing" in refused(capsys, "train", "--model", str(weights))
    assert "--model is missing" in refused(capsys, "train", "--data", str(data))
    assert "names no weights" in refused(capsys, "train", "--model", "4b", "--data", str(data))
    assert "no such file" in refused(capsys, "train", "--model", str(weights), "--data", "nowhere.jsonl")
    assert "is a folder without train.jsonl" in refused(capsys, "train", "--model", str(weights), "--data", str(tmp_path))
    assert "has no run.json" in refused(capsys, "train", "--resume", str(tmp_path))
    assert "decides --data itself" in refused(capsys, "train", "--resume", str(tmp_path), "--data", str(data))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    assert "exists already" in refused(capsys, *typed(weights, data, tmp_path / "taken"))


def test_what_does_not_fit_says_how_much_would(
    host: None, weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, *typed(weights, data, tmp_path / "run", "--budget", "100MB"), code=1)
    assert "the least budget found is" in line
    assert not (tmp_path / "run").exists()


def test_plot_refuses_what_is_no_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.jsonl").write_text('{"event": "begin"}\n')
    assert "has no update yet" in refused(capsys, "plot", str(tmp_path))
    (tmp_path / "log.jsonl").write_text("nonsense\n")
    assert "log.jsonl holds no event of a run" in refused(capsys, "plot", str(tmp_path))
    for event in ('{"event": "update"}', '{"event": "update", "number": 1, "loss": "x"}'):
        (tmp_path / "log.jsonl").write_text(event)
        assert "whose figures are missing or no numbers" in refused(capsys, "plot", str(tmp_path))
    assert "not a regular file" in refused(capsys, "plot", "/dev/zero", "-o", str(tmp_path / "zero.png"))
    assert "must end in .png or .svg" in refused(capsys, "plot", str(tmp_path), "-o", str(tmp_path / "a.pdf"))
    assert "cannot be read" in refused(capsys, "plot", str(tmp_path / "none.jsonl"))
