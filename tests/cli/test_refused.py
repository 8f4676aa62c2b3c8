"""Input that is refused in one line, before anything is searched or measured."""

import json
from pathlib import Path

import pytest

from mebp.errors import InputError
from mebp.models.catalogue import load_model
from mebp.models.config import ModelConfig
from mebp.models.format import weight_formats
from mebp.store.synthetic import synthesize
from tests.cli.typed import QUICK, TINY, command, refused


@pytest.mark.usefixtures("never")
def test_a_row_that_no_table_has_is_refused_before_the_search(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such row: take one of" in refused(capsys, "--model", tiny, "--plan", "fastest", *QUICK)
    assert "no such row" in refused(capsys, "run", "--model", tiny, "--plan", "fastest", *QUICK)


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize(
    ("changes", "fmt", "says"),
    [({}, "int8", "is in int8"), ({"rope_theta": 5.0}, "int4-g32", "rope.theta"), ({"vocab_size": 640}, "int4-g32", "vocab")],
)
def test_a_store_of_another_model_or_format_is_refused_before_anything_is_measured(
    changes: dict[str, object], fmt: str, says: str, tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps(TINY | changes))
    store = synthesize(tmp_path / "store", load_model(str(tmp_path / "other")), weight_formats(fmt))
    for which in ("run", "verify"):
        assert says in refused(capsys, which, "--model", tiny, "--store", str(store), *QUICK)


@pytest.mark.usefixtures("never")
def test_token_ids_of_another_shape_are_refused_before_anything_is_measured(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ids.json").write_text("[[1, 2, 3]]")
    assert "token ids have shape (1, 3)" in refused(capsys, "run", "--model", tiny, "--ids", str(tmp_path / "ids.json"), *QUICK)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"is_causal": False}, "is_causal = false"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification is no causal language model"),
        ({"peft_type": "LORA", "base_model_name_or_path": "some/model"}, "PEFT adapter, not of a model: name that of its base"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "by kind of attention are not llama's"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 5.0}},
            "both rope_param",
        ),
        ({"model_type": "gemma3_text", "rope_parameters": {"rope_theta": 5e5}, "sliding_window": 8}, "must name full_attention"),
        (
            {"model_type": "gemma3_text", "rope_scaling": {"type": "linear", "factor": 8.0}, "sliding_window": 8},
            "call it",
        ),
        ({"model_type": "x" * 9999}, "is not a family known here"),
    ],
)
def test_a_config_that_means_something_else_is_refused(
    config: dict[str, object], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY | config))
    line = refused(capsys, "--model", str(tmp_path / "config.json"), *QUICK)
    assert says in line
    assert len(line) < 500


def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter, gguf, quantised = tmp_path / "adapter", tmp_path / "model.gguf", tmp_path / "gptq"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    gguf.write_bytes(b"GGUF\x03" + bytes(20))
    quantised.mkdir()
    (quantised / "config.json").write_text(json.dumps(TINY | {"quantization_config": {"quant_method": "gptq", "bits": 3}}))
    for source, says in (
        (adapter, "holds a PEFT adapter, not a model"),
        (gguf, "architecture '' is not known here"),
        (quantised, "is quantised already (gptq, 3 bits)"),
    ):
        assert says in refused(capsys, "compress", str(source), "-o", str(tmp_path / "store"))
    assert "architecture '' is not known here" in refused(capsys, "--model", str(gguf), *QUICK)
    assert "PEFT adapter" in refused(capsys, "--model", str(adapter), *QUICK)


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("arguments", [("plan", "--model"), ("curve", "--model"), ("compare", "-m")])
def test_planning_for_this_machine_measures_shapes_that_are_new_to_it(
    arguments: tuple[str, ...], tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(config: ModelConfig, *_: object) -> None:
        raise InputError(f"measured {config.name}")

    monkeypatch.setattr("mebp.cli.command.target.this_machine", measured)
    assert refused(capsys, *arguments, tiny, "-d", "host", *QUICK) == "mebp-plan: measured tiny"


def test_app_limits_above_memory_are_refused(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no app gets more than there is" in refused(capsys, "--model", tiny, "--set", "hardware.ram_bytes=1e6", *QUICK)


def test_a_plan_whose_bound_was_tampered_with_is_refused(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    assert command("--model", tiny, "-o", str(path), "--plan", "solved", *QUICK, "--time-limit", "60") == 0
    plan = json.loads(path.read_text())
    plan["solver"]["bound_ns"] = 10**15
    path.write_text(json.dumps(plan))
    capsys.readouterr()
    assert "its bound is above its own time" in refused(capsys, "show", str(path))


def test_a_budget_below_the_runtime_offers_nothing(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--model", tiny, "--budget", "10kB", *QUICK) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "no setting that was tried fits 10.0 kB" in out
    assert "the runtime alone takes 63.6 MB: raise --budget" in out


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize(
    ("flag", "value"), [("--budget", "10XB"), ("--max-flash-write", "much"), ("--time-limit", "0"), ("--seed", "-1")]
)
def test_a_flag_that_cannot_be_read_costs_no_calibration(
    flag: str, value: str, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for start in (("run", "--model", tiny), ("--model", tiny, "-d", "host"), ("curve", "--model", tiny, "-d", "host")):
        assert flag in refused(capsys, *start, *QUICK, flag, value)
