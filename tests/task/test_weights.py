"""The random store of a model: found again, redone where it is incomplete, and written once by two who begin together."""

from pathlib import Path

import pytest

from mebp.models.config import Rope
from mebp.models.format import WEIGHTS_FILE, weight_formats
from mebp.store.reader import open_store
from mebp.task.weights import default_store, is_written, write_default
from tests.conftest import small_config

FMT = weight_formats("int4-g32")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_models_of_the_same_shapes_and_other_mathematics_have_stores_of_their_own() -> None:
    assert default_store(small_config(), FMT) == default_store(small_config(), FMT)
    assert default_store(small_config(), FMT) != default_store(small_config(rope=Rope(theta=5.0)), FMT)


def test_what_was_left_there_incomplete_is_redone() -> None:
    store = default_store(small_config(), FMT)
    store.mkdir(parents=True)
    (store / "config.json").write_text("{}")
    assert not is_written(store)
    assert write_default(small_config(), FMT) == store
    open_store(store)


def test_of_two_that_write_it_at_once_both_have_it() -> None:
    """The other one is through when this one has begun."""
    done: list[Path] = []

    def meanwhile(*_: int) -> None:
        if not done:
            done.append(Path())
            done.append(write_default(small_config(), FMT))

    assert write_default(small_config(), FMT, meanwhile) == done[1]
    assert [path.name for path in default_store(small_config(), FMT).parent.iterdir()] == [done[1].name]
    assert (done[1] / WEIGHTS_FILE).is_file()
