"""A run's log: a JSON object per line for its begin, each update, evaluation and save, and its end; TensorBoard's event file."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from mebp.errors import InputError
from mebp.executor.train.settings import Evaluated, Report, Saved, Trained, Updated
from mebp.task.train.folder import Run
from mebp.text import write_file

EVENTS = {Updated: "update", Evaluated: "evaluation", Saved: "save"}
BOARD = "tensorboard"  # folder of the event file, and the package that writes it


class Log:
    """Appends to a file as a run reports. What an earlier process logged after the save that this one begins at is cut off when its
    first report comes. A disk that is full does not end the run: `warn` is told once.
    """

    def __init__(self, file: Path, run: Run, warn: Callable[[str], None]) -> None:
        self._file = file
        self._run = run
        self._warn = warn
        self._warned = self._begun = False
        self._board: _Board | None = None

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._try_board(lambda board: board.close())

    def report(self, report: Report) -> None:
        """What the run reports."""
        if not self._begun:
            self._begin(report)
        self._add(EVENTS[type(report)], asdict(report))
        self._try_board(lambda board: board.add(report))

    def end(self, trained: Trained) -> None:
        """How it ended."""
        self._add("end", {"unix_s": time.time(), **asdict(trained)})

    def _begin(self, first: Report) -> None:
        self._begun = True
        done = first.number - (0 if isinstance(first, Saved) else 1)
        try:
            cut_back(self._file, done)
        except InputError as error:
            self._complain(str(error))
        self._board = _Board.next_to(self._file)
        run = self._run
        facts = {"predicted_peak_bytes": run.predicted.peak_bytes, "budget_bytes": run.budget_bytes}
        times = {"predicted_update_ns": run.predicted.update_ns, "updates": run.settings.updates}
        self._add("begin", {"unix_s": time.time(), "after": max(0, done), **facts, **times, "hashes": dict(run.hashes)})

    def _add(self, event: str, fields: Mapping[str, Any]) -> None:
        """One line, whole or not at all."""
        line = json.dumps({"event": event} | {name: _plain(value) for name, value in fields.items()}) + "\n"
        try:
            with self._file.open("ab", buffering=0) as opened:
                length = opened.seek(0, os.SEEK_END)
                try:
                    if opened.write(line.encode()) != len(line.encode()):
                        raise OSError(28, "No space left on device")
                except OSError:
                    opened.truncate(length)
                    raise
        except OSError as error:
            self._complain(f"the log {self._file} cannot be written: {error.strerror}")

    def _complain(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            self._warn(text)

    def _try_board(self, work: "Callable[[_Board], None]") -> None:
        if self._board is not None:
            try:
                work(self._board)
            except OSError as error:
                self._board = None
                self._complain(f"TensorBoard's event file next to {self._file} cannot be written: {error.strerror}")


def _plain(value: object) -> object:
    """JSON has no number for what is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_log(file: Path) -> Iterator[dict[str, Any]]:
    """The events of a log, in order; of an update that was made twice, since a run was killed, the last. A line that is no event is
    passed over: a run may have been killed while it was written. InputError for a file without any.
    """
    try:
        if file.exists() and not file.is_file():
            raise OSError(0, "not a regular file")
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"log {file} cannot be read ({error.strerror}): name the log.jsonl of a run") from None
    found: dict[tuple[str, object], dict[str, Any]] = {}
    for at, line in enumerate(lines):
        event = _event(line)
        if event is not None:
            key = (event["event"], event.get("number", at))
            found.pop(key, None)
            found[key] = event
    if lines and not found:
        raise InputError(f"{file} holds no event of a run: name the log.jsonl of a run")
    yield from found.values()


def peak_so_far(file: Path) -> int:
    """The most memory of any update in a log; 0 where there is none."""
    try:
        peaks = [event.get("peak_bytes") for event in read_log(file)]
    except InputError:
        return 0
    return max((peak for peak in peaks if isinstance(peak, int)), default=0)


def _event(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    named = isinstance(found, dict) and isinstance(found.get("event"), str)
    return found if named and isinstance(found.get("number", 0), int) else None


def cut_back(file: Path, number: int) -> None:
    """Take from a log what came after update `number`, since the run is resumed from there."""
    if file.is_file():
        kept = [event for event in read_log(file) if event.get("number", 0) <= number and event["event"] != "end"]
        write_file(file, "".join(json.dumps(event) + "\n" for event in kept))


class _Board:
    """TensorBoard's event file, where the package `tensorboard` is installed."""

    def __init__(self, writer: Any, summary: Any, event: Any) -> None:
        self._writer, self._summary, self._event = writer, summary, event

    @classmethod
    def next_to(cls, file: Path) -> "_Board | None":
        """One next to a log; None without the package, or where it cannot be written."""
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
