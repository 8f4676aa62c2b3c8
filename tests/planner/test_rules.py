"""Each rule of the placement model: trivially feasible, just feasible, just infeasible, on two classes of layers by hand."""

from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest
from ortools.sat.python import cp_model

from mebp.planner.layer.chain import Candidate, Menu, Stretch, make_menu
from mebp.planner.layer.option import Option
from mebp.planner.solver.hint import uniform_plans
from mebp.planner.solver.objective import extra_time_ns
from mebp.planner.solver.rules import (
    FitsTheArena,
    FlashKeepsUp,
    NothingResident,
    OneOptionPerLayer,
    ResidentReadAgain,
    ResidentWhereStreamed,
    rules_of,
)
from mebp.planner.solver.variables import HeadOption, Variables


def option(kept: int, stored: int, ns: int, peak: int) -> Option:
    """An option that keeps `kept` bytes, stores `stored`, recomputes for `ns`, and peaks at `peak` with what it keeps."""
    return Option(
        saving={},
        shared=frozenset(),
        read_again=frozenset(),
        input_bytes=10,
        kept_bytes=kept,
        stored_bytes=stored,
        store_ns=stored,
        load_ns=stored,
        recompute_ns=ns,
        once_ns=ns,
        forward_peak=0,
        backward_peak=peak,
    )


KEEP, STORE, AGAIN = option(100, 0, 0, 130), option(0, 100, 0, 130), option(10, 0, 50, 160)


def stretch(first: int, size: int, menu: Menu) -> Stretch:
    """`size` layers from number `first` on."""
    layers = tuple(SimpleNamespace(number=number) for number in range(first, first + size))
    return Stretch(layers=layers, menu=menu)  # type: ignore[arg-type]


NUMBERS = count()


def menu_of(*options: Option, candidates: tuple[Candidate, ...] = ()) -> Menu:
    return make_menu(next(NUMBERS), SimpleNamespace(number=0, input="x"), options, candidates)  # type: ignore[arg-type]


class Chain:
    """Four alike layers and one before them, with the variables of their placement."""

    def __init__(self, head_peak: int = 0) -> None:
        self.model = cp_model.CpModel()
        self.stretches = [stretch(0, 1, menu_of(KEEP)), stretch(1, 4, menu_of(KEEP, STORE, AGAIN))]
        everything = [range(len(s.menu.options)) for s in self.stretches]
        head = HeadOption(tile=16, peak=head_peak, duration_ns=0)
        self.variables = Variables(self.model, self.stretches, everything, [head], None)
        OneOptionPerLayer().post(self.model, self.variables)

    def best(self, amount: str = "recompute_ns") -> int | None:
        """The least total of `amount`, or None where nothing is feasible."""
        self.model.minimize(self.variables.everywhere(amount))
        solver = cp_model.CpSolver()
        return round(solver.objective_value) if solver.solve(self.model) == cp_model.OPTIMAL else None


def test_every_layer_takes_one_option() -> None:
    chain = Chain()
    assert chain.best("kept_bytes") == 100  # the first layer's only option; the others store


@pytest.mark.parametrize(
    ("room", "best"),
    [
        (10_000, 0),  # all keep: 500 bytes kept, the last peaks at 400 + 130
        (530, 0),
        (529, 50),  # one layer recomputes, and comes first
        (280, 150),  # three recompute, the third at 100 + 2 x 10 + 160; the last keeps, at 100 + 3 x 10 + 130
        (279, None),
    ],
)
def test_kept_bytes_and_peaks_fit_the_room(room: int, best: int | None) -> None:
    chain = Chain()
    FitsTheArena(room=room).post(chain.model, chain.variables)
    FlashKeepsUp(cap_bytes=0, store_ns=0, load_ns=0).post(chain.model, chain.variables)
    assert chain.best() == best


@pytest.mark.parametrize(("head_peak", "best"), [(0, 0), (100, 0), (101, 50), (1000, None)])
def test_the_head_comes_on_top_of_all_that_is_kept(head_peak: int, best: int | None) -> None:
    chain = Chain(head_peak)
    FitsTheArena(room=600).post(chain.model, chain.variables)
    FlashKeepsUp(cap_bytes=0, store_ns=0, load_ns=0).post(chain.model, chain.variables)
    assert chain.best() == best


