"""`mebp-plan compress`: a store of a model's weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mebp.cli.flag import Flag
from mebp.cli.screen import note, working
from mebp.models.format import DEFAULT_RECIPE, OFFERED, RECIPES, WEIGHTS_FILE, weight_formats

if TYPE_CHECKING:
    from mebp.store.compress import Compressed

LARGEST_ERROR = 0.2  # of a weight, relative root mean square on average: 4 bits make a tenth
FORMAT_NAMES = " ".join((*RECIPES, *OFFERED))


def compress(
    source: Annotated[Path, typer.Argument(metavar="HF_DIR|FILE.gguf", help="Folder with config.json and safetensors, or GGUF.")],
    output: Annotated[Path, Flag("--output", "-o", help="Folder to write.")],
    calibrate_on: Annotated[
        Path | None,
        Flag(
            "--calibrate-on",
            help="A text file: measure the model's loss on it, before and after. Takes disk for the model in bf16.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        Flag(
            "--weights",
            help=f"{FORMAT_NAMES}; or a list that changes one for some weights: {DEFAULT_RECIPE},ffn=int4-g32."
            f" Default: {DEFAULT_RECIPE}; what is quantised already stays as it is.",
        ),
    ] = None,
) -> None:
    """Compress a model's weights into a store to run plans on."""
    from mebp.store.compress import compress as write  # noqa: PLC0415  (torch)
    from mebp.store.compress import require_apart  # noqa: PLC0415
    from mebp.store.writer import require_new  # noqa: PLC0415
    from mebp.task.quality import loss_change, sequences_of  # noqa: PLC0415
    from mebp.task.sample import read_sample  # noqa: PLC0415
    from mebp.text import shortened  # noqa: PLC0415
    from mebp.unit import show_nbytes  # noqa: PLC0415

    formats = None if weights is None else weight_formats(weights)
    require_apart(source, output)
    require_new(output)
    sequences = None if calibrate_on is None else sequences_of(source, read_sample(calibrate_on, "`calibrate_on`"))
    with working(f"compressing {source.name}") as status:
        found = write(source, output, formats, lambda done, total: status.update(f"compressing {source.name}: {done / total:.0%}"))
    size = (output / WEIGHTS_FILE).stat().st_size
    typer.echo(f"wrote {output}: {found.config.name} in {shortened(found.formats.name, 60)}, {show_nbytes(size)}")
    _print_errors(found)
    if sequences is not None:
        with working("measuring the loss") as status:
            change = loss_change(source, output, found, sequences, lambda what: status.update(f"measuring the loss {what}"))
        on = f"loss on {calibrate_on}, {change.tokens:,} tokens"
        typer.echo(f"{on}: {change.before:.3f} before, {change.after:.3f} after ({change.after - change.before:+.3f})")


def _print_errors(found: "Compressed") -> None:
    """What was lost on the way."""
    if not found.has_tokenizer:
        note("the store has no tokenizer, since the source has none that is known here: training asks for tokenizer.json")
    for (kind, made), count in found.converted.items():
        note(f"{count} matrices in {kind} are now in {made}")
    if found.rounded:
        worst = max(found.rounded.values())
        note(f"rounded to bf16: {len(found.rounded)} tensors, by {worst:.2%} at worst")
    name, error = found.worst
    if not name:
        return
    mean = sum(found.errors.values()) / len(found.errors)
    roles = ", ".join(f"{role} {each:.1%}" for role, each in found.by_role().items())
    typer.echo(f"error of a weight, relative root mean square: {mean:.2%} on average, worst {error:.2%} ({name}); {roles}")
    if mean > LARGEST_ERROR:
        note(f"warning: {found.formats.name} loses {mean:.0%} of these weights, which were not trained for it: take another format")
