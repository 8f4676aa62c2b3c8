"""C sources of this project as libraries: built on first use, kept in the user's cache, loaded with ctypes.

A library's file is named by the hash of its source, its flags, the compiler and the processor, so a cache folder may be shared.
A file that cannot be loaded (empty, cut off, of another machine) is built again. Whoever asks does without where there is no
compiler.
"""

import ctypes
import hashlib
import platform
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import platformdirs

from mebp.leftover import temporary_folder

FLAGS = ("-O3", "-march=native", "-std=c11", "-fPIC", "-fno-math-errno", "-w")
COMPILERS = ("cc", "gcc", "clang")
BUILD_S = 60
WHOLE = b"whole, says mebp"  # the end of a library's file: one that was cut off could take the process down when it is loaded


class NoLibraryError(Exception):
    """No library could be built or loaded; the message says why, in a few words. No MebpError: every caller has another way."""


def load_library(name: str, source: str, flags: Sequence[str] = ()) -> ctypes.CDLL:
    """The library built from `source` with `flags` in addition to FLAGS; NoLibraryError where none can be built or loaded."""
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        raise NoLibraryError("no C compiler")
    try:
        target = _target(name, source, flags, compiler)
        if _is_whole(target):
            with suppress(OSError):
                return ctypes.CDLL(str(target))
        _build(source, flags, compiler, target)
        return ctypes.CDLL(str(target))
    except subprocess.CalledProcessError:
        raise NoLibraryError(f"{Path(compiler).name} does not compile it") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise NoLibraryError(f"it cannot be built or loaded: {getattr(error, 'strerror', None) or error}") from None


def _target(name: str, source: str, flags: Sequence[str], compiler: str) -> Path:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=BUILD_S, check=True).stdout
    facts = "\n".join([source, *FLAGS, *flags, version, platform.machine(), _cpu()])
    return cache_folder() / f"{name}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.so"


def _build(source: str, flags: Sequence[str], compiler: str, target: Path) -> None:
    """Compile next to `target` and rename when complete, so that two processes may race."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder("build", target.parent) as folder:
        code, made, whole = (folder / f"library.{ending}" for ending in ("c", "o", "so"))
        code.write_text(source, encoding="utf-8")
        # linked without OpenMP's own library: where flags ask for it, its symbols are torch's, loaded already
        for command in (
            [compiler, *FLAGS, *flags, "-c", str(code), "-o", str(made)],
            [compiler, "-shared", str(made), "-o", str(whole), "-lm"],
        ):
            subprocess.run(command, capture_output=True, timeout=BUILD_S, check=True)
        with whole.open("ab") as file:
            file.write(WHOLE)
        whole.replace(target)


def _is_whole(target: Path) -> bool:
    """Whether a library was built and nothing of its file is missing."""
    return target.is_file() and target.read_bytes().endswith(WHOLE)


def _cpu() -> str:
    """What -march=native depends on: the processor's model and its features."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(line for line in lines[:40] if line.startswith(("model name", "flags", "Features")))


def cache_folder() -> Path:
    """Where libraries are kept."""
    return platformdirs.user_cache_path("mebp-plan") / "kernels"
