"""Text files, written whole or not at all."""

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


def write_file(path: Path, text: str) -> None:
    """Write `text` to `path` in one piece: a failure leaves what was there, and no temporary file. Links are followed.

    InputError for a target that is not a regular file (a device, a pipe, a folder) and where writing fails.
    """
    target = resolved(path)
    if not target.name or target.is_dir() or (target.exists() and not target.is_file()):
        raise InputError(f"cannot write {path}: it is not a regular file: name a file, such as plan.json")
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
