"""`mebp-plan models`, `synthesize` and `compress`: what is known by name, and stores of random and of real weights to run on."""

from pathlib import Path
from typing import Annotated

import typer

from mebp.cli.request import Flag, require_effort
from mebp.cli.screen import stdout, working
from mebp.cli.unit import show_count, show_nbytes
from mebp.models.catalogue import ALIASES, CATALOGUE, catalogue_model, load_model
from mebp.models.config import ModelConfig
from mebp.models.format import FORMATS, WeightFormat, weight_format


def models() -> None:
    """List the models that are known by name."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("model", "alias"):
        table.add_column(title, no_wrap=True)
    for title in ("parameters", "layers", "width", "int4-g64"):
        table.add_column(title, justify="right", no_wrap=True)
    aliases = {name: alias for alias, name in ALIASES.items()}
    for name in CATALOGUE:
        config = catalogue_model(name)
        size = sum(FORMATS["int4-g64"].nbytes(*shape) for shape in config.matrices().values())
        cells = (show_count(config.num_parameters), str(config.num_layers), str(config.hidden), show_nbytes(size))
        table.add_row(name, aliases.get(name, ""), *cells)
    stdout().print(table)
    stdout().print("A config.json in Hugging Face form, or a folder that holds one, works too.", markup=False)


def synthesize(
    output: Annotated[Path, Flag("--output", "-o", help="Folder to write.")],
    model: Annotated[str, Flag("--model", "-m", help="Catalogue name, alias, or a config.json or its folder.")] = "0.5b",
    weights: Annotated[str, Flag("--weights", help="Format of the frozen weights.")] = "int4-g64",
    seed: Annotated[int, Flag("--seed", help="Seed of the random weights.")] = 0,
) -> None:
    """Write a store of random weights of the right shapes and statistics, to run plans on."""
    require_effort(1.0, seed)
    config, fmt = load_model(model), weight_format(weights)
    make_store(output, config, fmt, seed)
    size = (output / "weights.safetensors").stat().st_size
    typer.echo(f"wrote {output}: {config.name} in {fmt.name}, {show_nbytes(size)}")


def make_store(folder: Path, config: ModelConfig, fmt: WeightFormat, seed: int) -> None:
    """Synthesize a store with progress on stderr."""
    from mebp.store.synthetic import synthesize as write  # noqa: PLC0415  (torch)

    with working(f"synthesizing {config.name}") as status:

        def progress(done: int, total: int) -> None:
            status.update(f"synthesizing {config.name}: {done / total:.0%}")

        write(folder, config, fmt, seed=seed, progress=progress)


def compress(
    source: Annotated[Path, typer.Argument(metavar="HF_DIR", help="Folder with config.json and safetensors files.")],
    output: Annotated[Path, Flag("--output", "-o", help="Folder to write.")],
    weights: Annotated[str, Flag("--weights", help="int4-g32 int4-g64 int4-g128 int8 ternary bf16.")] = "int4-g64",
) -> None:
    """Compress a Hugging Face checkpoint into a store to run plans on."""
    from mebp.store.checkpoint import compress as write  # noqa: PLC0415  (torch)
    from mebp.store.checkpoint import require_apart  # noqa: PLC0415

    fmt = weight_format(weights)
    require_apart(source, output)
    with working(f"compressing {source.name}") as status:
        found = write(source, output, fmt, lambda done, total: status.update(f"compressing {source.name}: {done / total:.0%}"))
    size = (output / "weights.safetensors").stat().st_size
    typer.echo(f"wrote {output}: {found.config.name} in {fmt.name}, {show_nbytes(size)}")
    name, error = found.worst
    if name:
        mean = sum(found.errors.values()) / len(found.errors)
        typer.echo(f"error of a weight, relative root mean square: {mean:.2%} in the mean, worst {error:.2%} ({name})")
