"""`mebp-plan merge`: an adapter merged into its model."""

from pathlib import Path
from typing import Annotated

import typer

from mebp.cli.flag import MODEL, Flag
from mebp.cli.screen import working
from mebp.errors import InputError


def merge(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Folder of a PEFT adapter, as training writes one.")],
    output: Annotated[Path, Flag("--output", "-o", help="Folder to write.")],
    model: Annotated[
        Path | None,
        Flag(
            "--model",
            "-m",
            help="The checkpoint or GGUF file that it was trained on. Default: what the adapter names.",
            rich_help_panel=MODEL,
        ),
    ] = None,
) -> None:
    """Write a model with an adapter merged in, as a Hugging Face checkpoint, some rows at a time."""
    from mebp.export.folder import require_new_path  # noqa: PLC0415  (torch)
    from mebp.export.merge import merge as write  # noqa: PLC0415
    from mebp.export.peft import base_of, read_peft  # noqa: PLC0415
    from mebp.store.compress import open_source  # noqa: PLC0415
    from mebp.task.weights import is_written  # noqa: PLC0415

    require_new_path(output)
    named = base_of(adapter)
    if model is None and not named:
        raise InputError("the adapter names no model to be merged into: name its checkpoint or GGUF file with --model")
    base = model or Path(named)
    if not base.exists():
        remedy = "name its folder or GGUF file" if model else "name it with --model"
        raise InputError(f"no model at {base}, whose weights the adapter is merged into: {remedy}")
    if is_written(base):
        raise InputError(f"{base} is a store, whose weights are rounded: name the checkpoint or GGUF file that it was made of")
    source = open_source(base)
    adapters = read_peft(adapter, source.config)
    with working(f"merging into {base.name}") as status:
        write(source, adapters, output, lambda done, total: status.update(f"merging into {base.name}: {done / total:.0%}"))
    typer.echo(f"wrote {output}: {source.config.name} with {len(adapters.pairs)} pairs of rank {adapters.rank} merged in")
