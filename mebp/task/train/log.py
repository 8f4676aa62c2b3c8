"""A run's log: a JSON object a line for its begin, each update, evaluation and save, and its end; and TensorBoard's event file."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mebp.errors import InputError
from mebp.executor.train.settings import Evaluated, Report, Saved, Updated
from mebp.text import read_text, write_file

EVENTS = {Updated: "update", Evaluated: "evaluation", Saved: "save"}
BOARD = "tensorboard"  # folder of the event file, and the package that writes it


class Log:
    """Appends to a file as the run goes on. A disk that is full does not end the run: `complain` is told once."""

    def __init__(self, file: Path, complain: Callable[[str], None]) -> None:
        self._file = file
        self._complain = complain
        self._complained = False
        self._board = _Board.beside(file)

    def add(self, event: str, fields: Mapping[str, Any]) -> None:
        """One line."""
        line = json.dumps({"event": event} | {name: _plain(value) for name, value in fields.items()})
        try:
            with self._file.open("a", encoding="utf-8") as opened:
                opened.write(line + "\n")
        except OSError as error:
            if not self._complained:
                self._complain(f"the log {self._file} cannot be written: {error.strerror}")
                self._complained = True

    def report(self, report: Report) -> None:
        """What the run reports."""
        self.add(EVENTS[type(report)], asdict(report))
        if self._board is not None:
            try:
                self._board.add(report)
            except OSError as error:
                self._without_board(error)

    def close(self) -> None:
        """Have the event file whole."""
        if self._board is not None:
            try:
                self._board.close()
            except OSError as error:
                self._without_board(error)

    def _without_board(self, error: OSError) -> None:
        self._board = None
        self._complain(f"TensorBoard's event file beside {self._file} cannot be written: {error.strerror}")


def _plain(value: object) -> object:
    """JSON has no number for what is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_log(file: Path) -> Iterator[dict[str, Any]]:
    """The events of a log, in order; of an update that was made twice, since a run was killed, the last. InputError naming file and
    line for one that is none.
    """
    try:
        lines = read_text(file).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "not UTF-8"
        raise InputError(f"log {file} cannot be read ({said}): name the log.jsonl of a run") from None
    found: dict[tuple[str, object], dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            key = (event["event"], event.get("number", number))
        except (ValueError, KeyError, TypeError, RecursionError):
            if number == len(lines):  # a line that was being written when the run was killed
                continue
            raise InputError(f"{file}, line {number}: no event of a run: name the log.jsonl of a run") from None
        found.pop(key, None)
        found[key] = event
    yield from found.values()


def cut_back(file: Path, number: int) -> None:
    """Take from a log what came after update `number`, since the run goes on from there."""
    if file.is_file():
        kept = [event for event in read_log(file) if event.get("number", 0) <= number and event["event"] != "end"]
        write_file(file, "".join(json.dumps(event) + "\n" for event in kept))


class _Board:
    """TensorBoard's event file, where the package `tensorboard` is installed."""

    def __init__(self, writer: Any, summary: Any, event: Any) -> None:
        self._writer, self._summary, self._event = writer, summary, event

    @classmethod
    def beside(cls, file: Path) -> "_Board | None":
        """One beside a log; None without the package, or where it cannot be written."""
        try:
            from tensorboard.compat.proto.event_pb2 import Event  # noqa: PLC0415
            from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: PLC0415
            from tensorboard.summary.writer.event_file_writer import EventFileWriter  # noqa: PLC0415

            return cls(EventFileWriter(str(file.parent / BOARD)), Summary, Event)
        except (ImportError, OSError):
            return None

    def add(self, report: Report) -> None:
        """The figures of a report as scalars at its update."""
        match report:
            case Updated():
                figures = {
                    "train/loss": report.loss,
                    "train/learning_rate": report.rate,
                    "train/gradient_norm": report.gradient_norm,
                    "train/tokens_per_second": report.tokens / report.seconds,
                    "memory/now_bytes": report.memory_bytes,
                    "memory/peak_bytes": report.peak_bytes,
                }
            case Evaluated():
                figures = {"held_out/loss": report.loss}
            case Saved():
                return
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in figures.items() if value is not None]
        self._writer.add_event(self._event(step=report.number, summary=self._summary(value=values)))

    def close(self) -> None:
        self._writer.close()
