"""The --json forms of results: stable names, sizes in bytes, times in whole microseconds, breakdowns that sum to their totals."""

import json
from dataclasses import asdict
from typing import Any

from mebp.cli.view.curve import change_text
from mebp.models.build import num_trainable
from mebp.models.graph import Graph
from mebp.planner.row import Row
from mebp.planner.tradeoff import Tradeoff
from mebp.sim.device import Device
from mebp.sim.simulate import Prediction
from mebp.sim.uncertainty import Uncertainty
from mebp.task.run import RunResult
from mebp.unit import whole_us

SCHEMA_VERSION = 1
NAMES = {"deferred gradients": "held gradients"}  # as the JSON has always called them


def tradeoff_json(found: Tradeoff) -> str:
    """A whole trade-off table."""
    return _dump(
        {
            "schema_version": SCHEMA_VERSION,
            "model": model_fields(found.graph),
            "device": device_fields(found.device),
            "workload": workload_fields(found.graph),
            "budget_bytes": found.budget_bytes,
            "verdict": verdict_word(found),
            "least_budget_bytes": found.least_budget_bytes,
            "chosen": found.chosen.name if found.chosen else None,
            "frontier": [{"budget_bytes": c.budget_bytes, "best_step_time_us": c.best_step_ns // 1000} for c in found.outline],
            "remedies": [
                {"flags": change_text(knob.change), "least_budget_bytes": knob.least_budget_bytes} for knob in found.remedies or ()
            ],
            "writing": {"more_bytes": found.writing.more_bytes, "saves_us": found.writing.saves_ns // 1000}
            if found.writing
            else None,
            "range": uncertainty_fields(found.uncertainty) if found.uncertainty else None,
            "plans": [row_fields(row) for row in found.rows],
        }
    )


def verdict_word(found: Tradeoff) -> str:
    """The verdict in one word."""
    if found.chosen and found.chosen.fits:
        return "tight" if found.tight else "fits"
    return "unknown" if found.out_of_time or found.interrupted else "infeasible"


def uncertainty_fields(found: Uncertainty) -> dict[str, Any]:
    """The range of the chosen plan's prediction, (low, high), and what each uncertain number changes at its ends."""
    return {
        "peak_bytes": list(found.peak_bytes),
        "step_time_us": [ns // 1000 for ns in found.step_ns],
        "numbers": [
            {
                "key": effect.key,
                "range": list(effect.values),
                "peak_bytes": list(effect.peak_bytes),
                "step_time_us": [ns // 1000 for ns in effect.step_ns],
            }
            for effect in found.effects
        ],
    }


def model_fields(graph: Graph) -> dict[str, Any]:
    """Which model."""
    config = graph.config
    trainable = num_trainable(config, graph.workload)
    return {
        "name": config.name,
        "family": config.family,
        "parameters": config.num_parameters,
        "trainable": trainable,
        "signature": graph.signature,
    }


def device_fields(device: Device) -> dict[str, Any]:
    """Which device, and every number used of it."""
    values = {**asdict(device.hardware), **asdict(device.runtime)}
    numbers = {name: int(value) if name.endswith("_bytes") else value for name, value in values.items()}
    return {"name": device.name, "title": device.title, **numbers}


def workload_fields(graph: Graph) -> dict[str, Any]:
    """The workload."""
    w = graph.workload
    return {
        "seq_len": w.seq_len,
        "batch_size": w.batch_size,
        "lora_r": w.lora.rank,
        "lora_alpha": w.lora.alpha,
        "lora_targets": list(w.lora.targets),
        "weights": w.weights.name,
        "precision": w.precision,
        "optimizer": w.optimizer,
    }


def row_fields(row: Row) -> dict[str, Any]:
    """One plan."""
    solver = row.plan.solver
    return {
        "name": row.name,
        "exact": row.plan.exact,
        "fits": row.fits,
        **prediction_fields(row.prediction),
        "arena_bytes": row.plan.arena_bytes,
        "chunk_tokens": row.graph.workload.chunk or None,
        "whole_attention": row.graph.workload.whole_attention or not row.graph.workload.chunk,
        "solver": None
        if solver is None
        else {
            "status": row.status,
            "bound_us": solver.bound_ns // 1000,
            "gap": row.gap,
            "wall_s": round(solver.wall_s, 3),
            "scope": solver.scope,
            "whole_bound_us": solver.whole_bound_ns // 1000,
            "whole_gap": row.whole_gap,
            "whole_scope": solver.whole_scope,
        },
    }


def prediction_fields(prediction: Prediction) -> dict[str, Any]:
    """What a plan costs."""
    times = whole_us({part.value: ns for part, ns in prediction.time_breakdown.items()})
    return {
        "peak_bytes": prediction.peak_bytes,
        "peak_breakdown": {NAMES.get(name, name): nbytes for name, nbytes in prediction.peak_breakdown.items()},
        "step_time_us": sum(times.values()),
        "time_breakdown": times,
        "recompute_time_us": round(prediction.recompute_ns / 1000),
        "unpack_time_us": round(prediction.unpack_ns / 1000),
        "flash_read_bytes": prediction.flash_read_bytes,
        "flash_written_bytes": prediction.flash_written_bytes,
        "spill_bytes": prediction.spill_bytes,
        "weight_file_bytes": prediction.weight_file_bytes,
    }


def run_json(result: RunResult) -> str:
    """A run: prediction and measurement."""
    measured, check = result.measured, result.measured.gradients
    return _dump(
        {
            "schema_version": SCHEMA_VERSION,
            "plan": result.plan.name,
            "predicted": {**prediction_fields(result.predicted), "arena_bytes": result.plan.arena_bytes},
            "measured": {
                "arena_bytes": measured.arena_bytes,
                "peak_bytes": measured.peak_bytes,
                "baseline_bytes": measured.baseline_bytes,
                "file_bytes": measured.file_bytes,
                "step_time_us": [round(seconds * 1e6) for seconds in measured.step_s],
                "floor_us": round(measured.floor_s * 1e6),
                "unpacking": measured.unpacking,
            },
            "loss": list(measured.loss),
            "gradients": {
                "checked": check is not None,
                "max_relative_error": check.max_relative_error if check else None,
                "cosine": check.cosine if check else None,
                "times_reference": check.times_reference if check else None,
            },
        }
    )


def _dump(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2) + "\n"
