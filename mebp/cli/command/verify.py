"""`mebp-plan verify`: six plans executed here, each prediction vs. its measurement, and the errors in one table."""

from pathlib import Path
from typing import Annotated

import typer

from mebp.cli.command.run import random_store
from mebp.cli.flag import Flag, ModelFlags, ProfileFlags, SearchFlags, StepFlags
from mebp.cli.screen import note, stdout, working


def verify(
    model: ModelFlags,
    step: StepFlags,
    profile: ProfileFlags,
    search: SearchFlags,
    steps: Annotated[int, Flag("--steps", help="Steps to time of each plan, after one to warm up.")] = 3,
    store: Annotated[Path | None, Flag("--store", help="Folder of compressed weights; default: random ones, written once.")] = None,
    spill_dir: Annotated[Path | None, Flag("--spill-dir", help="Folder for the spill file.")] = None,
    as_json: Annotated[bool, Flag("--json", help="Print JSON.")] = False,
) -> None:
    """Calibrate at this model's shapes, execute six plans, and print how far each prediction is off."""
    from mebp.task.run import require_inputs, require_job  # noqa: PLC0415

    require_job(steps, spill_dir)
    named = model.found(store)
    store, config, workload = named.store, named.config, step.workload(named.formats)
    from mebp.cli.view.verify import print_verified, verified_json  # noqa: PLC0415
    from mebp.executor.measure.job import Job  # noqa: PLC0415
    from mebp.models.build import build_graph  # noqa: PLC0415
    from mebp.sim.profile import override  # noqa: PLC0415
    from mebp.task.calibrate import calibrate  # noqa: PLC0415
    from mebp.task.verify import require_verified  # noqa: PLC0415
    from mebp.task.verify import verify as compare  # noqa: PLC0415

    graph = build_graph(config, workload)
    if store is not None:
        require_inputs(Job(store=store), config, workload)
    folder = store or random_store(config, workload.weights)
    with working("calibrating this machine") as status:
        machine = calibrate(config, workload, lambda what: status.update(f"calibrating: {what}"), spill_dir)
    device = override(machine, profile.overrides())
    job = Job(store=folder, steps=steps, spill_dir=spill_dir, seed=search.seed)
    found = compare(graph, machine, device, job, search.effort(), note)
    if as_json:
        typer.echo(verified_json(found), nl=False)
    else:
        print_verified(stdout(), graph, found)
    require_verified(found)
