"""The compiled kernel against the torch path, bit for bit, and what happens without a compiler."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mebp import native
from mebp.errors import InputError
from mebp.kernel.library import SWITCH, library
from mebp.kernel.unpack import unpack_rows
from mebp.models.format import BLOCK_SCALES, FORMATS, SCALES
from mebp.store.codec import unpack, unpack_in_torch
from tests.weights import UNLIKE, random_weight

COMPRESSED = [name for name in UNLIKE if FORMATS[name].compressed]
COMPILER = any(shutil.which(name) for name in native.COMPILERS)


@pytest.fixture
def fresh() -> Iterator[None]:
    """The kernel is looked for anew in the test, and after it."""
    library.cache_clear()
    yield
    library.cache_clear()


@pytest.mark.skipif(not COMPILER, reason="no compiler")
@pytest.mark.parametrize("name", COMPRESSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 256), (7, 768), (33, 1280), (400, 2560)])
def test_the_kernel_equals_the_torch_path_bit_for_bit(name: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    frozen = random_weight(*shape, FORMATS[name])
    expected, found = torch.empty(shape, dtype=dtype), torch.full(shape, 7.0, dtype=dtype)
    unpack_in_torch(frozen, expected)
    assert unpack_rows(frozen, found)
    assert torch.equal(found, expected)


@pytest.mark.skipif(not COMPILER, reason="no compiler")
@pytest.mark.parametrize("name", COMPRESSED)
def test_the_smallest_weights_are_unpacked_bit_for_bit(name: str) -> None:
    """Scales that are no normal numbers are rounded as torch does."""
    frozen = random_weight(4, 512, FORMATS[name])
    scales = frozen.parts.get(BLOCK_SCALES, frozen.parts[SCALES])
    scales[1], scales[2] = 1e-39 if scales.dtype is torch.bfloat16 else 6e-8, 0.0
    expected, found = torch.empty(4, 512, dtype=torch.bfloat16), torch.empty(4, 512, dtype=torch.bfloat16)
    unpack_in_torch(frozen, expected)
    assert unpack_rows(frozen, found)
    assert torch.equal(found, expected)


def test_what_is_not_contiguous_is_left_to_torch() -> None:
    frozen, wide = random_weight(8, 64, FORMATS["int8"]), torch.zeros(8, 128)
    assert not unpack_rows(frozen, wide[:, :64])
    unpack(frozen, (out := torch.empty(8, 64)))
    unpack(frozen, wide[:, :64])
    assert torch.equal(wide[:, :64], out)


@pytest.mark.usefixtures("fresh")
def test_without_a_compiler_torch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "COMPILERS", ("no-such-compiler",))
    assert library().kernels is None
    assert "no C compiler" in library().path
    assert not unpack_rows(random_weight(4, 128, FORMATS["int4-g64"]), torch.empty(4, 128))


@pytest.mark.usefixtures("fresh")
def test_the_switch_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    assert library().kernels is None
    assert library().path == "in torch (MEBP_KERNEL=0)"


@pytest.mark.usefixtures("fresh")
def test_a_switch_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "nonsense")
    with pytest.raises(InputError, match="MEBP_KERNEL=nonsense: take 0, unpack or own"):
        library()


@pytest.mark.usefixtures("fresh")
@pytest.mark.skipif(not COMPILER, reason="no compiler")
def test_a_cached_library_that_is_none_does_not_turn_it_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert library().kernels is not None
    (file,) = native.cache_folder().iterdir()
    file.unlink()  # the library that is loaded stays as it is
    file.write_bytes(b"")
    library.cache_clear()
    assert library().kernels is not None
    assert library().path.startswith("compiled kernel")
