"""`mebp-plan synthesize`: a store of random weights."""

from pathlib import Path
from typing import Annotated

import typer

from mebp.cli.flag import MODEL, Flag, ModelFlags, require_search
from mebp.cli.screen import working
from mebp.models.format import DEFAULT_RECIPE


def synthesize(
    model: ModelFlags,
    output: Annotated[Path, Flag("--output", "-o", help="Folder to write.")],
    weights: Annotated[
        str, Flag("--weights", help="Formats of the frozen weights, as `plan` takes them.", rich_help_panel=MODEL)
    ] = DEFAULT_RECIPE,
    seed: Annotated[int, Flag("--seed", help="Seed of the random weights.")] = 0,
) -> None:
    """Write a store of random weights of the right shapes and statistics, to run plans on."""
    from mebp.models.format import weight_formats  # noqa: PLC0415
    from mebp.store.writer import require_new  # noqa: PLC0415  (torch)
    from mebp.task.weights import write_random  # noqa: PLC0415
    from mebp.unit import show_nbytes  # noqa: PLC0415

    require_search(1.0, seed)
    config, formats = model.config(), weight_formats(weights)
    require_new(output)
    with working(f"synthesizing {config.name}") as status:
        size = write_random(
            output, config, formats, seed, lambda done, total: status.update(f"synthesizing {config.name}: {done / total:.0%}")
        )
    typer.echo(f"wrote {output}: {config.name} in {formats.name}, {show_nbytes(size)}")
