"""The library of compiled kernels, built from the C sources of this folder, and which of them this machine takes.

It runs on the OpenMP threads of torch itself: a second pool of threads makes both many times slower, so where that library is not
found it runs on the calling thread alone. Blocks of products are multiplied by oneDNN's block product, which torch exports, where
the processor has bf16 instructions; by our own where it has none, but AVX2, since torch's bf16 products crawl there; everywhere
else products are torch's, of tiles that the kernel unpacks. MEBP_KERNEL=0 does everything in torch, MEBP_KERNEL=unpack the
products, and MEBP_KERNEL=own takes our block product.
"""

import ctypes
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from mebp.errors import InputError
from mebp.kernel.weight import kernel_weight, plain
from mebp.native import NoLibraryError, load_library

PARTS = ("number", "unpack", "block", "product", "lora", "elementwise", "softmax", "attention")  # each uses those before it
SOURCE = "\n".join(resources.files("mebp.kernel").joinpath(f"{name}.c").read_text(encoding="utf-8") for name in PARTS)
SWITCH = "MEBP_KERNEL"
SWITCHES = (None, "", "0", "unpack", "own")
UNPACKING = {torch.bfloat16: "unpack_bf16", torch.float32: "unpack_fp32"}
BRGEMM = "_ZN2at6native7cpublas6brgemmEllllllbPKN3c108BFloat16ES5_Pfb"
RELEASE = "_ZN2at6native7cpublas14brgemm_releaseEb"
BF16_FLAGS = {"avx512_bf16", "amx_bf16"}  # of /proc/cpuinfo: with one of them oneDNN multiplies bf16 at full speed
OWN_FLAGS = {"avx2", "fma"}  # what our own block product is fast with
POINTER, COUNT, FLAG, REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_bool, ctypes.c_float


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """The compiled kernels, None where all is done in torch; whether products are among them, and with block products of our own,
    since torch's bf16 products crawl; `path` says which way is taken, and why, in a few words.
    """

    kernels: ctypes.CDLL | None
    path: str
    multiplies: bool = False
    own: bool = False


@cache
def library() -> Library:
    """The kernels of this machine, built if need be."""
    switch = os.environ.get(SWITCH)
    if switch not in SWITCHES:
        raise InputError(f"{SWITCH}={switch}: take 0, unpack or own, or leave it out")
    if switch == "0":
        return Library(kernels=None, path=f"in torch ({SWITCH}=0)")
    threaded = _torch_openmp()
    try:
        kernels = load_library("kernels", SOURCE, ("-ffp-contract=off", "-fopenmp" if threaded else "-fopenmp-simd"))
        _declare_all(kernels)
    except (NoLibraryError, AttributeError) as why:
        return Library(kernels=None, path=f"in torch (no compiled kernel: {why})")
    path = "compiled kernel" if threaded else "compiled kernel, on one thread"
    return _with_products(kernels, path, switch)


def fit(tensors: Iterable[Tensor], dtype: torch.dtype) -> bool:
    """Whether tensors are as kernels take them: of this type, on the processor, contiguous."""
    return all(tensor.dtype is dtype and tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)


def extent(room: Tensor) -> tuple[int, int]:
    """Address and bytes of a buffer that the threads of a kernel share."""
    return room.data_ptr(), room.numel() * room.itemsize


