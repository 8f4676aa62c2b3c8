"""A training run as it goes: live where stderr is a terminal, in plain lines where it is not."""

import sys
import time
from contextlib import suppress
from itertools import pairwise
from types import TracebackType
from typing import TYPE_CHECKING

from mebp.executor.train.settings import Evaluated, Report, Saved, Updated
from mebp.task.train.planning import num_evaluations
from mebp.unit import show_nbytes, show_ns, show_seconds

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from mebp.task.train.folder import Run

SMOOTHING = 0.9  # of the smoothed loss that stays with each update
LINES = 20  # of a run that is printed plainly, evaluations apart
LINE_S = 30.0  # or one after so many seconds
RECENT = 50  # updates that speed is measured over
SPARK = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"


class LiveView:
    """Shows a run as it goes: live where stderr is a terminal, in plain lines where it is not."""

    def __init__(self, run: "Run") -> None:
        from rich.console import Console  # noqa: PLC0415

        self._run = run
        self._console = Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._updates: list[Updated] = []
        self._losses: list[float] = []
        self._smoothed: float | None = None
        self._evaluated: Evaluated | None = None
        self._best: float | None = None
        self.saved: int | None = None
        self._problem: str | None = None
        self._last_line = 0.0

    def __enter__(self) -> "LiveView":
        if self._console.is_terminal:
            from rich.live import Live  # noqa: PLC0415

            self._live = Live(self._panel(), console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()

    def say(self, text: str) -> None:
        """Print one line above the live figures."""
        with suppress(OSError):  # a terminal that is gone does not end the run
            if self._live is not None:
                self._live.console.print(text, markup=False)
            else:
                print(f"mebp-plan: {text}", file=sys.stderr, flush=True)

    def report(self, report: Report) -> None:
        """Take in what the run reports."""
        match report:
            case Updated():
                self._update(report)
            case Evaluated():
                self._evaluated = report
                self._best = report.loss if report.best else self._best
                self._line(f"held-out loss {report.loss:.4f}{' (best)' if report.best else ''} after update {report.number}")
            case Saved():
                self._save(report)
        if self._live is not None:
            with suppress(OSError):
                self._live.update(self._panel())

    def _save(self, report: Saved) -> None:
        """A save, or, once for all that follow each other, why there is none."""
        if report.problem is None:
            self.saved = report.number
        elif self._problem is None:
            last = f"that after update {self.saved} is kept" if self.saved is not None else "there is none before it"
            self.say(f"the state after update {report.number} is not saved: {report.problem}; {last}")
        self._problem = report.problem

    def _update(self, report: Updated) -> None:
        if report.skipped:
            self.say(f"update {report.number} is skipped: {report.skipped}")
        else:
            before = report.loss if self._smoothed is None else self._smoothed
            self._smoothed = SMOOTHING * before + (1 - SMOOTHING) * report.loss
            self._losses.append(report.loss)
        self._updates = [*self._updates[1 - RECENT :], report]
        every, now = max(1, self._run.settings.updates // LINES), time.monotonic()
        due = report.number == 1 or report.number % every == 0 or report.number == self._run.settings.updates
        if due or now - self._last_line > LINE_S:
            self._last_line = now
            self._line(f"update {report.number}/{self._run.settings.updates}  {', '.join(self._figures(report))}")

    def _line(self, text: str) -> None:
        if self._live is None:
            with suppress(OSError):
                print(text, file=sys.stderr, flush=True)

    def _figures(self, report: Updated) -> list[str]:
        found = [f"loss {report.loss:.4f}", f"smoothed {self._smoothed or report.loss:.4f}", f"rate {report.rate:.3g}"]
        found += [f"gradient {report.gradient_norm:.3g}"] if report.gradient_norm is not None else []
        left = [f"{show_seconds(self._left_s())} left"] if self._left_s() else []
        return [*found, f"{self._tokens_per_s():.0f} tokens/s", self._memory(report), *left]

    def _memory(self, report: Updated) -> str:
        return f"{show_nbytes(report.memory_bytes)} of {show_nbytes(self._run.budget_bytes)}"

    def _tokens_per_s(self) -> float:
        seconds = sum(update.seconds for update in self._updates)
        return sum(update.tokens for update in self._updates) / seconds if seconds else 0.0

    def _left_s(self) -> float:
        """Updates still to come at the speed of the last ones, and evaluations at that of the last one."""
        if not self._updates:
            return self._run.predicted.total_ns / 1e9
        settings, done = self._run.settings, self._updates[-1].number
        each = sum(update.seconds for update in self._updates) / len(self._updates)
        evaluations = num_evaluations(settings, done)
        each_evaluation = self._evaluated.seconds if self._evaluated else self._run.predicted.evaluation_ns / 1e9
        return (settings.updates - done) * each + evaluations * each_evaluation

    def _panel(self) -> "Table":
        from rich.progress_bar import ProgressBar  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415

        settings, last = self._run.settings, self._updates[-1] if self._updates else None
        done = last.number if last else 0
        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True, justify="right")
        head.add_row(
            f"update {done}/{settings.updates}", ProgressBar(settings.updates, done), f"{show_seconds(self._left_s())} left"
        )
        rows = Table.grid(padding=(0, 1))
        rows.add_column(style="dim", no_wrap=True)
        rows.add_column(no_wrap=True, overflow="crop")
        for name, value in self._rows(last):
            rows.add_row(name, value)
        whole = Table.grid(expand=True)
        whole.add_row(head)
        whole.add_row(rows)
        return whole

    def _rows(self, last: Updated | None) -> list[tuple[str, str]]:
        if last is None:
            return [("", "reading plans, opening the store"), *self._held_out()]
        sizes = (last.memory_bytes, last.peak_bytes, self._run.predicted.peak_bytes, self._run.budget_bytes)
        now, peak, predicted, budget = map(show_nbytes, sizes)
        norm = "" if last.gradient_norm is None else f", gradient {last.gradient_norm:.3g}"
        return [
            ("loss", f"{last.loss:.4f}, smoothed {self._smoothed or last.loss:.4f}  {sparkline(self._losses, 30)}"),
            *self._held_out(),
            ("rate", f"{last.rate:.3g}{norm}"),
            ("speed", f"{self._tokens_per_s():.0f} tokens/s, {show_ns(last.seconds * 1e9)} per update"),
            ("memory", f"{now} now, peak {peak}, predicted {predicted}, budget {budget}"),
            ("saved", "not yet" if self.saved is None else f"after update {self.saved}"),
        ]

    def _held_out(self) -> list[tuple[str, str]]:
        if self._evaluated is None:
            return []
        best = f", best {self._best:.4f}" if self._best is not None else ""
        return [("held out", f"{self._evaluated.loss:.4f} after update {self._evaluated.number}{best}")]


def sparkline(values: list[float], width: int) -> str:
    """The values' course in `width` bars, each an average."""
    if len(values) < 2:
        return ""
    count = min(width, len(values))
    edges = [round(at * len(values) / count) for at in range(count + 1)]
    means = [sum(values[low:high]) / (high - low) for low, high in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(SPARK) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARK[round((mean - low) * scale)] for mean in means)
