"""The compiled kernel against the torch path, bit for bit, and what happens without a compiler."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mebp import native
from mebp.kernel.library import SWITCH, library
from mebp.kernel.unpack import unpack_rows
from mebp.models.format import FORMATS
from mebp.store.codec import quantise, unpack, unpack_in_torch

COMPRESSED = [name for name, fmt in FORMATS.items() if fmt.compressed]
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
@pytest.mark.parametrize("shape", [(1, 128), (7, 384), (33, 640), (400, 2560)])
def test_the_kernel_equals_the_torch_path_bit_for_bit(name: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    fmt = FORMATS[name]
    codes, steps = quantise(torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 0.02, fmt)
    expected, found = torch.empty(shape, dtype=dtype), torch.full(shape, 7.0, dtype=dtype)
    unpack_in_torch(codes, steps, fmt, expected, torch.empty(codes.numel(), dtype=torch.int8))
    assert unpack_rows(codes, steps, fmt.bits, found)
    assert torch.equal(found, expected)


@pytest.mark.skipif(not COMPILER, reason="no compiler")
@pytest.mark.parametrize("name", COMPRESSED)
def test_the_smallest_weights_are_unpacked_bit_for_bit(name: str) -> None:
    """Steps that are no normal numbers are rounded as torch does."""
    fmt = FORMATS[name]
    codes, steps = quantise(torch.randn(4, 384, generator=torch.Generator().manual_seed(3)), fmt)
    steps[1], steps[2] = 1e-39, 0.0
    expected, found = torch.empty(4, 384, dtype=torch.bfloat16), torch.empty(4, 384, dtype=torch.bfloat16)
    unpack_in_torch(codes, steps, fmt, expected, torch.empty(codes.numel(), dtype=torch.int8))
    assert unpack_rows(codes, steps, fmt.bits, found)
    assert torch.equal(found, expected)


def test_what_is_not_contiguous_is_left_to_torch() -> None:
    fmt = FORMATS["int8"]
    codes, steps = quantise(torch.randn(8, 64), fmt)
    wide = torch.zeros(8, 128)
    assert not unpack_rows(codes, steps, fmt.bits, wide[:, :64])
    unpack(codes, steps, fmt, (out := torch.empty(8, 64)), None)
    unpack(codes, steps, fmt, wide[:, :64], None)
    assert torch.equal(wide[:, :64], out)


@pytest.mark.usefixtures("fresh")
def test_without_a_compiler_torch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "COMPILERS", ("no-such-compiler",))
    assert library().kernels is None
    assert "no C compiler" in library().path
    fmt = FORMATS["int4-g64"]
    codes, steps = quantise(torch.randn(4, 128), fmt)
    assert not unpack_rows(codes, steps, fmt.bits, torch.empty(4, 128))


@pytest.mark.usefixtures("fresh")
def test_the_switch_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    assert library().kernels is None
    assert library().path == "in torch (MEBP_KERNEL=0)"


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
