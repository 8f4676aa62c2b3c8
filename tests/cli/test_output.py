"""What is written: refused before work is lost, whole, with nothing left behind."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from mebp.cli.view.grid import grid, print_grid
from mebp.plan import dump_plan, parse_plan
from mebp.sim.profile import dump_device, load_device
from tests.cli.typed import QUICK, command, refused


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


def test_a_plan_with_a_mark_before_it_is_read(plan_file: str) -> None:
    text = Path(plan_file).read_text()
    Path(plan_file).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert command("show", plan_file) == 0
    assert dump_plan(parse_plan(text, "x")) == text


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


def test_of_columns_of_one_name_only_the_one_for_which_there_is_no_room_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    table = grid("plan", right=("step", "error", "peak", "error"))
    table.add_row("mebp", "26.7 s", "-6.7%", "1.02 GB", "-0.7%")
    print_grid(Console(width=30), table)
    out = capsys.readouterr().out
    assert ("-6.7%" in out, "1.02 GB" in out, "-0.7%" in out) == (True, True, False)
    assert "left out for want of width: error" in " ".join(out.split())
