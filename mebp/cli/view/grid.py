"""The one look of every table."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


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
