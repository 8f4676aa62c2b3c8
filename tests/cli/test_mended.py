"""What trying the command found: refused before work is lost, in one line, with nothing left behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mebp.errors import InputError
from mebp.models.catalogue import load_model
from mebp.models.config import ModelConfig
from mebp.models.format import weight_format
from mebp.plan import dump_plan, parse_plan
from mebp.sim.profile import dump_device, load_device
from mebp.store.synthetic import synthesize
from tests.cli.typed import QUICK, TINY, command, refused


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a search nor a calibration may begin."""

    def begun(*_: object, **__: object) -> None:
        raise AssertionError("work had begun before the input was looked at")

    for work in ("mebp.planner.tradeoff.tradeoff", "mebp.task.host.measure_host", "mebp.planner.dag.solve.solve_dag"):
        monkeypatch.setattr(work, begun)


@pytest.fixture
def circle(tmp_path: Path) -> str:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    return str(tmp_path / "a")


def graph_file(folder: Path, **more: object) -> str:
    path = folder / "g.json"
    nodes = [{"id": n, "cost_cpu": 1, "cost_ram": 100} for n in range(3)]
    path.write_text(json.dumps({"nodes": nodes, "links": [{"source": 0, "target": 1}]} | more))
    return str(path)


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("target", ["", "-", "no/such/folder/plan.json", "CIRCLE"])
@pytest.mark.parametrize("which", ["plan", "curve", "run", "graph", "pack"])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    which: str, target: str, tiny: str, circle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.csv").write_text("id,lower,upper,size\n0,0,1,4\n")
    arguments = {
        "graph": ("graph", graph_file(tmp_path), "--budget", "1kB"),
        "pack": ("pack", str(tmp_path / "p.csv"), "--capacity", "10"),
    }.get(which, (which, "--model", tiny, *QUICK))
    line = refused(capsys, *arguments, "-o", circle if target == "CIRCLE" else target)
    assert "-o" in line or "symbolic links" in line


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
    store = synthesize(tmp_path / "store", load_model(str(tmp_path / "other")), weight_format(fmt))
    for which in ("run", "verify"):
        assert says in refused(capsys, which, "--model", tiny, "--store", str(store), *QUICK)


