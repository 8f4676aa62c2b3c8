"""The two consoles and what is written to them: data on stdout, progress on stderr, files whole or not at all."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mebp.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from mebp.cli.request import Request


NARROWEST = 40  # columns: a table cut there says more than one of a character a cell


def stdout() -> "Console":
    """Where results go."""
    from rich.console import Console  # noqa: PLC0415  (rich is slow to import; --help does without)

    console = Console(highlight=False, soft_wrap=False)
    console.width = max(NARROWEST, console.width)
    return console


def stderr() -> "Console":
    """Where progress and notes go."""
    from rich.console import Console  # noqa: PLC0415

    return Console(stderr=True, highlight=False)


@contextmanager
def working(what: str) -> Iterator["Status"]:
    """A spinner on stderr while something long runs; silent where stderr is not a terminal."""
    console = stderr()
    with console.status(what) as status:
        yield status


def note(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr)


def require_apart(request: "Request", outputs: dict[str, Path | None]) -> None:
    """Refuse an output that is another output, or a file that the command reads."""
    taken = {Path(spec).resolve(): spec for spec in request.sources}
    for flag, path in outputs.items():
        if path is None:
            continue
        if path.resolve() in taken:
            raise InputError(f"{flag} {path} is {taken[path.resolve()]} too: name another file")
        taken[path.resolve()] = flag


def require_other(output: Path, source: Path) -> None:
    """Refuse to write over the file that is read."""
    if output.resolve() == source.resolve():
        raise InputError(f"-o {output} is the file to read: name another file")


def write_file(path: Path, text: str) -> None:
    """Write `text` to `path` in one piece: a failure leaves what was there, and no temporary file. Links are followed.

    InputError for a target that is not a regular file (a device, a pipe, a folder) and where writing fails.
    """
    target = path.resolve()
    if not target.name or target.is_dir() or (target.exists() and not target.is_file()):
        raise InputError(f"cannot write {path}: it is no regular file: name one, such as plan.json")
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
