"""`mebp-plan graph`: an order with recomputation (and paging) for any training graph under a memory budget."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mebp.cli.flag import Flag, SearchFlags, require_search
from mebp.cli.screen import interruptible, note, require_apart, stdout, working
from mebp.errors import InputError, Interrupted
from mebp.text import require_writable, write_file
from mebp.unit import parse_nbytes, show_nbytes

if TYPE_CHECKING:
    from mebp.planner.dag.graph import Dag
    from mebp.planner.dag.solve import Solution

SCHEMA_VERSION = 2
LARGEST_COST = 2**50


def graph(
    file: Annotated[Path, typer.Argument(metavar="FILE.json", help="Node-link JSON with cost_cpu and cost_ram per node.")],
    budget: Annotated[str, Flag("--budget", "-b", help="Memory allowed: 10GB, 512MiB, or bytes.")],
    fixed_order: Annotated[bool, Flag("--fixed-order", help="Keep the order of first runs that the file has.")] = False,
    flash_bandwidth: Annotated[
        float | None, Flag("--flash-bandwidth", help="Bytes moved to or from flash per unit of cost; default: no paging.")
    ] = None,
    copies: Annotated[int | None, Flag("--copies", help="Runs that one node may have; default: any number.")] = None,
    time_limit: Annotated[float, Flag("--time-limit", help="Seconds that the search may take.")] = 60.0,
    seed: Annotated[int, Flag("--seed", help="Seed of the search.")] = 0,
    output: Annotated[Path | None, Flag("--output", "-o", help="Write the order to this JSON file.")] = None,
    as_json: Annotated[bool, Flag("--json", help="Print JSON.")] = False,
) -> None:
    """Find an order with recomputation for any training graph under a budget, and a bound on its cost."""
    nbytes = parse_nbytes(budget, "--budget")
    require_search(time_limit, seed)
    _require_flags(copies, flash_bandwidth)
    require_apart({"-o": output}, [file])
    require_writable({"-o": output})
    with working("reading") as status:
        from mebp.planner.dag.graph import read_dag  # noqa: PLC0415  (the solver is slow to import)
        from mebp.planner.dag.order import Flash  # noqa: PLC0415
        from mebp.planner.dag.solve import Problem, solve_dag  # noqa: PLC0415

        dag = read_dag(file, fine=flash_bandwidth is not None)
        _require_fits(dag, file, flash_bandwidth, fixed_order=fixed_order)
        flash = Flash(bytes_per_cost=flash_bandwidth * dag.unit) if flash_bandwidth else None
        problem = Problem(dag=dag, budget=nbytes, fixed_order=fixed_order, flash=flash, copies=copies)

        def progress(cost: int, bound: int) -> None:
            costs = f"cost {dag.in_file_units(cost)} ({over(dag, cost):.2%} over one run each)"
            status.update(f"{costs}, bound {dag.in_file_units(bound)}")

        effort = SearchFlags(time_limit=time_limit, seed=seed).effort(progress)
        found = interruptible(lambda: solve_dag(problem, effort), effort.stop)
    text = order_json(dag, found, nbytes)
    if output is not None:
        write_file(output, text)
        note(f"wrote {output}")
    if as_json:
        typer.echo(text, nl=False)
    else:
        for line in summary(dag, found, nbytes):
            stdout().print(line, markup=False)
    if effort.stop.asked:
        raise Interrupted("interrupted: this is the best order so far")


def _require_flags(copies: int | None, flash_bandwidth: float | None) -> None:
    """Refuse numbers that no search can take."""
    if copies is not None:
        from mebp.planner.dag.solve import MOST_COPIES  # noqa: PLC0415  (the solver is slow to import)

        if not 1 <= copies <= MOST_COPIES:
            raise InputError(f"--copies = {copies}: must be between 1 and {MOST_COPIES}")
    if flash_bandwidth is not None and not 0 < flash_bandwidth < float("inf"):
        raise InputError(f"--flash-bandwidth = {flash_bandwidth:g}: must be a positive number of bytes per unit of cost")


def _require_fits(dag: "Dag", file: Path, flash_bandwidth: float | None, *, fixed_order: bool) -> None:
    """Refuse flags that cannot be kept on this graph."""
    if flash_bandwidth and sum(dag.sizes) > LARGEST_COST * flash_bandwidth * dag.unit:
        raise InputError(f"--flash-bandwidth = {flash_bandwidth:g}: too slow for what the file's nodes hold: raise it")
    if fixed_order and not dag.as_given:
        raise InputError(f"{file}: a node stands before one that it reads: put them in order, or leave --fixed-order out")


def over(dag: "Dag", cost: int) -> float:
    """How much more a cost is than running every node once, as a part of that."""
    return cost / dag.total_cost - 1 if dag.total_cost else 0.0


def summary(dag: "Dag", found: "Solution", budget: int) -> list[str]:
    """What was found, in a few lines."""
    measured = found.measured
    extra = len([run for run in found.runs if not run.loaded]) - dag.num_nodes
    loads = sum(run.loaded for run in found.runs)
    state = "optimal" if found.optimal else f"gap {found.gap:.2%}"
    cost, bound = dag.in_file_units(measured.cost), dag.in_file_units(found.bound)
    return [
        f"{dag.num_nodes} nodes, budget {show_nbytes(budget)}",
        f"  cost     {cost}, {over(dag, measured.cost):.2%} over running every node once; {state}: bound {bound}",
        f"  bound    holds for {found.scope}",
        f"  peak     {show_nbytes(measured.peak)} of {show_nbytes(budget)}, at {dag.shown(found.runs[measured.peak_at].node)}",
        f"  also     {extra} recomputed, {loads} loaded; {found.seconds:.1f} s of search",
    ]


def order_json(dag: "Dag", found: "Solution", budget: int) -> str:
    """The order and its facts; sizes in bytes, costs in the file's own unit."""
    data = {
        "schema_version": SCHEMA_VERSION,
        "budget_bytes": budget,
        "cost": dag.in_file_units(found.measured.cost),
        "cost_of_one_run_each": dag.in_file_units(dag.total_cost),
        "peak_bytes": found.measured.peak,
        "status": "optimal" if found.optimal else "feasible",
        "bound": dag.in_file_units(found.bound),
        "gap": found.gap,
        "scope": found.scope,
        "order": [{"node": dag.ids[run.node], "loaded": run.loaded} for run in found.runs],
    }
    return json.dumps(data, indent=1) + "\n"
