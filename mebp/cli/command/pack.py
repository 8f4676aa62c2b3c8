"""`mebp-plan pack`: offsets for buffers with lifetimes, within a capacity."""

import time
from pathlib import Path
from typing import Annotated

import typer

from mebp.cli.flag import Flag, SearchFlags, require_search
from mebp.cli.screen import interruptible, note, require_apart, working
from mebp.text import require_writable, write_file
from mebp.unit import parse_nbytes


def pack(
    file: Annotated[Path, typer.Argument(metavar="FILE.csv", help="Buffers: id,lower,upper,size, alive in [lower, upper).")],
    capacity: Annotated[str, Flag("--capacity", help="Bytes that all must fit in: 1048576, 1MiB.")],
    output: Annotated[Path | None, Flag("--output", "-o", help="Write the CSV with offsets here, not to stdout.")] = None,
    time_limit: Annotated[float, Flag("--time-limit", help="Seconds that the search may take.")] = 60.0,
    seed: Annotated[int, Flag("--seed", help="Seed of the search.")] = 0,
) -> None:
    """Give buffers addresses within a capacity (the format of google/minimalloc)."""
    nbytes = parse_nbytes(capacity, "--capacity")
    require_search(time_limit, seed)
    require_apart({"-o": output}, [file])
    require_writable({"-o": output})
    with working("packing"):
        from mebp.planner.pack.check import check_packing  # noqa: PLC0415  (the solver is slow to import)
        from mebp.planner.pack.exact import pack_within  # noqa: PLC0415
        from mebp.planner.pack.minimalloc import offsets_csv, read_instance  # noqa: PLC0415

        begin = time.monotonic()
        effort = SearchFlags(time_limit=time_limit, seed=seed).effort()
        instance = read_instance(file)
        packing = interruptible(lambda: pack_within(list(instance.buffers), nbytes, effort), effort.stop)
        check_packing(instance.buffers, packing)
    text = offsets_csv(instance, packing)
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_file(output, text)
    note(
        f"{len(instance.buffers)} buffers in {packing.height} of {nbytes} bytes, {packing.live_peak} live at once,"
        f" {time.monotonic() - begin:.1f} s"
    )
