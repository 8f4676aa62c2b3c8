"""Each rule of the checker: a valid plan passes, and the smallest change that breaks the rule is caught by its name."""

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mebp import check as checker
from mebp.check import check
from mebp.errors import InvalidPlan
from mebp.models.build import build_graph
from mebp.models.catalogue import catalogue_model
from mebp.models.format import weight_formats
from mebp.models.graph import Graph
from mebp.models.op import OpId
from mebp.models.tensor import TensorId, WeightId, align
from mebp.plan import Compute, Engine, Free, Load, Place, Plan, Store, Unpack
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.sim.device import Device
from tests.conftest import small_workload


@pytest.fixture(scope="module")
def plan(small_graph: Graph, device: Device) -> Plan:
    return STRATEGIES["mebp"].plan(small_graph, device, 10**9)


def edited(plan: Plan, index: int, *instructions: object) -> Plan:
    """`plan` with instruction `index` replaced by others."""
    listed = (*plan.instructions[:index], *instructions, *plan.instructions[index + 1 :])
    return replace(plan, instructions=listed)  # type: ignore[arg-type]


def first(plan: Plan, kind: type, wanted: Callable[..., bool] = lambda i: True) -> int:
    return next(at for at, i in enumerate(plan.instructions) if isinstance(i, kind) and wanted(i))


def broken_rule(plan: Plan, graph: Graph) -> str:
    with pytest.raises(InvalidPlan) as caught:
        check(plan, graph)
    return caught.value.rule


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_is_valid_and_its_arena_is_its_peak(name: str, small_graph: Graph, device: Device) -> None:
    strategy = STRATEGIES[name]
    graph = strategy.graph(small_graph)
    found = strategy.plan(graph, device, 10**9)
    assert check(found, graph).peak_bytes == found.arena_bytes


def test_a_missing_op_is_caught(plan: Plan, small_graph: Graph) -> None:
    at = first(plan, Compute, lambda i: i.op == "3.update")
    assert broken_rule(edited(plan, at), small_graph) == "every op runs"


def test_an_early_free_is_caught(plan: Plan, small_graph: Graph) -> None:
    at = first(plan, Compute, lambda i: i.op == "0.q")
    early = edited(plan, at, Free(tensor=TensorId("0.norm1.out")), plan.instructions[at])
    assert broken_rule(early, small_graph) == "read only what is in the arena"


def test_a_missing_free_is_caught(plan: Plan, small_graph: Graph) -> None:
    at = len(plan.instructions) - 1
    assert isinstance(plan.instructions[at], Free)
    assert broken_rule(edited(plan, at), small_graph) == "what is written is freed"


def test_overlapping_tensors_are_caught(plan: Plan, small_graph: Graph) -> None:
    at = first(plan, Compute, lambda i: i.op == "0.norm1")
    run = plan.instructions[at]
    assert isinstance(run, Compute)
    onto = replace(run.writes[0], offset=_place(plan, "embed.out").offset)
    moved = edited(plan, at, replace(run, writes=(onto,)))
    assert broken_rule(moved, small_graph) == "no two live tensors overlap"


def _place(plan: Plan, tensor: str) -> Place:
    return next(p for i in plan.instructions if isinstance(i, Compute) for p in i.writes if p.tensor == tensor)


def test_a_place_outside_the_arena_is_caught(plan: Plan, small_graph: Graph) -> None:
    at = first(plan, Compute)
    run = plan.instructions[at]
    assert isinstance(run, Compute)
    out = edited(plan, at, replace(run, writes=(replace(run.writes[0], offset=plan.arena_bytes),)))
    assert broken_rule(out, small_graph) == "stay inside the arena"


def test_an_arena_larger_than_its_highest_byte_is_caught(plan: Plan, small_graph: Graph) -> None:
    assert broken_rule(replace(plan, arena_bytes=plan.arena_bytes + 64), small_graph) == "the arena ends at its highest byte"


def test_too_little_room_for_a_tensor_or_scratch_is_caught(plan: Plan, small_graph: Graph) -> None:
    at = first(plan, Compute, lambda i: i.scratch is not None)
    run = plan.instructions[at]
    assert isinstance(run, Compute)
    assert run.scratch is not None
    small = replace(run.writes[0], nbytes=run.writes[0].nbytes - 64)
    assert broken_rule(edited(plan, at, replace(run, writes=(small,))), small_graph) == "room for the tensor"
    tight = replace(run.scratch, nbytes=run.scratch.nbytes - 64)
    assert broken_rule(edited(plan, at, replace(run, scratch=tight)), small_graph) == "room for scratch"


def test_a_load_without_its_store_is_caught(plan: Plan, small_graph: Graph) -> None:
    assert broken_rule(edited(plan, first(plan, Store)), small_graph) == "load only what was stored"


