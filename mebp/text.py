"""Text files, written whole or not at all."""

import os
from pathlib import Path

from mebp.errors import InputError


def write_file(path: Path, text: str) -> None:
    """Write `text` to `path` in one piece: a failure leaves what was there, and no temporary file. Links are followed.

    InputError for a target that is not a regular file (a device, a pipe, a folder) and where writing fails.
    """
    target = path.resolve()
    if not target.name or target.is_dir() or (target.exists() and not target.is_file()):
        raise InputError(f"cannot write {path}: it is not a regular file: name a file, such as plan.json")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        try:
            temporary.write_text(text, encoding="utf-8")
            if target.exists():
                temporary.chmod(target.stat().st_mode & 0o7777)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
