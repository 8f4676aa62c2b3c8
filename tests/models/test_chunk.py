"""Chunked graphs: every token once, the same work, and a scratch in which nothing overlaps."""

from dataclasses import replace
from itertools import pairwise

import pytest

from mebp.models.build import build_graph
from mebp.models.chunk import chunk_extents, spans
from mebp.models.graph import Graph
from mebp.models.kind.attention import attended_pairs
from mebp.models.kind.table import dense_flops
from mebp.models.op import flat
from mebp.models.tensor import Role, align
from mebp.models.workload import Lora
from mebp.planner.recipe.strategies import STRATEGIES
from mebp.sim.profile import load_device
from tests.conftest import small_config, small_workload

SHAPES = [(100, 1, 32), (96, 3, 32), (7, 10, 20), (64, 2, 64), (5, 4, 1), (9, 2, 9)]


def graph(seq_len: int, batch_size: int, chunk: int, **changes: object) -> Graph:
    return build_graph(small_config(), small_workload(seq_len=seq_len, batch_size=batch_size, chunk=chunk, **changes))


@pytest.mark.parametrize(("seq_len", "batch_size", "chunk"), SHAPES)
def test_spans_are_all_tokens_in_order(seq_len: int, batch_size: int, chunk: int) -> None:
    workload = small_workload(seq_len=seq_len, batch_size=batch_size, chunk=chunk)
    found = list(spans(workload))
    assert [span.rows.start for _, span in found] == [0, *(span.rows.stop for _, span in found[:-1])]
    assert found[-1][1].rows.stop == workload.tokens
    for number, span in found:
        assert span.rows.stop - span.rows.start == chunk_extents(workload)[number].tokens <= chunk
        assert span.first == span.rows.start % seq_len
        assert span.keys == slice(span.rows.start - span.first, span.rows.stop)


@pytest.mark.parametrize("window", [0, 3, 50])
@pytest.mark.parametrize(("seq_len", "batch_size", "chunk"), SHAPES)
def test_chunks_attend_to_as_many_pairs_as_the_whole(seq_len: int, batch_size: int, chunk: int, window: int) -> None:
    extents = chunk_extents(small_workload(seq_len=seq_len, batch_size=batch_size, chunk=chunk))
    pairs = sum(extent.count * extent.batch * extent.pairs(window) for extent in extents)
    assert pairs == pytest.approx(batch_size * attended_pairs(seq_len, window), abs=batch_size * seq_len)  # averages are whole


@pytest.mark.parametrize(("seq_len", "batch_size", "chunk"), SHAPES)
def test_chunks_have_the_products_of_the_whole(seq_len: int, batch_size: int, chunk: int) -> None:
    whole, chunked = graph(seq_len, batch_size, 0), graph(seq_len, batch_size, chunk)
    assert dense_flops(chunked.ops) == dense_flops(whole.ops)
    assert chunked.adapters == whole.adapters
    assert chunked.stream == whole.stream
    assert chunked.signature != whole.signature


def test_nothing_that_spans_the_sequence_is_wider_than_the_stream() -> None:
    chunked = graph(96, 2, 16)
    spanning = [t for t in chunked.tensors.values() if t.role in (Role.ACTIVATION, Role.GRADIENT)]
    assert {t.shape[0] for t in spanning} == {chunked.workload.tokens}
    assert {t.shape[1] for t in spanning} == {chunked.config.hidden, chunked.config.kv_width}


@pytest.mark.parametrize("chunk", [16, 40])
def test_what_is_live_together_in_a_chunk_overlaps_nowhere(chunk: int) -> None:
    chunked = graph(100, 1, chunk)
    seen = 0
    for op in (op for op in chunked.ops if op.chunks):
        for some, layout in zip(op.chunks, chunked.layouts(op, streamed=op.weights, tile=16), strict=True):
            last = {t: at for at, inner in enumerate(some.ops) for t in (*inner.touched, *inner.writes.values())}
            first = {t: at for at, inner in reversed(list(enumerate(some.ops))) for t in inner.writes.values()}
            for at in range(len(some.ops)):
                live = [t for t in some.tensors if first[t] <= at <= last[t]]
                places = [(layout.tensors[t], layout.tensors[t] + align(some.tensors[t].nbytes)) for t in live]
                places.append((layout.offsets[at], layout.offsets[at] + layout.scratch[at].nbytes))
                places = sorted(place for place in places if place[0] < place[1])
                assert all(before[1] <= after[0] for before, after in pairwise(places))
                assert all(end <= layout.nbytes for _, end in places)
                seen += len(places)
    assert seen > 100


@pytest.mark.parametrize("chunk", [0, 16])
@pytest.mark.parametrize("strategy", ["checkpoint-1", "mesp", "keep-all"])
def test_no_plan_has_a_smaller_arena_than_its_largest_op(strategy: str, chunk: int) -> None:
    some = graph(64, 1, chunk)
    assert STRATEGIES[strategy].plan(some, load_device("iphone15promax"), 0).arena_bytes >= some.largest_op_bytes


def test_a_chunk_as_long_as_the_batch_is_one() -> None:
    some = graph(32, 2, 1000)
    assert next((count, op.dims.rows) for count, op in flat(some.ops) if op.kind.name == "linear") == (1, 64)


@pytest.mark.parametrize("method", ["evaluate", "mezo"])
def test_other_methods_run_in_chunks_too(method: str) -> None:
    workload = replace(small_workload(seq_len=40, chunk=16), method=method)
    assert all(op.chunks for op in build_graph(small_config(), workload).ops if op.layer is not None)


def test_layers_below_the_trained_ones_run_forward_alone() -> None:
    lora = Lora(rank=2, layers=2)
    some = graph(40, 1, 16, lora=lora)
    assert [bool(layer.backward) for layer in some.layers] == [False, False, True, True]


@pytest.mark.parametrize(
    ("seq_len", "batch_size", "chunk", "tokens"), [(300, 4, 512, 300), (300, 4, 700, 600), (300, 4, 100, 100), (64, 2, 0, 128)]
)
def test_what_products_run_on_at_a_time(seq_len: int, batch_size: int, chunk: int, tokens: int) -> None:
    some = graph(seq_len, batch_size, chunk)
    assert some.workload.chunk_tokens == tokens
    assert max(op.dims.rows for _, op in flat(some.ops) if op.kind.is_linear) == tokens
