"""What a killed process leaves half-written is swept by the next one, and nothing else is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mebp.leftover import is_alive, part_name, sweep, temporary_folder


@pytest.fixture
def dead() -> int:
    """The number of a process that has ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_what_a_dead_process_left_is_removed_and_what_a_live_one_writes_stays(tmp_path: Path, dead: int) -> None:
    own = tmp_path / part_name("store")
    left = tmp_path / part_name("store").replace(str(os.getpid()), str(dead))
    other = tmp_path / part_name("profile").replace(str(os.getpid()), str(dead))
    foreign = tmp_path / f".store.another-machine-{dead}-0.part"
    for folder in (own, left, other, foreign):
        folder.mkdir()
        (folder / "inside").write_text("x")
    (tmp_path / "store").mkdir()
    sweep(tmp_path, "store")
    assert {path.name for path in tmp_path.iterdir()} == {own.name, other.name, foreign.name, "store"}
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {own.name, foreign.name, "store"}


def test_a_folder_that_is_not_there_is_swept_in_silence(tmp_path: Path) -> None:
    sweep(tmp_path / "none")


def test_a_temporary_folder_is_gone_when_it_is_left_and_swept_where_it_could_not_be(tmp_path: Path, dead: int) -> None:
    with temporary_folder("mebp-calibrate", tmp_path) as folder:
        (folder / "store").mkdir()
        left = tmp_path / folder.name.replace(str(os.getpid()), str(dead))
        left.mkdir()
    assert list(tmp_path.iterdir()) == [left]
    with temporary_folder("mebp-calibrate", tmp_path):
        assert not left.exists()
    assert list(tmp_path.iterdir()) == []


def test_processes_are_told_from_numbers(dead: int) -> None:
    assert is_alive(os.getpid())
    assert is_alive(1)
    assert not is_alive(dead)


def test_what_may_not_be_removed_stops_no_sweep(tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that several users share."""
    one, other = (tmp_path / part_name(name).replace(str(os.getpid()), str(dead)) for name in ("a", "b"))
    for path in (one, other):
        path.write_text("x")
    unlink = Path.unlink

    def refuse(path: Path, *, missing_ok: bool = False) -> None:
        if path == one:
            raise PermissionError
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [one]