@pytest.mark.parametrize(("cap", "time", "kept"), [(400, 400, 100), (399, 400, 110), (400, 399, 110), (0, 0, 140)])
def test_stores_stay_within_cap_and_time(cap: int, time: int, kept: int) -> None:
    chain = Chain()
    FlashKeepsUp(cap_bytes=cap, store_ns=time, load_ns=time).post(chain.model, chain.variables)
    assert chain.best("kept_bytes") == kept


WEIGHT = Candidate(role="q", nbytes=60, streaming_ns=7, uses=2, chunks=1)
READ_AGAIN = replace(option(0, 0, 10, 30), read_again=frozenset({"q"}))
SEGMENT = replace(option(0, 0, 5, 30), layers=2)


class Weights:
    """Four layers that recompute their q, each with its weight to keep resident, or that are two segments."""

    def __init__(self, *options: Option) -> None:
        self.model = cp_model.CpModel()
        self.stretch = stretch(0, 4, menu_of(*options, candidates=(WEIGHT,)))
        head = HeadOption(tile=16, peak=0, duration_ns=0)
        everything = [range(len(self.stretch.menu.options))]
        self.variables = Variables(self.model, [self.stretch], everything, [head], None)
        OneOptionPerLayer().post(self.model, self.variables)

    def least_ns(self) -> int:
        """The least time that the rules allow."""
        self.model.minimize(extra_time_ns(self.variables))
        solver = cp_model.CpSolver()
        assert solver.solve(self.model) == cp_model.OPTIMAL
        return round(solver.objective_value)


@pytest.mark.parametrize(("room", "resident"), [(30, 0), (89, 0), (90, 1), (150, 2), (269, 3), (270, 4), (1000, 4)])
def test_resident_weights_take_room_and_save_their_unpacking_of_every_use(room: int, resident: int) -> None:
    """Each takes 60 bytes on top of the layer's 30, and saves two uses and the third that recomputation makes."""
    weights = Weights(READ_AGAIN)
    ResidentReadAgain().post(weights.model, weights.variables)
    FitsTheArena(room=room).post(weights.model, weights.variables)
    assert weights.least_ns() == 4 * 10 - resident * 3 * 7


def test_only_layers_that_read_a_weight_again_save_a_third_unpacking() -> None:
    """Two layers recompute without q: there residence saves two uses only."""
    weights = Weights(READ_AGAIN, option(0, 0, 10, 30))
    ResidentReadAgain().post(weights.model, weights.variables)
    counts = {bool(o.read_again): count for o, count in zip(weights.variables.options[0], weights.variables.count[0], strict=True)}
    weights.model.add(counts[True] == 2)
    assert weights.least_ns() == 4 * 10 - 4 * 2 * 7 - 2 * 7


@pytest.mark.parametrize(("segments", "resident"), [(0, 4), (1, 2), (2, 0)])
def test_weights_of_segments_are_not_resident(segments: int, resident: int) -> None:
    weights = Weights(option(0, 0, 10, 30), SEGMENT)
    ResidentWhereStreamed().post(weights.model, weights.variables)
    ResidentReadAgain().post(weights.model, weights.variables)
    counts = {o.layers: count for o, count in zip(weights.variables.options[0], weights.variables.count[0], strict=True)}
    weights.model.add(counts[2] == segments)
    assert weights.least_ns() == 10 * (4 - 2 * segments) + 5 * segments - resident * 2 * 7


def test_nothing_is_resident_where_nothing_may_be() -> None:
    weights = Weights(READ_AGAIN)
    ResidentReadAgain().post(weights.model, weights.variables)
    NothingResident().post(weights.model, weights.variables)
    assert weights.least_ns() == 4 * 10


def test_the_list_of_rules_holds_each_once_and_residence_is_its_only_choice() -> None:
    flash = FlashKeepsUp(cap_bytes=0, store_ns=0, load_ns=0)
    rules = rules_of(100, flash)
    assert len({type(rule) for rule in rules}) == len(rules) == 5
    assert rules_of(100, flash, residence=False) == (*rules, NothingResident())


def test_uniform_plans_know_their_room() -> None:
    chain = Chain()
    plans = uniform_plans(chain.stretches, chain.variables.heads)
    assert {(plan.room, plan.stored, plan.extra_ns) for plan in plans} == {(530, 0, 0), (230, 400, 0), (290, 0, 200)}
