"""Text files, written whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path

from mebp.errors import InputError
from mebp.leftover import part_name, sweep

SHOWN = 60  # characters of a name or value from outside


def shortened(text: str, most: int = SHOWN) -> str:
    """Text from outside as part of a line: escaped where it cannot be printed, its middle left out where it is long."""
    plain = text if text.isprintable() else ascii(text)
    return plain if len(plain) <= most else f"{plain[: most // 2]}...{plain[-most // 4 :]}"


def resolved(path: Path) -> Path:
    """Where a path leads, links followed; InputError for links that lead in a circle."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # what it is depends on the version of Python
        raise InputError(f"{path} is a circle of symbolic links: name another") from None


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without the mark that some programs write before it; OSError or UnicodeDecodeError."""
    return path.read_text(encoding="utf-8-sig")


def require_writable(outputs: Mapping[str, Path | None]) -> None:
    """Refuse, before anything is worked out, a file that could not be written in the end; `outputs` by what asks for each."""
    for what, path in outputs.items():
        if path is None:
            continue
        target = _target(path, what)
        if not target.parent.is_dir():
            raise InputError(f"{what} {path}: there is no folder {target.parent}: make it, or name another file")
        if not os.access(target.parent, os.W_OK) or (target.exists() and not os.access(target, os.W_OK)):
            raise InputError(f"{what} {path}: may not be written: name another file")


def _target(path: Path, what: str) -> Path:
    """The file that is written for `path`, links followed; InputError for what is no regular file or no name of one."""
    target = resolved(path)
    if str(path) in ("", ".", "-") or not target.name or target.is_dir() or (target.exists() and not target.is_file()):
        named = f"{what} {str(path)!r}".strip()
        raise InputError(f"cannot write {named}: it is not a regular file: name a file, such as plan.json")
    return target


def write_file(path: Path, text: str) -> None:
    """Write `text` to `path` in one piece: a failure leaves what was there, and no temporary file. Links are followed.

    InputError for a target that is not a regular file (a device, a pipe, a folder) and where writing fails.
    """
    target = _target(path, "")
    temporary = target.with_name(part_name(target.name))
    sweep(target.parent, target.name)
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
