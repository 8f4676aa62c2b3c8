"""The one compiled kernel: decompress rows of a weight in one pass, from codes to bf16 or fp32.

Built from unpack.c on first use where a compiler exists, kept in the cache folder of the user by the hash of its source and of the
compiler of the machine, and loaded with ctypes. It runs on the OpenMP threads of torch itself: a second pool of threads makes both
many times slower, so where that library is not found it runs on the calling thread alone. Without a compiler, or with
MEBP_KERNEL=0, codec.py does the same in torch, bit for bit.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path

import platformdirs
import torch
from torch import Tensor

from mebp.models.format import WeightFormat

SOURCE = resources.files("mebp.store").joinpath("unpack.c").read_text(encoding="utf-8")
FLAGS = ("-O3", "-march=native", "-std=c11", "-fPIC", "-fopenmp", "-fno-math-errno", "-w")
COMPILERS = ("cc", "gcc", "clang")
SWITCH = "MEBP_KERNEL"
BUILD_S = 60
FUNCTIONS = {torch.bfloat16: "unpack_bf16", torch.float32: "unpack_fp32"}


def unpack_rows(codes: Tensor, steps: Tensor, fmt: WeightFormat, out: Tensor) -> bool:
    """Decompress codes (rows, bytes) int8 and steps (rows, groups) bf16 into `out` (rows, cols); False where the kernel cannot."""
    library = kernel() if out.device.type == "cpu" and out.dtype in FUNCTIONS else None
    if library is None or not (codes.is_contiguous() and steps.is_contiguous() and out.is_contiguous()):
        return False
    rows, cols = out.shape
    group = cols // steps.shape[1]
    function = getattr(library, FUNCTIONS[out.dtype])
    function(codes.data_ptr(), steps.data_ptr(), out.data_ptr(), rows, cols, group, fmt.bits)
    return True


@cache
def kernel() -> ctypes.CDLL | None:
    """The compiled library, built if need be; None where there is no compiler, building fails, or MEBP_KERNEL is 0."""
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if compiler is None or os.environ.get(SWITCH) == "0":
        return None
    threads = _torch_openmp()
    try:
        library = ctypes.CDLL(str(_built(compiler, threaded=threads)))
        for name in FUNCTIONS.values():
            function = getattr(library, name)
            function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 4
            function.restype = None
    except (OSError, subprocess.SubprocessError):
        return None
    return library


def _torch_openmp() -> bool:
    """Make the symbols of torch's own OpenMP library visible to what is loaded next; whether there is one."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        try:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False


def _built(compiler: str, *, threaded: bool) -> Path:
    """The library's file in the cache folder; compiled next to it and renamed when complete, so that two processes may race."""
    flags = [flag for flag in FLAGS if threaded or flag != "-fopenmp"]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=BUILD_S, check=True).stdout
    facts = "\n".join([SOURCE, *flags, version, platform.machine(), _cpu()])
    target = _cache_folder() / f"unpack-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.so"
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        source, made, whole = (Path(folder) / name for name in ("unpack.c", "unpack.o", "unpack.so"))
        source.write_text(SOURCE, encoding="utf-8")
        # linked without OpenMP's own library: its symbols are torch's, loaded already
        for command in ([compiler, *flags, "-c", str(source), "-o", str(made)], [compiler, "-shared", str(made), "-o", str(whole)]):
            subprocess.run(command, capture_output=True, timeout=BUILD_S, check=True)
        whole.replace(target)
    return target


def _cpu() -> str:
    """What -march=native depends on: the processor's model, so that a cache folder may be shared."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(line for line in lines[:40] if line.startswith(("model name", "flags", "Features")))


def _cache_folder() -> Path:
    return platformdirs.user_cache_path("mebp-plan") / "kernels"
