"""Stores: what is written is read back; a cut, foreign or missing store, and a full disk, are one clear line and leave nothing."""

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mebp.errors import StoreError
from mebp.executor.spill import Spill
from mebp.models.catalogue import load_model
from mebp.models.config import Rope
from mebp.models.format import FORMATS, WEIGHTS_FILE, weight_formats
from mebp.models.tensor import TensorId
from mebp.store.codec import unpack_whole
from mebp.store.reader import Store, open_store
from mebp.store.synthetic import synthesize
from tests.conftest import small_config

FMT = weight_formats("int4-g32")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(synthesize(tmp_path / "store", small_config(), FMT))


def test_a_store_is_a_safetensors_file_that_others_can_read(store: Store) -> None:
    tensors = load_file(store.folder / WEIGHTS_FILE)
    assert torch.equal(tensors["2.gate.codes"], store.matrix("2.gate").codes)
    assert tensors["0.norm1"].dtype == torch.bfloat16


def test_synthetic_weights_have_the_spread_they_claim(store: Store) -> None:
    frozen = store.matrix("1.up")
    weight = unpack_whole(frozen, torch.float32)
    assert float(weight.std()) == pytest.approx(0.02, rel=0.1)


def test_the_half_billion_store_has_the_size_that_is_quoted() -> None:
    config = load_model("0.5b")
    assert sum(FORMATS["int4-g64"].nbytes(*shape) for shape in config.matrices().values()) == pytest.approx(262e6, rel=0.01)


@pytest.mark.parametrize("keep", [0, 4, 40, 5000])
def test_a_store_that_is_cut_off_is_refused(keep: int, store: Store) -> None:
    file = store.folder / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(StoreError, match=r"cut off|not a safetensors") as caught:
        open_store(store.folder)
    assert "\n" not in str(caught.value)


def test_a_cut_tail_names_the_tensor_that_is_lost(store: Store) -> None:
    file = store.folder / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(StoreError, match="tensor final_norm"):
        open_store(store.folder)


def test_a_foreign_file_is_refused(store: Store) -> None:
    (store.folder / WEIGHTS_FILE).write_bytes(b'\x10\0\0\0\0\0\0\0{"a": 1}        ')
    with pytest.raises(StoreError, match="was written by something other than mebp-plan"):
        open_store(store.folder)


def test_a_missing_store_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="mebp-plan synthesize"):
        open_store(tmp_path / "none")


def test_a_store_of_another_model_or_format_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="not other"):
        store.header.require_model(small_config(name="other", ffn=128), FMT)
    with pytest.raises(StoreError, match="is in int4-g32"):
        store.header.require_model(small_config(), weight_formats("int8"))


def test_a_store_is_never_overwritten(store: Store) -> None:
    before = (store.folder / WEIGHTS_FILE).read_bytes()
    with pytest.raises(StoreError, match="holds a store already"):
        synthesize(store.folder, small_config(), FMT, seed=9)
    assert (store.folder / WEIGHTS_FILE).read_bytes() == before


def test_a_folder_with_a_config_of_its_own_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(StoreError, match=r"holds a config\.json already"):
        synthesize(tmp_path, small_config(), FMT)
    assert (tmp_path / "config.json").read_text() == "mine"


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_no_half_written_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", full_disk)
    with pytest.raises(StoreError, match="No space left"):
        synthesize(tmp_path / "store", small_config(), FMT)
    assert not (tmp_path / "store").exists()


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "store", small_config(), FMT, progress=interrupt)
    assert not (tmp_path / "store").exists()


def test_a_full_disk_is_an_error_before_anything_spills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", full_disk)
    with pytest.raises(StoreError, match="the disk is full"):
        Spill({TensorId("x"): 4096}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="`spill_dir`"):
        Spill({TensorId("x"): 4096}, tmp_path / "none")


