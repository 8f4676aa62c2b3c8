"""What a caller from Python gets wrong is one line, and no abort of the interpreter."""

from collections.abc import Callable
from typing import Any

import pytest

from mebp import Lora, Workload, build_graph, load_device, load_model, tradeoff, weight_formats
from mebp.errors import InputError

CONFIG = load_model("0.5b")


def workload(**lora: Any) -> Workload:
    return Workload(lora=Lora(**lora), weights=weight_formats("int4-g64"))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: load_model(None), "`model` = None: must be a str"),
        (lambda: load_device(5), "`device` = 5: must be a str"),
        (lambda: build_graph("0.5b", workload()), "`config` = '0.5b': must be a ModelConfig"),
        (lambda: build_graph(CONFIG, None), "`workload` = None: must be a Workload"),
        (lambda: build_graph(CONFIG, workload(rank="8")), "`rank` = '8': must be a whole number"),
        (lambda: build_graph(CONFIG, workload(rank=True)), "`rank` = True: must be a whole number"),
        (lambda: build_graph(CONFIG, workload(targets="q")), "`targets` = 'q': must be a tuple"),
        (lambda: build_graph(CONFIG, workload(targets=5)), "`targets` = 5: must be a tuple"),
        (lambda: tradeoff(build_graph(CONFIG, workload()), "pixel8", 10**9), "`device` = 'pixel8': must be a Device"),
        (lambda: tradeoff("x", load_device("pixel8"), 10**9), "`graph` = 'x': must be a Graph"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(call: Callable[[], object], says: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)
