"""`mebp-plan models`: what is known by name."""

from mebp.cli.screen import stdout


def models() -> None:
    """List the models that are known by name."""
    from mebp.cli.view.grid import grid, print_grid  # noqa: PLC0415
    from mebp.models.catalogue import ALIASES, CATALOGUE, catalogue_model  # noqa: PLC0415
    from mebp.models.format import DEFAULT_RECIPE, weight_formats  # noqa: PLC0415
    from mebp.unit import show_count, show_nbytes  # noqa: PLC0415

    table = grid("model", "alias", right=("parameters", "layers", "width", DEFAULT_RECIPE))
    formats = weight_formats(DEFAULT_RECIPE)
    aliases = {name: alias for alias, name in ALIASES.items()}
    for name in CATALOGUE:
        config = catalogue_model(name)
        size = sum(formats.of(weight).nbytes(*shape) for weight, shape in config.matrices().items())
        cells = (show_count(config.num_parameters), str(config.num_layers), str(config.hidden), show_nbytes(size))
        table.add_row(name, aliases.get(name, ""), *cells)
    print_grid(stdout(), table)
    stdout().print(
        "Their Hugging Face ids work too, and a config.json in Hugging Face form or a folder that holds one.", markup=False
    )
