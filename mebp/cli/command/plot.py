"""`mebp-plan plot`: a training run's loss, memory and time, drawn from its log."""

from pathlib import Path
from typing import Annotated

import typer

from mebp.cli.flag import Flag
from mebp.cli.screen import require_apart
from mebp.errors import InputError
from mebp.text import require_writable

KINDS = (".png", ".svg")
NO_MATPLOTLIB = "plot needs matplotlib, which is not installed: pip install 'mebp-plan[plot]'"


def plot(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="A run's log.jsonl, or its folder.")],
    output: Annotated[
        Path | None, Flag("--output", "-o", help="File to write, .png or .svg. Default: log.png next to the log.")
    ] = None,
) -> None:
    """Draw a training run's loss, memory and time as PNG or SVG."""
    from mebp.task.train.folder import LOG  # noqa: PLC0415
    from mebp.task.train.log import read_log  # noqa: PLC0415

    file = log / LOG if log.is_dir() else log
    target = output or file.with_suffix(KINDS[0])
    require_picture("-o", target)
    require_apart({"-o": target}, [file])
    require_writable({"-o": target})
    events = list(read_log(file))
    try:
        from mebp.cli.view.plot import drawn  # noqa: PLC0415

        picture = drawn(events, target.suffix.lower()[1:])
    except ImportError:
        raise InputError(NO_MATPLOTLIB) from None
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{file} has an update whose figures are missing or no numbers: name the log.jsonl of a run") from None
    if picture is None:
        raise InputError(f"{file} has no update yet: nothing to draw")
    write_picture(target, picture)
    typer.echo(f"wrote {target}")


def require_picture(flag: str, target: Path) -> None:
    """Refuse a file that is none of the KINDS."""
    if target.suffix.lower() not in KINDS:
        raise InputError(f"{flag} {target}: must end in {' or '.join(KINDS)}")


def write_picture(target: Path, picture: bytes) -> None:
    """Write a picture as a whole or not at all; InputError where that cannot be."""
    from mebp.leftover import part_name  # noqa: PLC0415

    part = target.with_name(part_name(target.name))
    try:
        part.write_bytes(picture)
        part.replace(target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)