@pytest.mark.usefixtures("never")
def test_token_ids_of_another_shape_are_refused_before_anything_is_measured(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ids.json").write_text("[[1, 2, 3]]")
    assert "token ids have shape (1, 3)" in refused(capsys, "run", "--model", tiny, "--ids", str(tmp_path / "ids.json"), *QUICK)


@pytest.mark.parametrize("which", ["compress", "synthesize"])
@pytest.mark.parametrize("target", ["", "-"])
def test_a_store_is_never_written_into_the_current_folder(
    which: str, target: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    source = ("synthesize", "--model", tiny) if which == "synthesize" else ("compress", tiny)
    assert "is no name for a store" in refused(capsys, *source, "-o", target)
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_circle_of_links_is_one_line_for_a_checkpoint_too(
    circle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "\n" not in refused(capsys, "compress", circle, "-o", str(tmp_path / "store"))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"is_causal": False}, "is_causal = false"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification is no causal language model"),
        ({"peft_type": "LORA", "base_model_name_or_path": "some/model"}, "PEFT adapter, not of a model: name that of its base"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "by kind of attention are gemma3_text's alone"),
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
    gguf.write_bytes(b"GGUF" + bytes(20))
    quantised.mkdir()
    (quantised / "config.json").write_text(json.dumps(TINY | {"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    for source, says in (
        (adapter, "holds a PEFT adapter, not a model"),
        (gguf, "is a GGUF file"),
        (quantised, "is quantised already (gptq, 4 bits)"),
    ):
        assert says in refused(capsys, "compress", str(source), "-o", str(tmp_path / "store"))
    assert "is a GGUF file" in refused(capsys, "--model", str(gguf), *QUICK)
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
    assert command("--model", tiny, "-o", str(path), "--plan", "solved", *QUICK) == 0
    plan = json.loads(path.read_text())
    plan["solver"]["bound_ns"] = 10**15
    path.write_text(json.dumps(plan))
    capsys.readouterr()
    assert "its bound is above its own time" in refused(capsys, "show", str(path))


def test_a_plan_with_a_mark_before_it_is_read(plan_file: str) -> None:
    text = Path(plan_file).read_text()
    Path(plan_file).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert command("show", plan_file) == 0
    assert dump_plan(parse_plan(text, "x")) == text


def test_a_budget_below_the_runtime_offers_nothing(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--model", tiny, "--budget", "10kB", *QUICK) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "no setting that was tried fits 10.0 kB" in out
    assert "the runtime alone takes 63.6 MB: raise --budget" in out


@pytest.mark.parametrize("columns", [40, 50, 60, 74, 80, 200])
def test_tables_keep_whole_figures_and_the_column_that_says_what_fits(
    columns: int, tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert command("--model", tiny, *QUICK) == 0
    out = capsys.readouterr().out
    assert " fits " in out
    assert "\u2026" not in out
    assert ("left out for want of width" in " ".join(out.split())) or columns > 50
    assert max(map(len, out.splitlines())) <= columns


ENDED = """
import os, signal, sys
from mebp.cli.main import main
from mebp.store import writer
pieces, seen = writer._write_pieces, []
def write(*given):
    seen.append(None)
    if len(seen) == 3:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    return pieces(*given)
writer._write_pieces = write
main(sys.argv[2:])
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130), ("SIGKILL", -9)])
def test_however_a_store_s_writing_ends_the_next_one_is_whole(name: str, code: int, tiny: str, tmp_path: Path) -> None:
    target = tmp_path / "stores" / "store"
    arguments = ["synthesize", "--model", tiny, "--weights", "int4-g32", "-o", str(target)]
    done = subprocess.run([sys.executable, "-c", ENDED, name, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    left = list((tmp_path / "stores").iterdir())
    assert [path.suffix for path in left] == ([".part"] if name == "SIGKILL" else [])
    assert command(*arguments) == 0
    assert list((tmp_path / "stores").iterdir()) == [target]


@pytest.mark.slow
@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_ended_takes_its_worker_with_it(
    number: signal.Signals, plan_file: str, host: None, store: Path, tmp_path: Path
) -> None:
    (tmp_path / "tmp").mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp"), "MEBP_TEST": str(tmp_path)}
    arguments = [sys.executable, "-m", "mebp", "run", plan_file, "--store", str(store), "--steps", "100000"]
    running = subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(timeout=6)
    children = subprocess.run(["pgrep", "-P", str(running.pid)], capture_output=True, text=True, check=False).stdout.split()
    assert children
    running.send_signal(number)
    running.wait(timeout=60)
    for _ in range(100):
        if not any(Path(f"/proc/{child}").exists() for child in children):
            break
        subprocess.run(["sleep", "0.1"], check=True)
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    if number is signal.SIGTERM:
        assert list((tmp_path / "tmp").iterdir()) == []


def test_compress_warns_of_a_format_that_loses_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(tmp_path / "hf")
    assert command("compress", str(tmp_path / "hf"), "-o", str(tmp_path / "store"), "--weights", "ternary") == 0
    assert "warning: ternary loses" in capsys.readouterr().err
    assert command("compress", str(tmp_path / "hf"), "-o", str(tmp_path / "other"), "--weights", "int4-g32") == 0
    assert "warning" not in capsys.readouterr().err


def test_compress_says_what_is_rounded_and_refuses_what_overflows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch  # noqa: PLC0415

    checkpoint(tmp_path / "hf", **{"model.norm.weight": torch.full((64,), 1.001)})
    assert command("compress", str(tmp_path / "hf"), "-o", str(tmp_path / "store"), "--weights", "int8") == 0
    assert "1 tensors that are kept as bf16 (norms, biases) were rounded to it: 0.10% at worst" in capsys.readouterr().err
    checkpoint(tmp_path / "large", **{"model.norm.weight": torch.full((64,), 3.4e38)})
    assert "final_norm are too large for bf16" in refused(capsys, "compress", str(tmp_path / "large"), "-o", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_a_model_that_was_compiled_when_it_was_saved_is_read(tmp_path: Path) -> None:
    checkpoint(tmp_path / "hf", prefix="_orig_mod.")
    assert command("compress", str(tmp_path / "hf"), "-o", str(tmp_path / "store"), "--weights", "bf16") == 0


def checkpoint(folder: Path, *, prefix: str = "", **tensors: object) -> None:
    """A tiny model with random weights in fp32, some tensors exchanged, every name behind `prefix`."""
    import torch  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    config, draw = load_model(str(folder)), torch.Generator().manual_seed(1)
    names = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj"}
    names |= {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
    found = {
        "model.embed_tokens.weight": torch.randn(config.vocab, config.hidden, generator=draw),
        "model.norm.weight": torch.ones(64),
    }
    for layer in range(config.num_layers):
        for name, shape in config.linear_shapes().items():
            found[f"model.layers.{layer}.{names[name]}.weight"] = torch.randn(shape, generator=draw)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{layer}.{norm}.weight"] = torch.ones(64)
    save_file({f"{prefix}{name}": tensor for name, tensor in (found | tensors).items()}, folder / "model.safetensors")


def test_a_fitted_device_reads_and_its_doubts_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.csv").write_text("model,method,seq_len,lora_r,peak_mb,step_s\n0.5b,mebp,256,8,320,3.85\n")
    assert command("calibrate", "--from", str(tmp_path / "m.csv"), "-o", str(tmp_path / "my.toml")) == 0
    said = capsys.readouterr()
    assert [line for line in said.err.splitlines() if "warning" in line] == [
        "warning: 1 measurement leaves open: forward, backward, head, footprint, logits, heads: they stay near the base profile;"
        " measure other models or lengths"
    ]
    assert "0.5b mebp 256 r8" in said.out
    assert dump_device(load_device(str(tmp_path / "my.toml"))) == (tmp_path / "my.toml").read_text()
