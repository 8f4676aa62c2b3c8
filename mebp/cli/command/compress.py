"""`mebp-plan compress`: a store of a checkpoint's weights."""

from pathlib import Path
from typing import Annotated

import typer

from mebp.cli.flag import Flag
from mebp.cli.screen import note, working
from mebp.models.format import FORMATS, WEIGHTS_FILE, weight_format

LARGEST_ERROR = 0.2  # of a weight, relative root mean square on average: 4 bits make a tenth


def compress(
    source: Annotated[Path, typer.Argument(metavar="HF_DIR", help="Folder with config.json and safetensors files.")],
    output: Annotated[Path, Flag("--output", "-o", help="Folder to write.")],
    weights: Annotated[str, Flag("--weights", help=f"{' '.join(FORMATS)}.")] = "int4-g64",
) -> None:
    """Compress a Hugging Face checkpoint into a store to run plans on."""
    from mebp.store.checkpoint import compress as write  # noqa: PLC0415  (torch)
    from mebp.store.checkpoint import require_apart  # noqa: PLC0415
    from mebp.store.writer import require_new  # noqa: PLC0415
    from mebp.unit import show_nbytes  # noqa: PLC0415

    fmt = weight_format(weights)
    require_apart(source, output)
    require_new(output)
    with working(f"compressing {source.name}") as status:
        found = write(source, output, fmt, lambda done, total: status.update(f"compressing {source.name}: {done / total:.0%}"))
    size = (output / WEIGHTS_FILE).stat().st_size
    typer.echo(f"wrote {output}: {found.config.name} in {fmt.name}, {show_nbytes(size)}")
    name, error = found.worst
    if found.rounded:
        worst = max(found.rounded.values())
        note(f"rounded to bf16: {len(found.rounded)} norms and biases, by {worst:.2%} at worst")
    if name:
        mean = sum(found.errors.values()) / len(found.errors)
        typer.echo(f"error of a weight, relative root mean square: {mean:.2%} on average, worst {error:.2%} ({name})")
        if mean > LARGEST_ERROR:
            note(f"warning: {fmt.name} loses {mean:.0%} of these weights, which were not trained for it: take another format")
