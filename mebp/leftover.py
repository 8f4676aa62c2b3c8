"""Files and folders that are still being written: named after their process, so that a later process can tell what was
abandoned.

A process that is killed leaves them behind; whoever writes next in the same place sweeps them.
"""

import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

_NAME = re.compile(r"\.(?P<name>.+)\.(?P<host>[^.]*)-(?P<process>[0-9]+)-[0-9]+\.part")
_numbers = count()  # one process may write several of one name


def part_name(name: str) -> str:
    """What `name` is called while this process writes it: another name at each call."""
    return f".{name}.{_host()}-{os.getpid()}-{next(_numbers)}.part"


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what processes of this machine that have ended left of `name` in `folder` (None: of anything)."""
    try:
        paths = list(folder.iterdir())
    except OSError:
        return
    for path in paths:
        match = _NAME.fullmatch(path.name)
        if match is None or match["host"] != _host() or is_alive(int(match["process"])):
            continue
        if name in (None, match["name"]):
            with suppress(OSError):  # another user's
                _remove(path)


@contextmanager
def temporary_folder(name: str, parent: Path | None = None) -> Iterator[Path]:
    """A folder in `parent` (default: the system's for temporary files) that is gone when it is left; swept like any other."""
    where = parent or Path(tempfile.gettempdir())
    sweep(where, name)
    folder = where / part_name(name)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_alive(process: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _host() -> str:
    """This machine, for folders that several share: process numbers are its own."""
    return socket.gethostname().replace(".", "-")
