"""How fast any plan can be: a bound from prices on memory and on flash writes, and what each option costs above it.

When the head runs, all forward work is done and no backward work: whatever backward needs of the forward is then in the arena, on
flash, or will be recomputed. Relaxing the two limits that tie layers together there (bytes in the arena, bytes written) with prices
(Lagrange multipliers) leaves one cheapest option per layer, so the bound is a sum; the best prices make it largest. Excluding every
option whose cost above its layer's cheapest is more than a known plan's distance to the bound loses no better plan (reduced-cost
fixing). No order and no number of recomputations is assumed: with `input_ns` the menus also let a layer's input be recomputed from
the layer below, at no less than its last ops cost, so the bound holds for plans with segments of any length too.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mebp.planner.layer.chain import Candidate, Menu, Stretch
from mebp.planner.layer.option import Option
from mebp.planner.recipe.recipe import Saving
from mebp.planner.solver.variables import HeadOption

Floats = npt.NDArray[np.float64]
TANGENTS = 60
HIGHEST_PRICE = 1e9  # ns per byte: more than any recomputation
GOLDEN = (5**0.5 - 1) / 2
WRITE_STEPS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What a byte costs, in ns: one in the arena while the head runs, one written to flash per step."""

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

    The memory price is on one moment: the head, where all layers' kept bytes come on top of its own, or (`at_last_layer`) the last
    layer's peak, where those of the others do. The second bounds only plans whose layers need the workspace that their options say.
    """

    def __init__(
        self,
        stretches: Sequence[Stretch],
        heads: Sequence[HeadOption],
        head_weight: Candidate | None,
        limited: Limited,
        *,
        input_ns: Mapping[int, int] | None = None,
        at_last_layer: bool = False,
    ) -> None:
        """`input_ns` is, by layer, the least time of recomputing its input from the layer below; without it no layer may."""
        self.menus = distinct_menus(stretches)
        alike = Counter((s.menu.number, (input_ns or {}).get(layer.number)) for s in stretches for layer in s.layers)
        last, again_ns = stretches[-1].menu, (input_ns or {}).get(stretches[-1].layers[-1].number)
        alike[last.number, again_ns] -= at_last_layer
        menus = {menu.number: menu for menu in self.menus}
        self._tables = [_Table(menus[number], size, limited.room, input_ns=ns) for (number, ns), size in alike.items() if size]
        if at_last_layer:
            assert all(option.layers == 1 for option in last.options), "the last layer is a stretch of its own"
            column = None if input_ns else "peak"  # of all plans no more is known than what one op needs
            self._tables.append(_Table(last, 1, limited.room, input_ns=again_ns, column=column))
        self._heads = [(float(head.duration_ns), 0.0 if at_last_layer else float(head.peak)) for head in heads]
        self._head_weight = head_weight
        self._limited = limited
        self._best: Bound | None = None

    @property
    def feasible(self) -> bool:
        """False where a layer has no option that fits the room on its own, or no plan is as slow as the bound: then none exists."""
        if not all(table.open.any() for table in self._tables):
            return False
        slowest = self._limited.base_ns + max(ns for ns, _ in self._heads)
        slowest += sum(table.size * float(np.max(table.time / table.span)) for table in self._tables)
        return self.best().bound_ns <= slowest

    def best(self) -> Bound:
        """The bound at the best prices."""
        self._best = self._best or self._bound()
        return self._best

    def _bound(self) -> Bound:
        prices = self._best_prices()
        value, _, _ = self._at(prices)
        above: dict[int, list[Floats]] = {menu.number: [] for menu in self.menus}
        for table in self._tables:
            costs = table.costs(prices)
            above[table.menu.number].append((costs - table.span * np.min(costs / table.span))[: len(table.menu.options)])
        reduced = [np.min(above[menu.number], axis=0) for menu in self.menus]
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
        if weight and prices.memory * weight.nbytes < weight.streaming_ns * weight.uses:
            value, kept = value + prices.memory * weight.nbytes - weight.streaming_ns * weight.uses, kept + weight.nbytes
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
        return max(1.0, *(float(np.max(table.time / np.maximum(table.kept, 64.0))) for table in self._tables))

    def _best_memory(self, written: float) -> Prices:
        """The relaxed time is concave in the memory price, its slope what is kept less the room: go where two tangents meet."""
        low, high = 0.0, 1.0
        below = self._tangent(low, written)
        if below[1] <= 0:
            return Prices(written=written)
        above = self._tangent(high, written)
        while above[1] > 0 and high < HIGHEST_PRICE:
            low, below, high = high, above, high * 4
            above = self._tangent(high, written)
        best = max((below[0], low), (above[0], high))
        for _ in range(TANGENTS):
            if above[1] >= 0:
                break
            price = (above[0] - below[0] + below[1] * low - above[1] * high) / (below[1] - above[1])
            if not low < price < high:
                break
            met = below[0] + below[1] * (price - low)
            value, slope = self._tangent(price, written)
            best = max(best, (value, price))
            if met - value <= 1e-12 * abs(value):
                break
            if slope > 0:
                low, below = price, (value, slope)
            else:
                high, above = price, (value, slope)
        return Prices(memory=best[1], written=written)

    def _tangent(self, memory: float, written: float) -> tuple[float, float]:
        """The relaxed time at two prices, and its slope along the one of memory."""
        value, kept, _ = self._at(Prices(memory=memory, written=written))
        return value, kept - self._limited.room


def distinct_menus(stretches: Sequence[Stretch]) -> list[Menu]:
    """Every menu once, in the order of first use."""
    return list({stretch.menu.number: stretch.menu for stretch in stretches}.values())


class _Table:
    """One menu as arrays over its options (then, with `input_ns`, over the same options with their input recomputed).

    A segment counts for each of its layers.
    """

    def __init__(
        self,
        menu: Menu,
        size: int,
        room: int,
        *,
        input_ns: int | None = None,
        column: str | None = "kept_bytes",
    ) -> None:
        self.menu, self.size = menu, size
        options, source = menu.options, menu.source.input
        self.span = _column(options, "layers")
        apart = np.array([not option.takes_residents for option in options])
        self.kept = np.zeros(len(options)) if column is None else _column(options, column)
        self.stored = _column(options, "stored_bytes")
        self.time = _column(options, "recompute_ns" if input_ns is None else "once_ns")
        self.open = _column(options, "peak") <= room
        again = np.array([[c.role in o.read_again for c in menu.candidates] for o in options], dtype=float)
        self.again = again.reshape(len(options), len(menu.candidates))
        self.uses = np.array([[0.0 if segment else float(c.uses) for c in menu.candidates] for segment in apart])
        self.uses = self.uses.reshape(self.again.shape)
        if input_ns is not None:
            # another order may need less workspace than any option here; recomputed inputs cover segments, `once_ns` whole weights
            self.open = np.tile(~apart, 2)
            self.span = np.tile(self.span, 2)
            drop_kept = np.array([o.input_bytes * (o.saving.get(source) is Saving.KEEP) for o in options], dtype=float)
            drop_kept *= column is not None
            drop_stored = np.array([o.input_bytes * (o.saving.get(source) is Saving.STORE) for o in options], dtype=float)
            self.kept = np.concatenate((self.kept, self.kept - drop_kept))
            self.stored = np.concatenate((self.stored, self.stored - drop_stored))
            self.time = np.concatenate((self.time, self.time + input_ns))
            self.again, self.uses = np.tile(self.again, (2, 1)), np.tile(self.uses, (2, 1))
        self.nbytes, self.streaming = (
            np.array([getattr(c, field) for c in menu.candidates], dtype=float) for field in ("nbytes", "streaming_ns")
        )
        if input_ns is not None:  # each op unpacks a weight once
            self.streaming /= [c.chunks for c in menu.candidates]

    def costs(self, prices: Prices) -> Floats:
        """Time and priced bytes of each option, with the weights resident that pay for themselves."""
        own = self.time + prices.memory * self.kept + prices.written * self.stored
        weights = np.minimum(0.0, prices.memory * self.nbytes - self.streaming * (self.uses + self.again)).sum(axis=1)
        costs: Floats = np.where(self.open, own + weights, np.inf)
        return costs

    def cheapest(self, prices: Prices) -> tuple[float, float, float]:
        """Cost, bytes in the arena at the head and bytes written of the cheapest option, for a layer."""
        costs = self.costs(prices) / self.span
        at = int(np.argmin(costs))
        resident = prices.memory * self.nbytes < self.streaming * (self.uses[at] + self.again[at])
        kept, stored = float(self.kept[at] + self.nbytes[resident].sum()) / self.span[at], float(self.stored[at]) / self.span[at]
        return float(costs[at]), float(kept), float(stored)


def _column(options: Sequence[Option], field: str) -> Floats:
    return np.array([getattr(option, field) for option in options], dtype=float)