def test_a_second_run_must_be_marked(plan: Plan, small_graph: Graph) -> None:
    at = first(plan, Compute, lambda i: i.recompute)
    run = plan.instructions[at]
    assert isinstance(run, Compute)
    unmarked = edited(plan, at, replace(run, recompute=False))
    assert broken_rule(unmarked, small_graph) == "a second run is marked, a first is not"


def test_an_accumulation_out_of_order_is_caught(plan: Plan, small_graph: Graph) -> None:
    """The stream's gradient is read by the layer below only after this layer added its part."""
    at = first(plan, Compute, lambda i: i.op == "3.norm1.backward")
    assert broken_rule(edited(plan, at), small_graph) == "changes keep the graph's order"


def test_a_recomputation_after_its_adapter_changed_is_caught(plan: Plan, small_graph: Graph) -> None:
    """The last layer's update, and a second run of its q afterwards on an input that is still there."""
    at = first(plan, Compute, lambda i: i.op == "3.update")
    again = next(i for i in plan.instructions if isinstance(i, Compute) and i.op == "3.q" and i.recompute)
    late = replace(again, reads=(TensorId("3.norm1.out"),), streamed=(WeightId("3.q.weight"),))
    assert broken_rule(edited(plan, at, plan.instructions[at], late), small_graph) == "changes keep the graph's order"


def test_a_load_of_what_changed_since_its_store_is_caught(plan: Plan, small_graph: Graph) -> None:
    stream = TensorId("stream.grad")
    at = first(plan, Compute, lambda i: i.op == "3.norm2.backward")
    place = next(p for i in plan.instructions if isinstance(i, Compute) for p in i.writes if p.tensor == stream)
    stale = edited(plan, at, Store(tensor=stream), plan.instructions[at], Free(tensor=stream), Load(place=place))
    assert broken_rule(stale, small_graph) == "load only what was stored"


def test_places_off_the_alignment_are_caught(plan: Plan, small_graph: Graph) -> None:
    at = first(plan, Compute)
    run = plan.instructions[at]
    assert isinstance(run, Compute)
    odd = edited(plan, at, replace(run, writes=(replace(run.writes[0], offset=run.writes[0].offset + 2),)))
    assert broken_rule(odd, small_graph) == "places are aligned"


def test_a_weight_unpacked_by_no_engine_is_caught(plan: Plan, small_graph: Graph) -> None:
    at = first(plan, Unpack)
    instruction = plan.instructions[at]
    assert isinstance(instruction, Unpack)
    assert (
        broken_rule(edited(plan, at, replace(instruction, engine=Engine.NONE)), small_graph)
        == "weights unpack on compute or unpack"
    )


def test_a_head_tile_that_the_head_cannot_walk_is_caught(small_graph: Graph, device: Device) -> None:
    graph = build_graph(catalogue_model("qwen2.5-0.5b"), small_workload(weights=weight_formats("int4-g64")))
    found = STRATEGIES["checkpoint-1"].plan(graph, device, 10**9)
    at = first(found, Compute, lambda i: i.op == "head")
    run = found.instructions[at]
    assert isinstance(run, Compute)
    rule = "a head tile is one tile of weights at most, or the whole vocabulary"
    assert broken_rule(edited(found, at, replace(run, tile=5000)), graph) == rule


@pytest.mark.parametrize(
    ("instruction", "rule"),
    [
        (Compute(op=OpId("nothing"), reads=(), writes=()), "known ops only"),
        (
            Unpack(weight=WeightId("nothing"), place=Place(tensor=TensorId("nothing"), offset=0, nbytes=64)),
            "known weights only",
        ),
        (Free(tensor=TensorId("nothing")), "read only what is in the arena"),
        (Load(place=Place(tensor=TensorId("embed.out"), offset=0, nbytes=64)), "load only what was stored"),
    ],
)
def test_what_the_graph_does_not_know_is_caught(instruction: object, rule: str, plan: Plan, small_graph: Graph) -> None:
    assert broken_rule(edited(plan, 0, instruction, plan.instructions[0]), small_graph) == rule


def test_an_op_that_names_other_inputs_is_caught(plan: Plan, small_graph: Graph) -> None:
    at = first(plan, Compute, lambda i: i.op == "0.q")
    run = plan.instructions[at]
    assert isinstance(run, Compute)
    wrong = edited(plan, at, replace(run, reads=(TensorId("embed.out"),)))
    assert broken_rule(wrong, small_graph) == "an op reads its inputs"


def test_a_freed_resident_weight_is_caught(small_graph: Graph, device: Device) -> None:
    found = STRATEGIES["greedy"].plan(small_graph, device, 10**9)
    assert found.resident
    freed = replace(found, instructions=(*found.instructions, Free(tensor=found.resident[0].tensor)))
    assert broken_rule(freed, small_graph) == "resident tensors stay"


