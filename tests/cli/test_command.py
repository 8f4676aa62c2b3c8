"""The command as a person meets it: tables, JSON, exit codes, one line for every kind of bad input, nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mebp.cli.command.show import load_row
from mebp.cli.main import main
from mebp.errors import Disagreement
from mebp.executor.measure.job import GradientCheck, Measurement
from mebp.models.catalogue import load_model
from mebp.models.format import weight_format
from mebp.plan import read_plan
from mebp.sim.profile import dump_device, load_device
from mebp.store.reader import WEIGHTS_FILE
from mebp.store.synthetic import synthesize
from mebp.task.agreement import require_agreement

TINY = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 320}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
QUICK = ["--seq-len", "16", "--weights", "int4-g32", "--time-limit", "5"]


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Config and cache folders of this test alone, 80 columns, no colour."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    return str(folder)


def command(*arguments: str) -> int:
    """Run the command in this process; returns its exit code."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """The one line on stderr with which the command refuses."""
    assert command(*arguments) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("mebp-plan: ")
    return lines[0]


def test_the_table_reads_at_eighty_columns(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--model", tiny, *QUICK) == 0
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines()) <= 80
    for name in ("solved", "least", "mebp", "greedy", "keep-all", "sqrt", "mezo*"):
        assert name in out
    assert any(line.startswith("fits: ") for line in out.splitlines()[-2:])
    assert "\x1b[" not in out


def test_json_sums_and_speaks_whole_bytes_and_microseconds(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("plan", "--model", tiny, "--json", *QUICK) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema_version"] == 1
    assert found["verdict"] == "fits"
    assert found["chosen"] in {plan["name"] for plan in found["plans"]}
    for plan in found["plans"]:
        assert sum(plan["peak_breakdown"].values()) == plan["peak_bytes"]
        assert sum(plan["time_breakdown"].values()) == plan["step_time_us"]
        assert all(type(plan[key]) is int for key in plan if key.endswith(("_bytes", "_us")))
    solved = next(plan for plan in found["plans"] if plan["name"] == "solved")
    assert solved["solver"]["bound_us"] <= solved["step_time_us"]


def test_what_does_not_fit_exits_with_1_and_the_least_budget(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--model", tiny, "--budget", "1MB", *QUICK) == 1
    assert "does not fit 1.00 MB: the least feasible budget is" in capsys.readouterr().out


def test_the_least_budget_that_is_named_is_one_that_fits(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    command("--model", tiny, "--budget", "1MB", "--json", *QUICK)
    least = json.loads(capsys.readouterr().out)["least_budget_bytes"]
    assert command("--model", tiny, "--budget", str(least), *QUICK) == 0


def test_a_budget_a_byte_below_the_least_does_not_fit(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    command("--model", tiny, "--budget", "1MB", "--json", *QUICK)
    least = json.loads(capsys.readouterr().out)["least_budget_bytes"]
    assert command("--model", tiny, "--budget", str(least - 1), *QUICK) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--budget", "0"], "--budget"),
        (["--budget", "abc"], "'abc'"),
        (["--budget", "-5GB"], "'-5GB'"),
        (["--budget", "1e30"], "--budget"),
        (["--lora-r", "65"], "--lora-r"),
        (["--lora-r", "0"], "--lora-r"),
        (["--lora-alpha", "nan"], "--lora-alpha"),
        (["--lora-targets", "q,zz"], "--lora-targets"),
        (["--seq-len", "1"], "--seq-len"),
        (["--seq-len", "99999999"], "--seq-len"),
        (["--batch-size", "0"], "--batch-size"),
        (["--weights", "int3"], "int3"),
        (["--weights", "int4-g128"], "int4-g128"),
        (["--precision", "fp8"], "--precision"),
        (["--optimizer", "lion"], "--optimizer"),
        (["--device", "iphone99"], "iphone99"),
        (["--set", "runtime.speed=3"], "runtime.speed"),
        (["--max-flash-write", "lots"], "--max-flash-write"),
        (["--time-limit", "0"], "--time-limit"),
        (["--time-limit", "soon"], "--time-limit"),
        (["--seed", "-1"], "--seed"),
        (["--plan", "nothing"], "no such row"),
        (["--bogus"], "No such option: --bogus"),
        (["-o", "/nowhere/plan.json"], "/nowhere/plan.json"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments: list[str], says: str, tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*QUICK, *arguments] if "--weights" not in arguments else ["--seq-len", "16", *arguments]
    assert says in refused(capsys, "plan", "--model", tiny, *given)


@pytest.mark.parametrize("model", ["nothing", "./none", ""])
def test_unknown_models_are_one_line(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "--model", model)


def test_a_plan_file_is_written_whole_and_shown(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    assert command("--model", tiny, "-o", str(path), "--plan", "mebp", *QUICK) == 0
    assert command("show", str(path), "--limit", "5") == 0
    out = capsys.readouterr().out
    assert "arena over the step" in out
    assert "plan mebp: arena" in out
    assert command("compare", str(path), str(path)) == 0
    assert [p.name for p in tmp_path.iterdir() if "part" in p.name] == []


def test_an_unwritable_folder_keeps_what_was_there(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    assert "cannot write" in refused(capsys, "--model", tiny, "-o", str(path), *QUICK)
    assert path.is_dir()


@pytest.mark.parametrize("target", ["/dev/null", "/", ""])
def test_what_is_no_file_is_not_replaced(target: str, tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no regular file" in refused(capsys, "--model", tiny, "-o", target, *QUICK)
    assert Path("/dev/null").is_char_device()


def test_a_link_is_followed(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    assert command("--model", tiny, "-o", str(tmp_path / "link.json"), *QUICK) == 0
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").is_file()


def test_a_trace_opens_as_chrome_events(tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    assert command("--model", tiny, "--trace", str(path), *QUICK) == 0
    events = json.loads(path.read_text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "C"}


def test_a_run_s_trace_has_both_processes_and_their_memory(
    plan_file: str, host: None, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace.json"
    monkeypatch.setattr("mebp.task.agreement.require_agreement", lambda *_: None)  # the profile is a phone's
    assert command("run", plan_file, "--store", str(store), "--steps", "1", "--trace", str(path)) == 0
    events = json.loads(path.read_text())["traceEvents"]
    assert [event["args"]["name"] for event in events if event["ph"] == "M"] == ["predicted", "measured"]
    for process in (1, 2):
        counters = [event for event in events if event["ph"] == "C" and event["pid"] == process]
        assert {event["name"] for event in counters} == {"arena bytes", "anonymous memory"}
        assert all(event["args"]["bytes"] > 0 for event in counters if event["name"] == "anonymous memory")


@pytest.mark.parametrize("name", ["devices", "models"])
def test_lists_print(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(name) == 0
    assert ("iphone15promax" if name == "devices" else "gemma-3-4b") in capsys.readouterr().out


def test_a_device_shows_value_kind_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("devices", "show", "iphone15promax") == 0
    out = capsys.readouterr().out
    assert "JazzDiskBench" in " ".join(out.split())
    assert "assumed" in out


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--help") == 0
    out = capsys.readouterr().out
    for name in ("plan", "run", "show", "compare", "devices", "models", "calibrate", "synthesize"):
        assert name in out


# -- run --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def plan_file(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    path = tmp_path / "plan.json"
    assert command("--model", tiny, "-o", str(path), "--plan", "mebp", *QUICK) == 0
    capsys.readouterr()
    return str(path)


@pytest.fixture
def host(tmp_path: Path) -> None:
    """A profile of this machine that is wrong in every number but saves the calibration."""
    folder = tmp_path / "config" / "mebp-plan" / "devices"
    folder.mkdir(parents=True)
    (folder / "host.toml").write_text(dump_device(load_device("laptop16")))


@pytest.fixture
def store(tiny: str, tmp_path: Path) -> Path:
    return synthesize(tmp_path / "store", load_model(tiny), weight_format("int4-g32"))


@pytest.mark.slow
def test_run_calibrates_synthesizes_executes_and_agrees(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way on an empty machine: the arena exact, gradients those of autograd. Times of a tiny model are noise."""
    code = command("run", "--model", tiny, *QUICK, "--precision", "fp32", "--check-gradients", "--json", "--steps", "2")
    captured = capsys.readouterr()
    assert "calibrating first" in captured.err
    assert "random weights" in captured.err
    found = json.loads(captured.out)
    assert code in (0, 4)
    assert found["measured"]["arena_bytes"] == found["predicted"]["arena_bytes"]
    assert found["gradients"]["checked"]
    assert found["gradients"]["max_relative_error"] <= 1e-5
    assert len(found["measured"]["step_time_us"]) == 2
    command("run", "--model", tiny, *QUICK, "--precision", "fp32", "--steps", "1")
    assert "calibrating" not in capsys.readouterr().err
    command("run", "--model", tiny, "--seq-len", "40", "--lora-r", "2", "--weights", "int4-g32", "--steps", "1")
    assert "no measurements at the shapes of tiny yet: calibrating first" in capsys.readouterr().err
    command("run", "--model", tiny, *QUICK, "--precision", "fp32", "--steps", "1")
    assert "calibrating" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "runtime.unpack_rate=1e9"], "No such option: --set"),
        (["--device", "pixel8"], "leave --device out"),
        (["-o", "."], "it is no file"),
        (["-o", "/proc/no/host.toml"], "cannot write /proc/no/host.toml"),
        (["--spill-dir", "/nowhere"], "no such folder"),
    ],
)
def test_calibrate_refuses_what_it_cannot_keep_or_use_before_it_measures(
    arguments: list[str], says: str, tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mebp.task.calibrate.calibrate", lambda *_: pytest.fail("measured"))
    assert says in refused(capsys, "calibrate", "--model", tiny, *arguments)


@pytest.mark.parametrize("extra", [["--seq-len", "2"], ["--seq-len", "8", "--accumulate", "2", "--clip-norm", "1.0"]])
def test_gradients_are_checked_where_some_are_zero_or_held(
    extra: list[str], tiny: str, host: None, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A lone counted token's query and key have no gradient; held gradients are checked before they are applied."""
    asked = ["--weights", "int4-g32", "--precision", "fp32", "--steps", "1", "--check-gradients", "--json", "--store", str(store)]
    assert command("run", "--model", tiny, *extra, *asked) in (0, 4)
    found = json.loads(capsys.readouterr().out)["gradients"]
    assert found["checked"]
    assert found["max_relative_error"] <= 1e-4


def test_run_refuses_a_plan_for_another_model(plan_file: str, host: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is a plan for" in refused(capsys, "run", plan_file, "--model", "0.5b")


def test_run_refuses_a_store_of_another_model(
    plan_file: str, host: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(TINY | {"intermediate_size": 192}))
    folder = synthesize(tmp_path / "store", load_model(str(other)), weight_format("int4-g32"))
    assert "not tiny" in refused(capsys, "run", plan_file, "--store", str(folder))


def test_run_refuses_a_cut_store(plan_file: str, host: None, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = store / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-9])
    assert "cut off" in refused(capsys, "run", plan_file, "--store", str(store))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--store", "/nowhere"], "no store at /nowhere"),
        (["--steps", "0"], "--steps"),
        (["--torch-device", "warp"], "must be one of cpu, cuda, mps"),
        (["--spill-dir", "/nowhere"], "--spill-dir"),
        (["--ids", "/nowhere.json"], "/nowhere.json"),
    ],
)
def test_run_refuses_bad_input_in_one_line(
    arguments: list[str], says: str, plan_file: str, host: None, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments if "--store" in arguments else ["--store", str(store), *arguments]
    assert says in refused(capsys, "run", plan_file, *given)


def test_run_refuses_token_ids_that_do_not_fit(
    plan_file: str, host: None, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = tmp_path / "ids.json"
    for content, says in (
        ("[[1, 2]]", "shape (1, 2)"),
        ("[[1], [2, 3]]", "token ids"),
        ('"x"', "token ids"),
        (f"[{[9999] * 16}]", "9999"),
    ):
        ids.write_text(content)
        assert says in refused(capsys, "run", plan_file, "--store", str(store), "--ids", str(ids))


def test_run_refuses_text_that_is_no_plan(host: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.json"
    path.write_text("{}")
    assert "is not a plan" in refused(capsys, "run", str(path))


def test_a_tampered_plan_is_refused_before_it_runs(
    plan_file: str, host: None, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(plan_file)
    path.write_text(path.read_text().replace('"arena_bytes":', '"arena_bytes":1', 1))
    assert "invalid plan" in refused(capsys, "run", plan_file, "--store", str(store))


def measurement(**changes: object) -> Measurement:
    """A run that agrees with its prediction, but for `changes`."""
    fields: dict[str, object] = {"arena_bytes": 640, "baseline_bytes": 0, "peak_bytes": 1000, "file_bytes": 0}
    fields |= {"step_s": (1.0,), "loss": (1.0,), "spans_ns": ()}
    return Measurement(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, None),
        ({"arena_bytes": 641}, "arena"),
        ({"peak_bytes": 1090}, None),
        ({"peak_bytes": 1110}, "peak"),
        ({"peak_bytes": 890}, "peak"),
        ({"step_s": (1.9, 0.1, 5.0)}, None),
        ({"step_s": (3.1,)}, "step"),
        ({"step_s": (0.3,)}, "step"),
        ({"gradients": GradientCheck(max_relative_error=1e-6, cosine=1.0)}, None),
        ({"gradients": GradientCheck(max_relative_error=1e-3, cosine=1.0)}, "gradients"),
    ],
)
def test_a_run_that_is_not_as_predicted_exits_with_4(changes: dict[str, object], says: str | None) -> None:
    plan = SimpleNamespace(arena_bytes=640, workload=SimpleNamespace(precision="fp32"))
    prediction = SimpleNamespace(peak_bytes=1000, step_ns=10**9)
    if says is None:
        require_agreement(plan, prediction, measurement(**changes))  # type: ignore[arg-type]
        return
    with pytest.raises(Disagreement, match=says) as caught:
        require_agreement(plan, prediction, measurement(**changes))  # type: ignore[arg-type]
    assert caught.value.exit_code == 4


def test_flags_that_the_plan_decides_are_refused(plan_file: str, host: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert "decides --seq-len itself" in refused(capsys, "run", plan_file, "--seq-len", "32")


def test_mezo_has_no_gradient_to_check(tiny: str, host: None, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "--model", tiny, "--plan", "mezo", "--check-gradients", "--store", str(store), *QUICK]
    assert "no exact gradient" in refused(capsys, *arguments)


def interrupted(arguments: list[str], after_s: float, tmp_path: Path) -> subprocess.Popen[str]:
    """Start the command, send Ctrl-C to it and its children after a while, and wait."""
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    running = subprocess.Popen(
        [sys.executable, "-m", "mebp", *arguments], stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    time.sleep(after_s)
    os.killpg(running.pid, signal.SIGINT)
    return running


def outcome(running: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = running.communicate(timeout=60)
    return running.returncode, err.strip()


INTERRUPT_AT_FIRST_SOLUTION = """
import os, signal, sys
from mebp.cli.main import main
from mebp.planner.solver import search
watch, sent = search._Report.on_solution_callback, []
def interrupt(report):
    watch(report)
    if not sent:
        sent.append(os.kill(os.getpid(), signal.SIGINT))
search._Report.on_solution_callback = interrupt
main(sys.argv[1:])
"""


def test_ctrl_c_while_solving_gives_the_best_plan_so_far(tmp_path: Path) -> None:
    """The signal comes with the search's first solution, whenever that is."""
    path = tmp_path / "plan.json"
    command_line = [sys.executable, "-c", INTERRUPT_AT_FIRST_SOLUTION, "--model", "0.5b", "--budget", "300MB", "-o", str(path)]
    done = subprocess.run(command_line, capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "mebp-plan: interrupted: these are the best plans so far"
    assert "at least, best at" in done.stdout
    assert read_plan(path).budget_bytes == 300_000_000


def test_ctrl_c_before_anything_is_found_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    running = interrupted(["--model", "4b", "-o", str(path)], 0.05, tmp_path)
    assert outcome(running)[0] in (130, -signal.SIGINT)
    assert not path.exists()


def test_ctrl_c_while_running_leaves_nothing(plan_file: str, host: None, store: Path, tmp_path: Path) -> None:
    running = interrupted(["run", plan_file, "--store", str(store), "--steps", "100000"], 6, tmp_path)
    assert outcome(running) == (130, "mebp-plan: interrupted")
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_budget_beyond_the_device_is_cut_to_what_it_gives_an_app(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--model", tiny, "--budget", "1TB", "--json", *QUICK) == 0
    captured = capsys.readouterr()
    assert "planning for 3.00 GB" in captured.err
    assert json.loads(captured.out)["budget_bytes"] == 3_000_000_000


def test_a_row_that_does_not_fit_can_be_asked_for_and_exits_with_1(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    command("--model", tiny, "--budget", "1MB", "--json", *QUICK)
    least = json.loads(capsys.readouterr().out)["least_budget_bytes"]
    assert command("--model", tiny, "--budget", str(least), "--plan", "keep-all", *QUICK) == 1
    out = capsys.readouterr().out
    assert "> keep-all" in out
    assert "does not fit: keep-all takes" in out


def test_outputs_do_not_replace_inputs_or_each_other(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Path(tiny) / "config.json"
    before = config.read_text()
    assert "name another file" in refused(capsys, "--model", tiny, "-o", str(config), *QUICK)
    assert config.read_text() == before
    both = str(tmp_path / "both.json")
    assert "name another file" in refused(capsys, "--model", tiny, "-o", both, "--trace", both, *QUICK)


def test_damaged_weights_are_named_and_not_a_traceback(
    plan_file: str, host: None, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = store / WEIGHTS_FILE
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    low, high = header["0.q.steps"]["data_offsets"]
    data[start + low : start + high] = b"\xff\x7f" * ((high - low) // 2)
    file.write_bytes(data)
    assert "tensor 0.q.steps is damaged" in refused(capsys, "run", plan_file, "--store", str(store))


def test_a_width_of_nothing_is_no_traceback(plan_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    assert command("show", plan_file, "--limit", "1") == 0


def test_enforcing_a_budget_below_the_process_itself_is_refused(
    plan_file: str, host: None, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(plan_file)
    path.write_text(path.read_text().replace(f'"budget_bytes":{read_plan(path).budget_bytes}', '"budget_bytes":1000', 1))
    assert "--enforce: the plan's budget of" in refused(capsys, "run", plan_file, "--store", str(store), "--enforce", code=1)


def test_a_plan_that_lies_about_its_gradient_is_refused(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mezo.json"
    assert command("--model", tiny, "-o", str(path), "--plan", "mezo", *QUICK) == 0
    path.write_text(path.read_text().replace('"exact":false', '"exact":true', 1))
    capsys.readouterr()
    assert "exact where it has a backward" in refused(capsys, "show", str(path))


def test_a_closed_standard_output_is_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(f"{sys.executable} -m mebp models >&-", shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == ["mebp-plan: standard output is closed: send it to a file, or to /dev/null"]


def test_the_frontier_prints_rows_and_writes_csv(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "points.csv"
    assert command("frontier", "--model", tiny, "--points", "3", "-o", str(path), *QUICK) == 0
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) <= 80
    header, *rows = path.read_text().splitlines()
    assert header.startswith("budget_bytes,peak_bytes,step_time_us")
    assert len(rows) == 3
    assert "--points" in refused(capsys, "frontier", "--model", tiny, "--points", "1", *QUICK)


def test_a_frontier_above_the_budget_exits_with_1(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("frontier", "--model", tiny, "--points", "2", "--budget", "1MB", *QUICK) == 1
    assert "nothing fits 1.00 MB: the least feasible budget is" in capsys.readouterr().err


def test_a_plan_is_timed_again_on_the_profile_it_was_made_with(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    slow = ["--set", "runtime.unpack_rate=1e6", "--max-flash-write", "0"]
    assert command("--model", tiny, "-o", str(path), "--plan", "checkpoint-1", "--json", *slow, *QUICK) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["plans"]}
    assert read_plan(path).overrides == ("runtime.unpack_rate=1e6", "runtime.flash_write_cap_bytes=0")
    row, _ = load_row(path, None)
    assert row.prediction.step_ns // 1000 == pytest.approx(rows["checkpoint-1"]["step_time_us"], abs=1)
    assert load_row(path, "iphone15promax")[0].prediction.step_ns < row.prediction.step_ns
    command("show", str(path), "--limit", "1")
    assert "iphone15promax with runtime.unpack_rate=1e6" in capsys.readouterr().out.replace("\n", " ")


def test_a_plan_file_is_one_plan_and_no_row_to_choose(plan_file: str, host: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--plan mebp" in refused(capsys, "run", plan_file, "--plan", "mebp")


def test_bounds_are_shown_on_the_device_they_were_proven_for_only(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    assert command("--model", tiny, "-o", str(path), "--plan", "solved", "--budget", "142MB", *QUICK) in (0, 1)
    command("show", str(path), "--limit", "1")
    assert "proven" in capsys.readouterr().out
    command("show", str(path), "--limit", "1", "--device", "mba_m3")
    assert "proven" not in capsys.readouterr().out
