"""Text files: written whole or not at all, read with or without a mark, and named so that a circle of links is one line."""

import os
from pathlib import Path

import pytest

from mebp.errors import InputError
from mebp.text import read_text, require_writable, resolved, shortened, write_file


@pytest.fixture
def circle(tmp_path: Path) -> Path:
    first, second = tmp_path / "first", tmp_path / "second"
    first.symlink_to(second)
    second.symlink_to(first)
    return first


def test_a_circle_of_links_is_one_line_wherever_a_path_is_followed(circle: Path) -> None:
    for use in (resolved, lambda path: write_file(path, "x"), lambda path: require_writable({"-o": path})):
        with pytest.raises(InputError, match="circle of symbolic links"):
            use(circle)


@pytest.mark.parametrize("name", ["", ".", "-", "/"])
def test_what_names_no_file_is_refused_before_and_after(name: str) -> None:
    with pytest.raises(InputError, match="not a regular file"):
        require_writable({"-o": Path(name)})
    with pytest.raises(InputError, match="not a regular file"):
        write_file(Path(name), "x")


def test_a_file_in_no_folder_is_refused_before(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        require_writable({"-o": tmp_path / "none" / "plan.json"})
    require_writable({"-o": tmp_path / "plan.json", "--trace": None})
    assert list(tmp_path.iterdir()) == []


def test_the_mark_that_some_programs_write_is_not_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf{}")
    assert read_text(tmp_path / "x.json") == "{}"


def test_long_and_unprintable_text_is_shown_short_and_escaped() -> None:
    assert shortened("a" * 60) == "a" * 60
    assert len(shortened("a" * 10**6)) < 60
    assert shortened("\x1b[31mred") == r"'\x1b[31mred'"


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "plan.json"
    write_file(file, "old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, os.strerror(28))))
    with pytest.raises(InputError, match="No space left"):
        write_file(file, "new")
    assert (file.read_text(), [path.name for path in tmp_path.iterdir()]) == ("old", ["plan.json"])
