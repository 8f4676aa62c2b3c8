"""A training run for a person: what it will take, and what came out."""

import json
from collections.abc import Callable, Mapping
from math import isfinite
from typing import TYPE_CHECKING

from mebp.cli.view.grid import grid, print_grid
from mebp.unit import show_nbytes, show_ns, show_number, show_seconds

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from mebp.executor.train.settings import TrainSettings
    from mebp.models.workload import Workload
    from mebp.task.train.corpus import Corpus
    from mebp.task.train.planning import BucketPlan, TrainingPlan
    from mebp.task.train.run import Outcome


def print_plan(
    console: "Console", model: str, corpus: "Corpus", plan: "TrainingPlan", settings: "TrainSettings", workload: "Workload"
) -> None:
    """Budget, plans, predicted peak and times."""
    samples, held_out = corpus.train.samples, corpus.held_out
    console.print(f"{model}, {len(samples):,} samples of {corpus.files[0].name}{', packed' if corpus.packed else ''}", markup=False)
    facts = [(samples.truncated, "cut to {} tokens"), (samples.unlabelled, "left out: no token with a label within {} tokens")]
    for count, what in facts:
        if count:
            console.print(f"{count:,} records {what.format(corpus.train.range.seq_len)}", markup=False)
    table = grid("batches of", "plan", right=("per epoch", "labelled", "peak", "step"))
    for bucket in plan.train:
        _add_bucket(table, bucket, f"{workload.batch_size} x {bucket.seq_len} tokens", plan)
    for bucket in plan.held_out:
        _add_bucket(table, bucket, f"{workload.batch_size} x {bucket.seq_len} held out", plan)
    print_grid(console, table, drop=("labelled", "per epoch"))
    held = f", {len(held_out.samples):,} held out" if held_out else ""
    epochs = settings.updates / plan.updates_per_epoch
    batches = f"{settings.accumulate} batch{'es' if settings.accumulate > 1 else ''}"
    console.print(
        f"{settings.updates:,} updates of {batches} ({show_number(epochs)} epochs{held}),"
        f" {workload.optimizer if workload.method == 'backprop' else 'mezo'}, rate {settings.optimizer.rate:g}"
        f" {settings.optimizer.schedule.decay}",
        markup=False,
    )
    console.print(
        f"predicted: peak {show_nbytes(plan.peak_bytes)} of {show_nbytes(plan.budget_bytes)}, {show_ns(plan.update_ns)} per update,"
        f" {show_seconds(plan.total_ns / 1e9)} in all",
        markup=False,
    )


def _add_bucket(table: "Table", bucket: "BucketPlan", what: str, plan: "TrainingPlan") -> None:
    outside = plan.peak_bytes - plan.peak_breakdown["arena"]
    table.add_row(
        what,
        bucket.row.name,
        f"{bucket.num_batches:,}",
        f"{bucket.labelled}",
        show_nbytes(outside + bucket.row.plan.arena_bytes),
        show_ns(bucket.row.prediction.step_ns),
    )


def print_outcome(console: "Console", outcome: "Outcome") -> None:
    """Predicted vs. measured, and what was written."""
    run, trained = outcome.run, outcome.trained
    table = grid("", right=("predicted", "measured", "error"))
    for cells in _rows(outcome):
        table.add_row(*cells)
    print_grid(console, table)
    if trained.skipped:
        console.print(f"{trained.skipped} updates were skipped: a loss or gradient was not finite", markup=False)
    if trained.best_loss is not None:
        console.print(
            f"best held-out loss {trained.best_loss:.4f} after update {trained.best_number}: its adapter is kept", markup=False
        )
    if trained.ending == "early stop":
        console.print(f"ended early: no better loss in {run.settings.patience} evaluations", markup=False)
    for path in outcome.adapters:
        console.print(f"wrote {path}", markup=False, soft_wrap=True)


def _rows(outcome: "Outcome") -> list[tuple[str, ...]]:
    run, trained = outcome.run, outcome.trained
    rows: list[tuple[str, float, float, Callable[[float], str]]] = [
        ("anonymous memory, whole process", run.predicted.peak_bytes, trained.peak_bytes, show_nbytes),
        *([("all updates and evaluations", run.predicted.total_ns, trained.seconds * 1e9, show_ns)] if outcome.complete else []),
    ]
    return [(name, show(ahead), show(found), f"{found / ahead - 1:+.1%}" if ahead else "-") for name, ahead, found, show in rows]


def outcome_json(outcome: "Outcome") -> str:
    """The outcome with stable names."""
    run, trained = outcome.run, outcome.trained
    fields: Mapping[str, object] = {
        "schema_version": 1,
        "model": run.base.name,
        "ending": trained.ending,
        "updates": trained.number,
        "skipped": trained.skipped,
        "best_update": trained.best_number,
        "best_loss": trained.best_loss if trained.best_loss is None or isfinite(trained.best_loss) else None,
        "predicted": {
            "peak_bytes": run.predicted.peak_bytes,
            "peak_breakdown": dict(run.predicted.peak_breakdown),
            "update_us": round(run.predicted.update_ns / 1000),
            "total_us": round(run.predicted.total_ns / 1000),
        },
        "measured": {
            "peak_bytes": trained.peak_bytes,
            "baseline_bytes": trained.baseline_bytes,
            "file_bytes": trained.file_bytes,
            "arena_bytes": trained.arena_bytes,
            "seconds": trained.seconds,
        },
        "budget_bytes": run.budget_bytes,
        "written": [str(path) for path in outcome.adapters],
    }
    return json.dumps(fields, indent=2) + "\n"
