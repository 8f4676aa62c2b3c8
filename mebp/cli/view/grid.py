"""The one look of every table."""

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Column, Table

WIDEST = 1000  # columns: no table is wider
NARROW = 12  # columns that a text needs which goes on in the next line


def grid(*left: str, right: tuple[str, ...] = (), title: str | None = None) -> "Table":
    """A table with columns of words, then columns of figures, under an optional title."""
    from rich import box  # noqa: PLC0415  (rich is slow to import; --help does without)
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left", title_style="")
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def print_grid(console: "Console", table: "Table", *, keep: tuple[str, ...] = (), drop: tuple[str, ...] = ()) -> None:
    """Print a table; where the console is too narrow, without whole columns: those called `drop` first, in that order, then from
    the right, never the first nor those called `keep`.
    """
    left_out: list[str] = []
    while _width(console, table) > console.width:
        names = {number: str(column.header) for number, column in enumerate(table.columns) if number}
        order = [number for name in drop for number in names if names[number] == name]
        order += [number for number in reversed(names) if names[number] not in keep]
        if not order:
            break
        left_out.append(names[order[0]])
        table = _of_columns(table, [column for number, column in enumerate(table.columns) if number != order[0]])
    console.print(table)
    if left_out:
        console.print(f"left out for want of width: {', '.join(left_out)}", style="dim", markup=False)


def _of_columns(table: "Table", columns: Sequence["Column"]) -> "Table":
    """A table of the same look and rows with some of its columns."""
    found = copy(table)
    found.columns, found.rows = [], []
    for column in columns:
        found.add_column(column.header, justify=column.justify, no_wrap=column.no_wrap, overflow=column.overflow)
    for row, cells in zip(table.rows, zip(*(column.cells for column in columns), strict=True), strict=True):
        found.add_row(*cells, style=row.style, end_section=row.end_section)
    return found


def _width(console: "Console", table: "Table") -> int:
    """Columns of the screen that a table needs: figures whole, words that may go on in the next line no less than a few letters."""
    from rich.measure import Measurement  # noqa: PLC0415

    whole = [column for column in table.columns if column.no_wrap]
    options = console.options.update(width=WIDEST)
    needed = Measurement.get(console, options, _of_columns(table, whole)).maximum if whole else 0
    return needed + NARROW * (len(table.columns) - len(whole))
