"""The two consoles and what is written to them: data on stdout, progress on stderr. And work that Ctrl-C can end."""

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mebp.errors import InputError
from mebp.text import resolved

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from mebp.planner.effort import Stop

Result = TypeVar("Result")
NARROWEST = 40  # columns: narrower tables cannot be read


def stdout() -> "Console":
    """Where results go."""
    from rich.console import Console  # noqa: PLC0415  (rich is slow to import; --help does without)

    console = Console(highlight=False, soft_wrap=False)
    console.width = max(NARROWEST, console.width)
    return console


def stderr() -> "Console":
    """Where progress goes, and tables that stdout has no room for."""
    from rich.console import Console  # noqa: PLC0415

    return Console(stderr=True, highlight=False)


@contextmanager
def keeps_going() -> Iterator[None]:
    """What is printed here may find its reader gone: the command goes on without one."""
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # rich makes the one of the other
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def working(what: str) -> Iterator["Status"]:
    """A spinner on stderr while something long runs; silent where stderr is not a terminal."""
    with stderr().status(what) as status:
        yield status


def note(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr)


def interruptible(work: Callable[[], Result], stop: "Stop") -> Result:
    """Do `work` in a thread of its own; Ctrl-C asks it to stop and takes what it has, a second one does not wait for it."""
    future: Future[Result] = Future()

    def run() -> None:
        future.set_running_or_notify_cancel()
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    try:
        threading.Thread(target=run, name="mebp-work", daemon=True).start()
        return future.result()
    except KeyboardInterrupt:
        if not future.running() and not future.done():
            raise  # it came before the work began
        stop.ask()
        return future.result()


def require_apart(outputs: Mapping[str, Path | None], sources: Iterable[Path] = ()) -> None:
    """Refuse an output that is another output, or a file that the command reads."""
    taken = {resolved(path): str(path) for path in sources}
    for flag, path in outputs.items():
        if path is None:
            continue
        target = resolved(path)
        if target in taken:
            raise InputError(f"{flag} {path} is {taken[target]} too: name another file")
        taken[target] = flag
