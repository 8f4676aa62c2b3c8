"""How fast any plan can be: a bound from prices on memory and on flash writes, and what each option costs above it.

When the head runs, all forward work is done and no backward work: whatever backward needs of the forward is then in the arena, on
flash, or will be recomputed. Relaxing the two limits that tie layers together there (bytes in the arena, bytes written) with prices
(Lagrange multipliers) leaves one cheapest option a layer, so the bound is a sum; the best prices make it largest. Excluding every
option whose cost above its layer's cheapest is more than a known plan's distance to the bound loses no better plan (reduced-cost
fixing). No order and no number of recomputations is assumed: with `beyond` the menus also let a layer's input be made again from the
layer below, at no less than its last ops cost, so the bound holds for plans with segments of any length too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mebp.planner.chain import Holdable, Menu, Stretch, linear_of
from mebp.planner.menu import Option
from mebp.planner.recipe import Saving
from mebp.planner.variables import HeadOption

Floats = npt.NDArray[np.float64]
BISECTIONS = 60
GOLDEN = (5**0.5 - 1) / 2
WRITE_STEPS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What a byte costs, in ns: one in the arena while the head runs, one written to flash in a step."""

    memory: float = 0.0
    written: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limited:
    """The two limits that prices stand for, in bytes, and the time that no choice changes."""

    room: int
    cap: int
    base_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """No plan of the class is faster than `bound_ns`; `reduced_ns[i]` are the costs of menu i's options above its cheapest."""

    bound_ns: int
    prices: Prices
    reduced_ns: Sequence[Floats]


class Relaxation:
    """The menus of a chain as arrays, ready to be priced.

    The memory price is on one moment: the head, where all layers' kept bytes lie beside it, or (`at_last_layer`) the last layer's peak,
    where those of the others do. The second bounds only plans whose layers need the workspace that their options say.
    """

    def __init__(
        self,
        stretches: Sequence[Stretch],
        heads: Sequence[HeadOption],
        head_weight: Holdable | None,
        limited: Limited,
        *,
        beyond: Mapping[int, int] | None = None,
        at_last_layer: bool = False,
    ) -> None:
        self.menus = distinct_menus(stretches)
        sizes = dict.fromkeys(map(id, self.menus), 0)
        for stretch in stretches:
            sizes[id(stretch.menu)] += len(stretch.layers)
        last = stretches[-1].menu
        sizes[id(last)] -= at_last_layer
        extra = beyond or {}
        self._tables = [_Table(menu, sizes[id(menu)], limited.room, beyond=extra.get(menu.source.number)) for menu in self.menus]
        if at_last_layer:
            self._tables.append(_Table(last, 1, limited.room, column="peak"))
        self._heads = [(float(head.duration_ns), 0.0 if at_last_layer else float(head.peak)) for head in heads]
        self._head_weight = head_weight
        self._limited = limited

    @property
    def feasible(self) -> bool:
        """Whether every layer has an option that fits the room on its own."""
        return all(table.open.any() for table in self._tables)

    def best(self) -> Bound:
        """The bound at the best prices."""
        prices = self._best_prices()
        value, _, _ = self._at(prices)
        above: dict[int, list[Floats]] = {id(menu): [] for menu in self.menus}
        for table in self._tables:
            costs = table.costs(prices)[: len(table.menu.options)]
            above[id(table.menu)].append(costs - costs.min())
        reduced = [np.min(above[id(menu)], axis=0) for menu in self.menus]
        return Bound(bound_ns=int(value - 1e-9 * abs(value)), prices=prices, reduced_ns=reduced)

    def _at(self, prices: Prices) -> tuple[float, float, float]:
        """The relaxed step time at `prices`, and the bytes that its cheapest options keep and store."""
        limited = self._limited
        value = limited.base_ns - prices.memory * limited.room - prices.written * limited.cap
        kept = stored = 0.0
        for table in self._tables:
            cost, table_kept, table_stored = table.cheapest(prices)
            value, kept, stored = value + table.size * cost, kept + table.size * table_kept, stored + table.size * table_stored
        cost, peak = min((ns + prices.memory * nbytes, nbytes) for ns, nbytes in self._heads)
        value, kept = value + cost, kept + peak
        weight = self._head_weight
        if weight and prices.memory * weight.nbytes < weight.unpacking_ns * weight.uses:
            value, kept = value + prices.memory * weight.nbytes - weight.unpacking_ns * weight.uses, kept + weight.nbytes
        return value, kept, stored

    def _best_prices(self) -> Prices:
        free = self._best_memory(0.0)
        if self._at(free)[2] <= self._limited.cap:
            return free
        low, high = 0.0, self._highest_price()
        points = {w: self._value(w) for w in (high - GOLDEN * (high - low), low + GOLDEN * (high - low))}
        for _ in range(WRITE_STEPS):
            left, right = sorted(points)
            if points[left] >= points[right]:
                high, points = right, {left: points[left]}
                points[high - GOLDEN * (high - low)] = self._value(high - GOLDEN * (high - low))
            else:
                low, points = left, {right: points[right]}
                points[low + GOLDEN * (high - low)] = self._value(low + GOLDEN * (high - low))
        return self._best_memory(max(points, key=lambda w: points[w]))

    def _value(self, written: float) -> float:
        return self._at(self._best_memory(written))[0]

    def _highest_price(self) -> float:
        return max(1.0, max(float(np.max(table.time / np.maximum(table.kept, 64.0))) for table in self._tables))

    def _best_memory(self, written: float) -> Prices:
        """The relaxed time is concave in the memory price; its slope is what is kept less the room."""
        if self._at(Prices(written=written))[1] <= self._limited.room:
            return Prices(written=written)
        low, high = 0.0, 1.0
        while self._at(Prices(memory=high, written=written))[1] > self._limited.room and high < 1e9:
            low, high = high, high * 4
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            if self._at(Prices(memory=middle, written=written))[1] > self._limited.room:
                low = middle
            else:
                high = middle
        ends = [Prices(memory=price, written=written) for price in (low, high)]
        return max(ends, key=lambda prices: self._at(prices)[0])


