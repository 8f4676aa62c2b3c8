"""`run` and `calibrate`: a plan executed here, and what they refuse before they measure."""

import json
from pathlib import Path

import pytest

from mebp.models.catalogue import load_model
from mebp.models.format import WEIGHTS_FILE, weight_formats
from mebp.plan import read_plan
from mebp.store.synthetic import synthesize
from tests.cli.typed import QUICK, TINY, command, refused


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


@pytest.mark.slow
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


def test_gradient_checks_end_in_a_verdict_and_a_plan_says_whose_it_is(
    plan_file: str, host: None, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mebp.task.agreement.require_agreement", lambda *_: None)  # the profile is a phone's
    assert command("run", plan_file, "--store", str(store), "--steps", "1", "--check-gradients") == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "planned for iPhone 15 Pro Max" in out
    assert "gradients agree with autograd's: cosine of all gradients 0.99" in " ".join(out.split())


def test_run_refuses_a_plan_for_another_model(plan_file: str, host: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is a plan for" in refused(capsys, "run", plan_file, "--model", "0.5b")


def test_run_refuses_a_store_of_another_model(
    plan_file: str, host: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(TINY | {"intermediate_size": 192}))
    folder = synthesize(tmp_path / "store", load_model(str(other)), weight_formats("int4-g32"))
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


def test_flags_that_the_plan_decides_are_refused(plan_file: str, host: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert "decides --seq-len itself" in refused(capsys, "run", plan_file, "--seq-len", "32")


def test_mezo_has_no_gradient_to_check(tiny: str, host: None, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "--model", tiny, "--plan", "mezo", "--check-gradients", "--store", str(store), *QUICK]
    assert "no exact gradient" in refused(capsys, *arguments)


def test_damaged_weights_are_named_and_not_a_traceback(
    plan_file: str, host: None, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = store / WEIGHTS_FILE
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    low, high = header["0.q.scales"]["data_offsets"]
    data[start + low : start + high] = b"\xff\x7f" * ((high - low) // 2)
    file.write_bytes(data)
    assert "tensor 0.q.scales is damaged" in refused(capsys, "run", plan_file, "--store", str(store))


def test_enforcing_a_budget_below_the_process_itself_is_refused(
    plan_file: str, host: None, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(plan_file)
    path.write_text(path.read_text().replace(f'"budget_bytes":{read_plan(path).budget_bytes}', '"budget_bytes":1000', 1))
    assert "--enforce: the plan's budget of" in refused(capsys, "run", plan_file, "--store", str(store), "--enforce", code=1)


def test_a_plan_file_is_one_plan_and_no_row_to_choose(plan_file: str, host: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--plan mebp" in refused(capsys, "run", plan_file, "--plan", "mebp")


@pytest.mark.parametrize(("flag", "name"), [("--trace", WEIGHTS_FILE), ("-o", "config.json")])
def test_no_output_replaces_a_file_of_the_store(
    flag: str, name: str, plan_file: str, host: None, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (store / name).read_bytes()
    assert "name another file" in refused(capsys, "run", plan_file, "--store", str(store), flag, str(store / name))
    assert (store / name).read_bytes() == before


def test_a_store_is_written_to_a_new_folder_only(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "is not empty: name a new folder" in refused(capsys, "synthesize", "--model", tiny, "-o", str(tmp_path / "full"))
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_what_a_plan_says_of_itself_is_refused_under_the_name_of_its_file(
    plan_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = json.loads(Path(plan_file).read_text())
    changed = (("lora", {**whole["workload"]["lora"], "alpha": 0.0}), ("clip_norm", -1.0), ("evaluations", 0))
    for key, value in changed:
        (tmp_path / "h.json").write_text(json.dumps(whole | {"workload": whole["workload"] | {key: value}}))
        line = refused(capsys, "show", str(tmp_path / "h.json"))
        assert "h.json: " in line
        assert line.endswith("plan again")
        assert "--" not in line


def test_a_store_that_is_the_plan_or_nothing_is_called_that(
    plan_file: str, host: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for store in ("", plan_file):
        assert "no store at" in refused(capsys, "run", plan_file, "--store", store)
    assert "name another file" in refused(capsys, "run", plan_file, "-o", plan_file)
