"""Each rule of the placement model: trivially feasible, just feasible, just infeasible, on two classes of layers by hand."""

from types import SimpleNamespace

import pytest
from ortools.sat.python import cp_model

from mebp.planner.layer.chain import Menu, Stretch, make_menu
from mebp.planner.layer.menu import Option
from mebp.planner.solver.hint import uniform_plans
from mebp.planner.solver.rules import FitsTheArena, FlashKeepsUp, NothingResident, OneOptionPerLayer, ResidentReadAgain
from mebp.planner.solver.variables import HeadOption, Variables


def option(kept: int, stored: int, ns: int, peak: int) -> Option:
    """An option that keeps `kept` bytes, stores `stored`, recomputes for `ns`, and peaks at `peak` with what it keeps."""
    return Option(
        saving={},
        hold=frozenset(),
        again=frozenset(),
        input_bytes=10,
        kept_bytes=kept,
        stored_bytes=stored,
        store_ns=stored,
        load_ns=stored,
        recompute_ns=ns,
        forward_peak=0,
        backward_peak=peak,
    )


KEEP, STORE, AGAIN = option(100, 0, 0, 130), option(0, 100, 0, 130), option(10, 0, 50, 160)


def stretch(first: int, count: int, menu: Menu) -> Stretch:
    """`count` layers from number `first` on."""
    layers = tuple(SimpleNamespace(number=number) for number in range(first, first + count))
    return Stretch(layers=layers, menu=menu)  # type: ignore[arg-type]


def menu_of(*options: Option) -> Menu:
    return make_menu(SimpleNamespace(number=0, input="x"), options, ())  # type: ignore[arg-type]


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
def test_the_head_lies_beside_all_that_is_kept(head_peak: int, best: int | None) -> None:
    chain = Chain(head_peak)
    FitsTheArena(room=600).post(chain.model, chain.variables)
    FlashKeepsUp(cap_bytes=0, store_ns=0, load_ns=0).post(chain.model, chain.variables)
    assert chain.best() == best


@pytest.mark.parametrize(("cap", "time", "kept"), [(400, 400, 100), (399, 400, 110), (400, 399, 110), (0, 0, 140)])
def test_stores_stay_within_cap_and_time(cap: int, time: int, kept: int) -> None:
    chain = Chain()
    FlashKeepsUp(cap_bytes=cap, store_ns=time, load_ns=time).post(chain.model, chain.variables)
    assert chain.best("kept_bytes") == kept


def test_rules_on_resident_weights_allow_none() -> None:
    chain = Chain()
    ResidentReadAgain().post(chain.model, chain.variables)
    NothingResident().post(chain.model, chain.variables)
    assert chain.best() == 0


def test_uniform_plans_know_their_room() -> None:
    chain = Chain()
    plans = uniform_plans(chain.stretches, chain.variables.heads)
    assert {(plan.room, plan.stored, plan.extra_ns) for plan in plans} == {(530, 0, 0), (230, 400, 0), (290, 0, 200)}