def distinct_menus(stretches: Sequence[Stretch]) -> list[Menu]:
    """Every menu once, in the order of first use."""
    return list({id(stretch.menu): stretch.menu for stretch in stretches}.values())


class _Table:
    """One menu as arrays over its options (then, with `beyond`, over the same options with their input made again)."""

    def __init__(self, menu: Menu, size: int, room: int, *, beyond: int | None = None, column: str = "kept_bytes") -> None:
        self.menu, self.size = menu, size
        options, source = menu.options, menu.source.input
        self.kept = _column(options, column)
        self.stored = _column(options, "stored_bytes")
        self.time = _column(options, "recompute_ns")
        self.open = _column(options, "peak") <= room
        again = np.array([[any(linear_of(w) == h.linear for w in o.again) for h in menu.holdables] for o in options], dtype=float)
        self.again = again.reshape(len(options), len(menu.holdables))
        if beyond is not None:
            self.open = np.ones(2 * len(options), dtype=bool)  # another order may need less workspace than any option here
            drop_kept = np.array([o.input_bytes * (o.saving.get(source) is Saving.KEEP) for o in options], dtype=float)
            drop_stored = np.array([o.input_bytes * (o.saving.get(source) is Saving.STORE) for o in options], dtype=float)
            self.kept = np.concatenate((self.kept, self.kept - drop_kept))
            self.stored = np.concatenate((self.stored, self.stored - drop_stored))
            self.time = np.concatenate((self.time, self.time + beyond))
            self.again = np.concatenate((self.again, self.again))
        self.nbytes, self.unpacking, self.uses = (
            np.array([getattr(h, field) for h in menu.holdables], dtype=float) for field in ("nbytes", "unpacking_ns", "uses")
        )

    def costs(self, prices: Prices) -> Floats:
        """Time and priced bytes of each option, with the weights resident that pay for themselves."""
        own = self.time + prices.memory * self.kept + prices.written * self.stored
        weights = np.minimum(0.0, prices.memory * self.nbytes - self.unpacking * (self.uses + self.again)).sum(axis=1)
        costs: Floats = np.where(self.open, own + weights, np.inf)
        return costs

    def cheapest(self, prices: Prices) -> tuple[float, float, float]:
        """Cost, bytes in the arena at the head and bytes written of the cheapest option."""
        costs = self.costs(prices)
        at = int(np.argmin(costs))
        resident = prices.memory * self.nbytes < self.unpacking * (self.uses + self.again[at])
        return float(costs[at]), float(self.kept[at] + self.nbytes[resident].sum()), float(self.stored[at])


def _column(options: Sequence[Option], field: str) -> Floats:
    return np.array([getattr(option, field) for option in options], dtype=float)
