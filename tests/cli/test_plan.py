"""`plan`: the table, JSON, exit codes, one line for every kind of bad input, nothing left behind."""

import json
from pathlib import Path

import pytest

from tests.cli.typed import QUICK, command, refused


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
    assert "does not fit 1.00 MB: the least budget found is" in capsys.readouterr().out


def test_the_least_budget_that_is_named_is_one_that_fits(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    command("--model", tiny, "--budget", "1MB", "--json", *QUICK)
    least = json.loads(capsys.readouterr().out)["least_budget_bytes"]
    assert command("--model", tiny, "--budget", str(least), *QUICK) == 0


@pytest.mark.slow
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
    assert "not a regular file" in refused(capsys, "--model", tiny, "-o", target, *QUICK)
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


@pytest.mark.parametrize(
    ("flag", "value", "must"),
    [
        ("--seq-len", "abc", "must be a whole number"),
        ("--seq-len", "", "must be a whole number"),
        ("--time-limit", "x", "must be a number"),
        ("--batch-size", "1.5", "must be a whole number"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(
    flag: str, value: str, must: str, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"{flag} = {value!r}: {must}: see mebp-plan plan --help" in refused(capsys, "plan", "--model", tiny, flag, value)


def test_no_output_replaces_a_file_of_the_model_s_folder(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    weights = Path(tiny) / "model.safetensors"
    weights.write_bytes(b"precious")
    for model in (tiny, str(Path(tiny) / "config.json")):
        assert "name another file" in refused(capsys, "--model", model, "--trace", str(weights), *QUICK)
    assert weights.read_bytes() == b"precious"


def test_a_switch_of_a_profile_is_0_or_1(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "must be 0 or 1" in refused(capsys, "--model", tiny, "--set", "runtime.unpack_beside=0.5", *QUICK)
