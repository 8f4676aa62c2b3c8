"""`mebp-plan export`: an adapter in the form that another tool loads."""

from pathlib import Path
from typing import Annotated

import typer

from mebp.cli.flag import MODEL, Flag
from mebp.errors import InputError

TARGETS = ("peft", "gguf", "mlx")
LOADED = {"peft": "PeftModel.from_pretrained(model, {})", "gguf": "llama-cli --lora {}", "mlx": "mlx_lm.generate --adapter-path {}"}


def export(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Folder of a PEFT adapter, as training writes one.")],
    to: Annotated[str, Flag("--to", help=f"What is written: {', '.join(TARGETS)}.")],
    output: Annotated[Path, Flag("--output", "-o", help="Folder to write; with gguf a file.")],
    model: Annotated[
        str | None,
        Flag(
            "--model",
            "-m",
            help="The model it was trained on: checkpoint, GGUF file, store or name. Default: what the adapter names.",
            rich_help_panel=MODEL,
        ),
    ] = None,
) -> None:
    """Write an adapter for PEFT, llama.cpp or mlx-lm."""
    from mebp.export.base import Base  # noqa: PLC0415
    from mebp.export.folder import require_new_path  # noqa: PLC0415  (torch)
    from mebp.export.gguf_adapter import write_gguf  # noqa: PLC0415
    from mebp.export.mlx_adapter import write_mlx  # noqa: PLC0415
    from mebp.export.peft import base_of, read_peft, write_peft  # noqa: PLC0415
    from mebp.task.model import find_base, find_model  # noqa: PLC0415

    if to not in TARGETS:
        raise InputError(f"`to` = {to!r}: take one of {', '.join(TARGETS)}")
    require_new_path(output, folder=to != "gguf")
    name = base_of(adapter) if model is None else model
    found = find_base(name) if model is None else find_model(name)
    adapters = read_peft(adapter, found.config)
    base = Base(config=found.config, name=name, wrapper=found.wrapper, architecture=found.architecture)
    {"peft": write_peft, "gguf": write_gguf, "mlx": write_mlx}[to](output, adapters, base)
    typer.echo(f"wrote {output}: {len(adapters.pairs)} pairs of rank {adapters.rank}; {LOADED[to].format(output)}")
