"""Every command and the program in the README, as printed, but for a tiny model in place of the named ones."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from mebp.cli.main import main
from mebp.export.base import Base
from mebp.export.peft import write_peft
from mebp.models.catalogue import load_model
from mebp.sim.profile import dump_device, load_device, override
from mebp.store.compress import compress
from tests.data.spelling import write_tokenizer
from tests.export.test_adapter import random_set
from tests.task.test_quality import TEXT

README = (Path(__file__).parents[2] / "README.md").read_text()
DEVICES = (Path(__file__).parents[2] / "docs" / "devices.md").read_text()
COMMAND = re.compile(r"^    (mebp-plan [^#\n]*)", re.MULTILINE)
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512, "tie_word_embeddings": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands find: a checkpoint, token ids, a device, measurements; and a profile of this machine."""
    folder = tmp_path_factory.mktemp("readme")
    config = AutoConfig.for_model("llama", num_attention_heads=4, num_key_value_heads=2, **SIZES)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "HF_DIR")
    write_tokenizer(folder / "HF_DIR")
    (folder / "TEXT").write_text(TEXT * 9)
    records = [{"prompt": f"{at} and {at} are ", "completion": str(2 * at)} for at in range(20)]
    (folder / "DATA.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    adapters = random_set(load_model(str(folder / "HF_DIR")))
    write_peft(folder / "ADAPTER", adapters, Base(config=adapters.config, name="HF_DIR"))
    (folder / "IDS.json").write_text(json.dumps([list(range(256))]))
    (folder / "myboard.toml").write_text(dump_device(load_device("rpi5_nvme")))
    (folder / "MEASURED.csv").write_text((Path(__file__).parents[2] / "mebp" / "task" / "fit" / "paper.csv").read_text())
    profiles = folder / "config" / "mebp-plan" / "devices"
    profiles.mkdir(parents=True)
    (profiles / "host.toml").write_text(dump_device(override(load_device("laptop16"), ["runtime.footprint_bytes=1e8"])))
    return folder


def typed(text: str) -> list[str]:
    """The commands of a document in order, a tiny model in place of those that it names."""
    lines = [match.strip() for match in COMMAND.findall(text)]
    lines = [line.replace("--limit", "--steps 1 --budget") for line in lines]  # a cgroup needs rights that a test may not have
    return [re.sub(r"(--model|-m) [\d.]+b", r"\1 HF_DIR", line) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("text", [README, DEVICES], ids=["README.md", "docs/devices.md"])
def test_every_command_runs(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In their order, so that one may read what another wrote. The profile of this machine is not its own: no times are judged."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setattr("mebp.task.agreement.require_agreement", lambda *_: None)
    lines = typed(text)
    assert len(lines) >= 8
    failed = []
    for line in lines:
        with pytest.raises(SystemExit) as ended:
            main(shlex.split(line)[1:])
        if ended.value.code:
            failed.append((line, ended.value.code, capsys.readouterr().err))
    assert not failed


def test_the_programs_run_as_printed(folder: Path) -> None:
    plan, train = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    if not (folder / "STORE").exists():
        compress(folder / "HF_DIR", folder / "STORE")
    found = []
    for program in (plan, train):
        assert len([line for line in program.splitlines() if line.strip()]) <= 10
        line = [sys.executable, "-c", program.replace('"4b"', '"HF_DIR"')]
        found.append(subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False))
        assert found[-1].returncode == 0, found[-1].stderr
    assert any(line.split()[:2] == ["solved", "True"] for line in found[0].stdout.splitlines())
    assert found[1].stdout.count("Updated(") == 3
    assert (folder / "MY_ADAPTER" / "adapter_model.safetensors").is_file()


def test_it_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.encode()) <= 9000
    root = Path(__file__).parents[2]
    documents = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    assert len(documents) >= 6
    for document in documents:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / link).exists(), (document.name, link)


def test_the_tree_in_the_architecture_is_the_tree() -> None:
    """Every module that docs/architecture.md names exists, and every module of the package is named or lies in a named folder."""
    root = Path(__file__).parents[2]
    text = (root / "docs" / "architecture.md").read_text()
    tree = text[text.index("## The tree") : text.index("## How to read it")]
    named = set(re.findall(r"\b([a-z_]+\.(?:py|c))\b", tree))
    there = {path.name for path in (root / "mebp").rglob("*") if path.suffix in (".py", ".c")}
    assert named <= there
    folders = {"kind", "recipe", "layer", "solver", "pack", "dag", "ops", "measure", "train", "fit", "command", "view"}
    loose = {p.name for p in (root / "mebp").rglob("*.py") if not p.name.startswith("__") and p.parent.name not in folders}
    assert loose <= named
