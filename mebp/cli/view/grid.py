"""The one look of every table."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDEST = 1000  # columns: no table is wider


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
    from rich.measure import Measurement  # noqa: PLC0415

    left_out: list[str] = []
    options = console.options.update(width=WIDEST)
    while Measurement.get(console, options, table).minimum > console.width:
        names = [str(column.header) for column in table.columns[1:]]
        order = [*(name for name in drop if name in names), *(name for name in reversed(names) if name not in keep)]
        if not order:
            break
        table.columns = [column for column in table.columns if str(column.header) != order[0]]
        left_out.append(order[0])
    console.print(table)
    if left_out:
        console.print(f"left out for want of width: {', '.join(left_out)}", style="dim", markup=False)
