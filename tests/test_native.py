"""Libraries are built once, and again where what is there is none; without a compiler the reason is given."""

import shutil
from pathlib import Path

import pytest

from mebp import native
from mebp.native import NoLibraryError, cache_folder, load_library

SOURCE = "int answer(void) { return 42; }\n"
COMPILER = next(filter(None, map(shutil.which, native.COMPILERS)), "")
pytestmark = pytest.mark.skipif(not COMPILER, reason="no C compiler")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def built() -> Path:
    (file,) = cache_folder().iterdir()
    return file


def test_a_library_is_built_once_and_nothing_else_is_left() -> None:
    assert load_library("answer", SOURCE).answer() == 42
    written = built().stat().st_mtime_ns
    assert load_library("answer", SOURCE).answer() == 42
    assert built().stat().st_mtime_ns == written


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_file_that_is_empty_or_cut_off_is_built_again(keep: int) -> None:
    load_library("answer", SOURCE + "/* of this test */")
    whole = built().read_bytes()
    built().unlink()
    file = cache_folder() / native._target("cut", SOURCE, (), COMPILER).name
    file.write_bytes(whole[:keep])
    assert load_library("cut", SOURCE).answer() == 42
    assert len(file.read_bytes()) > 100


def test_a_file_of_another_kind_is_built_again() -> None:
    file = native._target("odd", SOURCE, (), COMPILER)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"not a library" + native.WHOLE)
    assert load_library("odd", SOURCE).answer() == 42


def test_a_source_that_does_not_compile_says_so_and_leaves_nothing() -> None:
    with pytest.raises(NoLibraryError, match="does not compile"):
        load_library("broken", "not C")
    assert list(cache_folder().iterdir()) == []


def test_without_a_compiler_that_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "COMPILERS", ("no-such-compiler",))
    with pytest.raises(NoLibraryError, match="no C compiler"):
        load_library("answer", SOURCE)