def test_a_plan_for_another_graph_is_caught(plan: Plan, qwen_graph: Graph) -> None:
    assert broken_rule(plan, qwen_graph) == "same graph"


def test_a_plan_that_calls_its_gradient_an_estimate_is_caught(plan: Plan, small_graph: Graph) -> None:
    assert broken_rule(replace(plan, exact=False), small_graph) == "exact where it has a backward"


def test_an_activation_among_the_residents_is_caught(plan: Plan, small_graph: Graph) -> None:
    resident = replace(plan, resident=(_place(plan, "embed.out"),))
    assert broken_rule(resident, small_graph) == "resident tensors are weights"


def test_a_tensor_written_twice_is_caught(plan: Plan, small_graph: Graph) -> None:
    at = first(plan, Unpack)
    twice = edited(plan, at, plan.instructions[at], plan.instructions[at])
    assert broken_rule(twice, small_graph) == "write only what is not in the arena"


def test_a_weight_unpacked_into_another_tensor_is_caught(plan: Plan, small_graph: Graph) -> None:
    at = first(plan, Unpack)
    unpack = plan.instructions[at]
    assert isinstance(unpack, Unpack)
    other = next(weight for weight in small_graph.weights if weight != unpack.weight)
    wrong = replace(unpack, place=replace(unpack.place, tensor=TensorId(other)))
    assert broken_rule(edited(plan, at, wrong), small_graph) == "unpack into the weight's own tensor"


def test_a_copied_weight_that_is_unpacked_whole_is_caught(small_graph: Graph, device: Device) -> None:
    graph = STRATEGIES["mlx"].graph(small_graph)
    found = STRATEGIES["mlx"].plan(graph, device, 10**9)
    weight = next(iter(graph.weights))
    place = Place(tensor=TensorId(weight), offset=0, nbytes=align(graph.tensors[TensorId(weight)].nbytes))
    whole = edited(found, 0, Unpack(weight=weight, place=place), found.instructions[0])
    assert broken_rule(whole, graph) == "copied weights are never unpacked whole"


@pytest.mark.parametrize(
    ("op", "changes", "rule"),
    [
        ("3.norm2.backward", {"updates": ()}, "an op updates its accumulators"),
        ("0.q", {"writes": ()}, "an op writes its outputs"),
        ("0.glu", {"streamed": (WeightId("0.up.weight"),)}, "an op streams its own weights"),
        ("0.glu", {"tile": 64}, "the head has a tile, nothing else has"),
        ("head", {"tile": 0}, "the head has a tile, nothing else has"),
        ("0.glu", {"tile": -64}, "a tile is a number of logits"),
    ],
)
def test_a_compute_that_says_other_than_its_op_is_caught(
    op: str, changes: dict[str, object], rule: str, plan: Plan, small_graph: Graph
) -> None:
    at = first(plan, Compute, lambda i: i.op == op)
    run = plan.instructions[at]
    assert isinstance(run, Compute)
    assert broken_rule(edited(plan, at, replace(run, **changes)), small_graph) == rule  # type: ignore[arg-type]


def test_a_second_run_of_a_backward_op_is_caught(plan: Plan, small_graph: Graph) -> None:
    at = first(plan, Compute, lambda i: i.op == "3.down.backward")
    run = plan.instructions[at]
    assert isinstance(run, Compute)
    twice = edited(plan, at, run, replace(run, recompute=True))
    assert broken_rule(twice, small_graph) == "only forward ops are recomputed"


def test_an_embedding_that_reads_an_unpacked_matrix_is_caught(plan: Plan, small_graph: Graph) -> None:
    at = first(plan, Compute, lambda i: i.op == "embed")
    run = plan.instructions[at]
    assert isinstance(run, Compute)
    (weight,) = small_graph.op[OpId("embed")].weights
    tensor = TensorId(weight)
    top = Place(tensor=tensor, offset=align(plan.arena_bytes), nbytes=align(small_graph.tensors[tensor].nbytes))
    roomy = replace(plan, arena_bytes=top.end, resident=(top,))
    whole = edited(roomy, at, replace(run, reads=(*run.reads, tensor), streamed=()))
    assert broken_rule(whole, small_graph) == "the embedding is gathered, never unpacked"


def test_every_rule_is_broken_by_a_test_here() -> None:
    """The rules that check.py names, each named again in this file."""
    calls = [node for node in ast.walk(ast.parse(Path(checker.__file__).read_text())) if isinstance(node, ast.Call)]
    named = [call.args[1] for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "require"]
    named += [call.args[0] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "InvalidPlan"]
    rules = {ast.literal_eval(name) for name in named if isinstance(name, ast.Constant)}
    assert len(rules) >= 30
    here = Path(__file__).read_text()
    assert not {rule for rule in rules if f'"{rule}"' not in here}
