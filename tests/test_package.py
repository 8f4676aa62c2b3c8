"""What is public is what the package says, and importing it is light."""

import subprocess
import sys
from importlib import import_module

import mebp


def test_every_public_name_is_there() -> None:
    assert set(mebp.__all__) == set(mebp._HOMES)
    for name in mebp.__all__:
        assert getattr(mebp, name) is getattr(import_module(mebp._HOMES[name]), name)


def test_planning_imports_neither_torch_nor_the_executor() -> None:
    code = """
import sys
from mebp import Effort, Lora, Workload, build_graph, load_device, load_model, tradeoff, weight_formats
graph = build_graph(load_model("smollm2-135m"), Workload(seq_len=32, lora=Lora(), weights=weight_formats("int4-g64")))
tradeoff(graph, load_device("pixel8"), 10**9, Effort(deterministic_s=0.05))
print([name for name in sys.modules if name == "torch" or name.startswith("mebp.executor")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
