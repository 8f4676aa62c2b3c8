"""The graph of a training step: order, what is pruned, what lives outside the arena."""

import itertools

import pytest

from mebp.errors import InputError
from mebp.models.build import build_graph
from mebp.models.config import LINEARS
from mebp.models.graph import Graph
from mebp.models.kind.attention import SPANS, attended_pairs, query_tiles, score_rows, score_span
from mebp.models.kind.table import num_kernels
from mebp.models.op import Dims
from mebp.models.tensor import Role, TensorId
from mebp.models.view import critical_path, dataflow, dominators, live_after
from mebp.models.workload import Lora, parse_targets
from tests.conftest import small_config, small_workload


def test_every_op_reads_only_what_earlier_ops_made(small_graph: Graph) -> None:
    made: set[TensorId] = set()
    for op in small_graph.ops:
        assert set(op.touched) <= made, op.id
        made |= set(op.writes.values())


def test_every_tensor_that_is_read_in_backward_is_declared_saved_by_its_kind(small_graph: Graph) -> None:
    """The kind table's `saves` is what the graph's backward ops read of each kind's inputs and outputs."""
    forward = {op.id: op for op in small_graph.ops if not op.backward}
    for op in small_graph.ops:
        if op.backward and not op.kind.changes_adapters:
            twin = forward.get(op.id.removesuffix(".backward"))  # type: ignore[call-overload]
            assert twin is not None
            saved = {{**twin.reads, **twin.writes}[slot] for slot in twin.kind.saves}
            saved |= {tensor for other in small_graph.ops for tensor in other.updates.values()}  # gradients have taken their places
            assert {t for t in op.reads.values() if small_graph.tensors[t].role is Role.ACTIVATION} <= saved


def test_the_first_layer_computes_no_gradient_that_nothing_needs(small_graph: Graph) -> None:
    assert "0.norm1.backward" not in small_graph.op
    assert not small_graph.op["0.q.backward"].weights  # type: ignore[index]
    assert small_graph.op["1.q.backward"].weights  # type: ignore[index]


@pytest.mark.parametrize("targets", [("q",), ("down",), ("o", "up"), LINEARS])
def test_gradients_are_made_for_the_targeted_linears_only(targets: tuple[str, ...]) -> None:
    graph = build_graph(small_config(), small_workload(lora=Lora(rank=4, targets=targets)))  # type: ignore[arg-type]
    made = {tensor for op in graph.ops for slot, tensor in op.writes.items() if slot in ("dA", "dB")}
    assert made == {f"{layer}.{name}.{slot}" for layer in range(4) for name in targets for slot in ("dA", "dB")}


def test_a_rank_larger_than_a_dimension_is_refused() -> None:
    with pytest.raises(InputError, match="32"):
        build_graph(small_config(), small_workload(lora=Lora(rank=33)))


def test_a_format_that_does_not_divide_a_row_is_refused_with_a_remedy() -> None:
    with pytest.raises(InputError, match="int4-g32"):
        build_graph(small_config(hidden=48), small_workload())


@pytest.mark.parametrize("text", ["", "z", "q,z", " , "])
def test_unknown_targets_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="targets"):
        parse_targets(text)


@pytest.mark.parametrize(("seq", "window"), [(1, 0), (7, 0), (7, 3), (7, 7), (7, 9), (64, 5)])
def test_attended_pairs_equal_a_count(seq: int, window: int) -> None:
    count = sum(1 for q in range(seq) for k in range(q + 1) if not window or q - k < window)
    assert attended_pairs(seq, window) == count


def test_dominators_are_the_residual_stream(small_graph: Graph) -> None:
    names = dominators(small_graph)
    assert [f"{layer}.residual2" for layer in range(4)] == [name for name in names if name.endswith("residual2")]


def test_the_live_set_after_a_layer_is_what_backward_will_ask_for(small_graph: Graph) -> None:
    cut = live_after(small_graph, small_graph.ops[15].id)
    assert "0.residual2.out" in cut
    assert "0.glu.out" in cut
    assert "0.q.out" not in cut  # rope's backward reads nothing of the forward


def test_the_critical_path_is_a_path_and_as_long_as_its_ops(small_graph: Graph) -> None:
    length, path = critical_path(small_graph, lambda op: 1 + len(op.id))
    view = dataflow(small_graph)
    assert all(view.has_edge(a, b) for a, b in itertools.pairwise(path))
    assert length == sum(1 + len(name) for name in path)


def test_kernels_are_counted_by_shape_and_no_more_of_them_at_any_length() -> None:
    """Every layer shares its shapes; twice the tokens are other shapes and no more of them, but for a few numbers of keys."""
    few, more = (num_kernels(build_graph(small_config(layers=n), small_workload()).ops) for n in (2, 6))
    assert few == more
    counts = [num_kernels(build_graph(small_config(), small_workload(seq_len=n)).ops) for n in (64, 512, 1024, 2048, 8192, 32768)]
    assert counts[:2] == [few, few]
    assert max(counts) <= few + 3 * SPANS  # of which a last tile of fewer queries is one


@pytest.mark.parametrize(("seq", "window"), [(256, 0), (1024, 0), (3000, 0), (3000, 512), (8192, 1024), (100, 7), (17, 1)])
def test_tiles_of_queries_have_all_keys_that_they_see_in_a_few_sizes(seq: int, window: int) -> None:
    dims = Dims(rows=seq, batch=1, seq=seq, heads=14, kv_heads=2, head_dim=64, window=window)
    tiles = list(query_tiles(dims, score_rows(dims)))
    assert [tile.start for tile in tiles] == [0, *(tile.end for tile in tiles[:-1])]
    assert tiles[-1].end == seq
    for tile in tiles:
        assert 0 <= tile.low <= (max(0, tile.start - window + 1) if window else 0)
        assert tile.end <= tile.high <= seq
        assert tile.high - tile.low <= score_span(dims)
    assert len({tile.high - tile.low for tile in tiles}) <= SPANS + 1
