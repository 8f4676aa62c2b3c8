"""`mebp-plan curve`: step time against memory, as a table with bars, CSV or JSON, and what the next bytes would buy."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mebp.cli.command.plot import NO_MATPLOTLIB, require_picture, write_picture
from mebp.cli.command.target import target_device
from mebp.cli.flag import CURVE_TIME_LIMIT, Flag, ModelFlags, ProfileFlags, SearchFlags, StepFlags, TargetFlags
from mebp.cli.screen import interruptible, note, require_apart, stdout, working
from mebp.errors import InfeasibleBudget, InputError, Interrupted, NoPlanInTime
from mebp.models.workload import MAX_TOKENS
from mebp.text import require_writable, write_file
from mebp.unit import show_nbytes

if TYPE_CHECKING:
    from mebp.cli.view.curve import Curve
    from mebp.models.graph import Graph
    from mebp.planner.curve import Point
    from mebp.planner.knob import Change, Knob
    from mebp.sim.device import Device

DEFAULT_POINTS = 8
KILO = 1024
MOST_POINTS = 64


def curve(
    model: ModelFlags,
    step: StepFlags,
    target: TargetFlags,
    profile: ProfileFlags,
    search: SearchFlags,
    num_points: Annotated[int, Flag("--points", help="Budgets to solve for.")] = DEFAULT_POINTS,
    over: Annotated[
        tuple[str, str] | None,
        Flag(
            "--over", metavar="seq-len LENGTHS", help="Plan at several lengths, such as seq-len 1k,2k,4k, not at several budgets."
        ),
    ] = None,
    output: Annotated[Path | None, Flag("--output", "-o", help="Write the points to this CSV file.")] = None,
    picture: Annotated[Path | None, Flag("--plot", help="With --over: draw memory and speed as PNG or SVG.")] = None,
    as_json: Annotated[bool, Flag("--json", help="Print JSON.")] = False,
) -> None:
    """Solve for a series of budgets: step time against memory, from the least budget found to where everything is kept.

    With --over, for a series of sequence lengths: what each needs at least, and how fast it is within the budget.
    """
    from mebp.cli.view.curve import curve_json, points_csv, print_curve  # noqa: PLC0415
    from mebp.models.build import build_graph  # noqa: PLC0415

    if not 2 <= num_points <= MOST_POINTS:
        raise InputError(f"--points = {num_points}: must be between 2 and {MOST_POINTS}")
    lengths = _lengths(*over) if over else ()
    if picture is not None:
        require_picture("--plot", picture)
        if not lengths:
            raise InputError(f"--plot {picture}: draws lengths: name them, such as --over seq-len 1k,2k,4k")
    require_apart({"-o": output, "--plot": picture}, [*model.files(), *target.files()])
    require_writable({"-o": output, "--plot": picture})
    named = model.found()
    graph = build_graph(named.config, step.workload(named.formats))
    longest = replace(graph.workload, seq_len=max(lengths, default=graph.workload.seq_len))
    device = target_device(target, profile, graph.config, longest)
    budget = target.budget_on(device, note)
    if lengths:
        _over(graph, device, budget, lengths, search, output, picture, as_json=as_json)
        return
    found = solve_curve(graph, device, budget, search, num_points)
    if found.interrupted and not found.points:
        raise Interrupted("interrupted before the first point")
    if output is not None:
        write_file(output, points_csv(found.points))
        note(f"wrote {output}")
    if as_json:
        typer.echo(curve_json(budget, found))
    else:
        print_curve(stdout(), graph, device, budget, found)
    _require_complete(found, budget)


def _lengths(name: str, text: str) -> tuple[int, ...]:
    """`1k,2k,4096` as numbers of tokens, in order."""
    if name.replace("_", "-") != "seq-len":
        raise InputError(f"--over {name}: take seq-len")
    found = set()
    for part in text.split(","):
        word = part.strip().lower()
        digits, unit = (word[:-1], KILO) if word.endswith("k") else (word, 1)
        if not digits.isdecimal() or len(digits) > len(str(MAX_TOKENS)) or not 2 <= int(digits) * unit <= MAX_TOKENS:
            raise InputError(f"--over seq-len {text}: {part.strip()!r} is no length: take numbers of tokens such as 1k,2k,4096")
        found.add(int(digits) * unit)
    return tuple(sorted(found))


def _over(
    graph: "Graph",
    device: "Device",
    budget: int,
    lengths: tuple[int, ...],
    search: SearchFlags,
    output: Path | None,
    picture: Path | None,
    *,
    as_json: bool,
) -> None:
    """Plan at every length, and show, write and draw what comes out."""
    from mebp.cli.view.length import drawn_lengths, lengths_csv, lengths_json, print_lengths  # noqa: PLC0415
    from mebp.planner.length import over_lengths  # noqa: PLC0415

    effort = search.effort(default=CURVE_TIME_LIMIT)
    with working("planning") as status:
        found = interruptible(
            lambda: over_lengths(graph, device, budget, lengths, effort, lambda length: status.update(f"{length} tokens")),
            effort.stop,
        )
    if not found:
        if effort.stop.asked:
            raise Interrupted("interrupted before the first length")
        raise NoPlanInTime("the time was over before the first length: raise `time_limit`")
    if output is not None:
        write_file(output, lengths_csv(found))
        note(f"wrote {output}")
    if picture is not None:
        try:
            write_picture(picture, drawn_lengths(found, budget, picture.suffix.lower()[1:]))
        except ImportError:
            raise InputError(NO_MATPLOTLIB) from None
        note(f"wrote {picture}")
    if as_json:
        typer.echo(lengths_json(budget, found))
    else:
        print_lengths(stdout(), graph, device, budget, found)
    if effort.stop.asked:
        raise Interrupted("interrupted: these are the lengths so far")
    if len(found) < len(lengths):
        note(f"the time was over after {found[-1].graph.workload.seq_len} tokens: raise --time-limit")


def _require_complete(found: "Curve", budget: int) -> None:
    """Say what is missing, and exit with its code."""
    if found.interrupted:
        raise Interrupted("interrupted: these are the points so far")
    if found.knobs and found.knobs[0].best_step_ns is None:
        least = show_nbytes(found.knobs[0].least_budget_bytes, up=True)
        note(f"nothing fits {show_nbytes(budget)}: the least budget found is {least}: raise --budget")
        raise typer.Exit(InfeasibleBudget.exit_code)


def solve_curve(graph: "Graph", device: "Device", budget: int, search: SearchFlags, num_points: int) -> "Curve":
    """The trade-off curve up to keep-all, or to `budget` where that is more, and what knobs change at `budget`, with progress on
    stderr.
    """
    from mebp.cli.view.curve import Curve, change_text  # noqa: PLC0415
    from mebp.planner.curve import curve as solve  # noqa: PLC0415  (the solver is slow to import)
    from mebp.planner.knob import knobs  # noqa: PLC0415
    from mebp.planner.tiling import tilings  # noqa: PLC0415

    effort = search.effort(default=CURVE_TIME_LIMIT)
    with working("posing the problem") as status:

        def ask(change: "Change | None") -> None:
            status.update(f"what if {change_text(change)}")

        def work() -> "tuple[tuple[Point, ...], tuple[Knob, ...]]":
            step = tilings(graph, device, effort)
            points = solve(step, effort, num_points, budget, lambda n: status.update(f"budget {n + 1} of {num_points}"))
            return points, knobs(graph, device, budget, effort, ask)

        points, changes = interruptible(work, effort.stop)
    return Curve(points=points, knobs=changes, interrupted=effort.stop.asked)
