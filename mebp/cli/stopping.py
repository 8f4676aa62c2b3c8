"""Signals while a training run goes on: they ask it to stop after its update, and nothing is lost."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mebp.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENT = 2  # signals that wait for the update; the next one does not
SIGNALLED = 128  # added to a signal's number in an exit code


class Stopping:
    """What was asked for so far. `ready` is given what stops the run, once that can be."""

    def __init__(self) -> None:
        self._heard: list[int] = []
        self._stop: Callable[[], None] | None = None

    def as_error(self, text: str) -> Interrupted:
        """What ends the command with `text`: 130 for Ctrl-C, 143 for SIGTERM, 129 for a hang-up."""
        error = Interrupted(text)
        error.exit_code = SIGNALLED + (self._heard[0] if self._heard else signal.SIGINT)
        return error

    def ready(self, stop: Callable[[], None]) -> None:
        """From now on a signal calls `stop`; one that came before does so at once."""
        self._stop = stop
        if self._heard:
            stop()

    @contextmanager
    def listens(self, say: Callable[[str], None]) -> Iterator[None]:
        """While this is entered signals ask for a stop, which is said; KeyboardInterrupt at the one that is too many."""

        def heard(number: int, _: object) -> None:
            self._heard.append(number)
            if len(self._heard) > PATIENT:
                raise KeyboardInterrupt
            if self._stop is not None:
                self._stop()
            if len(self._heard) == 1:
                say("stopping after this update, then saving; a third Ctrl-C quits without saving")

        before = {number: signal.signal(number, heard) for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