def test_a_spilled_tensor_comes_back_and_the_folder_stays_empty(tmp_path: Path) -> None:
    spill = Spill({TensorId("x"): 5000, TensorId("y"): 100}, tmp_path)
    data = torch.randint(-128, 127, (5000,), dtype=torch.int8)
    spill.store(TensorId("x"), data)
    spill.store(TensorId("y"), torch.zeros(100, dtype=torch.int8))
    back = torch.empty_like(data)
    spill.load(TensorId("x"), back)
    assert torch.equal(back, data)
    assert not list(tmp_path.iterdir())


def test_a_tensor_of_an_odd_number_of_bytes_leaves_the_next_where_its_type_may_begin(tmp_path: Path) -> None:
    """An embedding of 101 rows in 2 bits with one step per row, of 100 columns: 2,525 bytes."""
    config = small_config(vocab=101, hidden=100, num_heads=2, num_kv_heads=1, head_dim=50, ffn=100, layers=1)
    store = open_store(synthesize(tmp_path / "store", config, weight_formats("ternary")))
    assert store.matrix("embedding").codes.numel() % 2
    assert all(bool(torch.isfinite(unpack_whole(store.matrix(name), torch.float32)).all()) for name in config.matrices())
    assert set(load_file(store.folder / WEIGHTS_FILE)) > set(config.vectors())


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"rope": Rope(theta=5.0)}, "rope.theta is 10000.0, not 5.0"),
        ({"norm_eps": 1.0}, "norm_eps is 1e-05, not 1.0"),
        ({"norm_eps": float("nan")}, "norm_eps"),
        ({"windows": (16, 0, 0, 0)}, "windows differ"),
        ({"activation": "gelu_tanh"}, "activation"),
    ],
)
def test_a_store_of_the_same_shapes_and_other_mathematics_is_refused(changes: dict[str, object], where: str, store: Store) -> None:
    with pytest.raises(StoreError, match=where):
        store.header.require_model(small_config(**changes), FMT)  # type: ignore[arg-type]
    store.header.require_model(small_config(name="other"), FMT)


def test_a_config_exchanged_for_another_is_refused(store: Store) -> None:
    config = store.folder / "config.json"
    config.write_text(config.read_text().replace('"norm_offset":0.0', '"norm_offset":1.0'))
    with pytest.raises(StoreError, match="not the one that the store was written with"):
        open_store(store.folder)


def test_nothing_is_found_in_the_place_of_a_store_until_it_is_whole(tmp_path: Path) -> None:
    seen: list[set[str]] = []
    synthesize(tmp_path / "store", small_config(), FMT, progress=lambda *_: seen.append({path.name for path in tmp_path.iterdir()}))
    assert not any("store" in names for names in seen)
    assert {path.name for path in tmp_path.iterdir()} == {"store"}


def test_the_slower_of_two_writers_is_told(tmp_path: Path) -> None:
    def other(*_: int) -> None:
        if not (tmp_path / "store").exists():
            synthesize(tmp_path / "store", small_config(), FMT)

    with pytest.raises(StoreError, match="a store already"):
        synthesize(tmp_path / "store", small_config(), FMT, progress=other)
    open_store(tmp_path / "store")


@pytest.mark.parametrize("name", ["", ".", "-"])
def test_a_store_needs_a_name(name: str) -> None:
    with pytest.raises(StoreError, match="no name for a store"):
        synthesize(Path(name), small_config(), FMT)


@pytest.mark.parametrize("header", [b'{"a": ' + b"9" * 5000 + b"}", b"[" * 100_000], ids=["a long number", "deep nesting"])
def test_a_header_that_no_reader_can_take_is_refused(header: bytes, store: Store) -> None:
    (store.folder / WEIGHTS_FILE).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(StoreError, match="is not a safetensors file"):
        open_store(store.folder)


def test_a_store_in_a_format_that_nobody_knows_is_refused(store: Store) -> None:
    file = store.folder / WEIGHTS_FILE
    file.write_bytes(file.read_bytes().replace(b'"formats": "int', b'"formats": "nin', 1))
    with pytest.raises(StoreError, match="write the store again"):
        open_store(store.folder)