def _declare_all(kernels: ctypes.CDLL) -> None:
    """Tell ctypes what every kernel takes and returns."""

    def declare(name: str, arguments: Sequence[type], result: type | None = None) -> None:
        function = getattr(kernels, name)
        function.argtypes, function.restype = arguments, result

    x, result = [FLAG, POINTER, COUNT, COUNT], [POINTER, COUNT, FLAG, FLAG, POINTER]
    for name in UNPACKING.values():
        declare(name, [POINTER] * 2)
    declare("use_product", [POINTER] * 2)
    declare("multiply", [POINTER, *x, *result, POINTER, POINTER, COUNT, POINTER, COUNT], FLAG)
    declare("lora_down", [POINTER] * 3 + [COUNT] * 3 + [POINTER, COUNT], FLAG)
    declare("lora_gradients", [POINTER] * 8 + [REAL, FLAG] + [COUNT] * 4 + [POINTER, COUNT], FLAG)
    matrices = [POINTER, COUNT] * 2 + [COUNT] * 3
    declare("multiply_dense", [*matrices, FLAG, POINTER, COUNT, FLAG])
    declare("attention", [POINTER] * 5 + [COUNT] * 7 + [REAL, REAL, POINTER, COUNT], FLAG)
    declare("attention_backward", [POINTER] * 8 + [FLAG] + [COUNT] * 7 + [REAL, REAL, POINTER, COUNT], FLAG)
    declare("softmax_tile", [POINTER] + [COUNT] * 3 + [POINTER] * 5 + [COUNT, POINTER, REAL, REAL])
    declare("norm", [POINTER] * 3 + [COUNT] * 2 + [REAL] * 2)
    declare("norm_backward", [POINTER] * 4 + [COUNT] * 2 + [REAL] * 2 + [FLAG])
    for activation in ("silu", "gelu_tanh"):
        declare(f"glu_{activation}", [POINTER] * 3 + [COUNT])
        declare(f"glu_backward_{activation}", [POINTER] * 3 + [COUNT])
    declare("rotate", [POINTER] * 4 + [COUNT] * 5 + [REAL])


def _torch_openmp() -> bool:
    """Make the symbols of torch's own OpenMP library visible to what is loaded next; whether there is one."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        try:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False


def _with_products(kernels: ctypes.CDLL, path: str, switch: str | None) -> Library:
    """The library with the block products that this machine takes."""
    flags = _processor_flags()
    if switch == "own":
        return Library(kernels=kernels, multiplies=True, own=True, path=f"{path}; our own block products ({SWITCH}=own)")
    if switch != "unpack" and not BF16_FLAGS & flags and flags >= OWN_FLAGS:
        why = "the processor has no bf16 instructions"
        return Library(kernels=kernels, multiplies=True, own=True, path=f"{path}; our own block products ({why})")
    missing = f"{SWITCH}=unpack" if switch == "unpack" else _take_onednn(kernels, flags)
    if missing:
        return Library(kernels=kernels, path=f"{path}; products in torch ({missing})")
    return Library(kernels=kernels, multiplies=True, path=f"{path}; block products of oneDNN")


def _take_onednn(kernels: ctypes.CDLL, flags: set[str]) -> str | None:
    """Multiply with the block products that torch exports; why that cannot be, in a few words, where it cannot."""
    if not BF16_FLAGS & flags:
        return "no x86 processor with AVX2"
    try:
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        kernels.use_product(*(ctypes.cast(getattr(torch_cpu, name), POINTER).value for name in (BRGEMM, RELEASE)))
    except (OSError, AttributeError):
        return "this torch has no block products"
    return None if _is_right(kernels) else "torch's block products come out wrong"


def _processor_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


def _is_right(kernels: ctypes.CDLL) -> bool:
    """Whether a product of small whole numbers comes out exactly: torch falls back to another layout where it has no kernel."""
    rows, cols, tokens = 64, 64, 16
    numbers = torch.randint(-7, 8, (rows, cols), generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    x = (torch.arange(tokens * cols) % 5 - 2).view(tokens, cols).to(torch.bfloat16)
    result, room = torch.zeros(tokens, rows), torch.empty(1 << 18 << torch.get_num_threads().bit_length(), dtype=torch.int8)
    weight = kernel_weight(plain(numbers))
    assert weight is not None
    target, given = (result.data_ptr(), rows, True, False, None), (x.data_ptr(), cols, tokens)
    done = kernels.multiply(ctypes.byref(weight), True, *given, *target, None, None, 0, room.data_ptr(), room.numel())
    return bool(done) and torch.equal(result, x.float() @ numbers.float().T)
