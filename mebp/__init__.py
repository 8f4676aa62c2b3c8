"""Plan, check, simulate and run LoRA fine-tuning on small devices.

    graph = build_graph(load_model("4b"), Workload(lora=Lora(), weights=weight_formats("int4-g64")))
    device = load_device("iphone15promax")
    found = tradeoff(graph, device, budget_bytes=10**9)

Names are handed on lazily, so that importing mebp is instant and planning never imports torch. `python -m mebp` imports this
module before its own first line, where Ctrl-C is not yet caught: so it imports nothing at all.
"""

TYPE_CHECKING = False  # type checkers take the name for true

if TYPE_CHECKING:
    from mebp.executor.measure.job import Job, Measurement
    from mebp.executor.measure.worker import run_plan
    from mebp.executor.train.settings import Evaluated, Saved, TrainSettings, Updated
    from mebp.executor.train.trainer import Trainer
    from mebp.models.build import build_graph
    from mebp.models.catalogue import load_model
    from mebp.models.format import weight_formats
    from mebp.models.graph import Graph
    from mebp.models.optimizer import Optimizer, Schedule
    from mebp.models.workload import Lora, Workload
    from mebp.plan import Plan, dump_plan, read_plan
    from mebp.planner.effort import Effort
    from mebp.planner.recipe.strategies import STRATEGIES
    from mebp.planner.row import Row
    from mebp.planner.tradeoff import Tradeoff, tradeoff
    from mebp.sim.device import Device
    from mebp.sim.profile import load_device
    from mebp.sim.simulate import Prediction, simulate
    from mebp.task.train.corpus import Source
    from mebp.task.train.library import make_trainer, write_adapter

__version__ = "0.1.0"

_HOMES = {
    "Device": "mebp.sim.device",
    "Graph": "mebp.models.graph",
    "Job": "mebp.executor.measure.job",
    "Effort": "mebp.planner.effort",
    "Evaluated": "mebp.executor.train.settings",
    "Lora": "mebp.models.workload",
    "Measurement": "mebp.executor.measure.job",
    "Optimizer": "mebp.models.optimizer",
    "Plan": "mebp.plan",
    "Prediction": "mebp.sim.simulate",
    "Row": "mebp.planner.row",
    "STRATEGIES": "mebp.planner.recipe.strategies",
    "Saved": "mebp.executor.train.settings",
    "Schedule": "mebp.models.optimizer",
    "TrainSettings": "mebp.executor.train.settings",
    "Source": "mebp.task.train.corpus",
    "Tradeoff": "mebp.planner.tradeoff",
    "Trainer": "mebp.executor.train.trainer",
    "Updated": "mebp.executor.train.settings",
    "Workload": "mebp.models.workload",
    "build_graph": "mebp.models.build",
    "dump_plan": "mebp.plan",
    "load_device": "mebp.sim.profile",
    "load_model": "mebp.models.catalogue",
    "make_trainer": "mebp.task.train.library",
    "read_plan": "mebp.plan",
    "run_plan": "mebp.executor.measure.worker",
    "simulate": "mebp.sim.simulate",
    "tradeoff": "mebp.planner.tradeoff",
    "weight_formats": "mebp.models.format",
    "write_adapter": "mebp.task.train.library",
}

__all__ = [
    "STRATEGIES",
    "Device",
    "Effort",
    "Evaluated",
    "Graph",
    "Job",
    "Lora",
    "Measurement",
    "Optimizer",
    "Plan",
    "Prediction",
    "Row",
    "Saved",
    "Schedule",
    "Source",
    "Tradeoff",
    "TrainSettings",
    "Trainer",
    "Updated",
    "Workload",
    "build_graph",
    "dump_plan",
    "load_device",
    "load_model",
    "make_trainer",
    "read_plan",
    "run_plan",
    "simulate",
    "tradeoff",
    "weight_formats",
    "write_adapter",
]


def __getattr__(name: str) -> object:
    from importlib import import_module  # noqa: PLC0415 - see above

    if name not in _HOMES:
        raise AttributeError(f"module 'mebp' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
