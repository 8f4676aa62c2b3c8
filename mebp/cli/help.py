"""A command's --help with its flags in groups, each under the title that the flag names."""

from typing import Any

import typer

OWN = "Options"


class Command(typer.core.TyperCommand):
    """A command whose flags are listed by group, the command's own last."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or OWN, []).append(record)
        for title in sorted(groups, key=lambda title: title == OWN):
            with formatter.section(title):
                formatter.write_dl(groups[title])
