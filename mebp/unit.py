"""Sizes and times as people write and read them."""

import re
from collections.abc import Callable
from math import ceil
from operator import index
from typing import SupportsIndex

from mebp.errors import InputError
from mebp.text import shortened

UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
MAX_BYTES = 1 << 50


def parse_nbytes(text: str, what: str, *, lowest: int = 1) -> int:
    """Read `1GB`, `512 MiB`, `1.5e9` as bytes; InputError naming `what` otherwise."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", text.lower())
    unit = UNITS.get(match.group(2)) if match else None
    if match is None or unit is None:
        raise InputError(f"{what} = {shortened(repr(text))}: not a size: write bytes, or a number with MB, MiB, GB or GiB")
    value = float(match.group(1)) * unit
    if not lowest <= value <= MAX_BYTES:
        raise InputError(f"{what} = {shortened(repr(text))}: must be between {lowest} byte{'s' * (lowest != 1)} and 1024 TiB")
    return int(value)


def require_whole(what: str, value: object, low: int, high: int, why: str = "") -> None:
    """Refuse what is no whole number from `low` to `high`: InputError naming `what`, value, bounds and, behind them, `why`."""
    if not isinstance(value, SupportsIndex) or isinstance(value, bool):
        raise InputError(f"{what} = {shortened(repr(value))}: must be a whole number")
    if not low <= index(value) <= high:
        raise InputError(f"{what} = {shortened(str(value))}: must be between {low} and {high}{why}")


def require_kind(what: str, value: object, *kinds: type, remedy: str) -> None:
    """Refuse a value of another type than `kinds`: InputError naming `what`, the value and the `remedy`."""
    if not isinstance(value, kinds):
        raise InputError(f"{what} = {shortened(repr(value))}: must be a {kinds[0].__name__}: {remedy}")


def require_budget(budget_bytes: object) -> None:
    """Refuse what is no number of bytes that a plan may be made for."""
    require_whole("`budget`", budget_bytes, 0, MAX_BYTES)


def show_nbytes(nbytes: float, *, up: bool = False) -> str:
    """`1.03 GB`, `47.2 MB`, `512 B`: decimal units, three figures; `up` never shows less than there is."""
    if up:
        nbytes = ceil(nbytes / (digit := 10 ** max(0, len(str(int(nbytes))) - 3))) * digit
    for unit in ("GB", "MB", "kB"):
        scale = UNITS[unit.lower()]
        if abs(nbytes) >= 0.9995 * scale:  # what would round to 1000 of the next smaller unit
            return f"{_three(nbytes / scale)} {unit}"
    return f"{int(nbytes)} B"


def show_ns(ns: float) -> str:
    """`20.5 s`, `3.1 ms`, `12 us`."""
    for unit, scale in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if abs(ns) >= 0.9995 * scale:
            return f"{_three(ns / scale)} {unit}"
    return f"{ns:.0f} ns"


def show_seconds(seconds: float) -> str:
    """`4.2 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 100:
        return show_ns(seconds * 1e9)
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def show_number(value: float) -> str:
    """`0.478`, `1.05e12`: three figures."""
    if value and not 1e-3 <= abs(value) < 1e5:
        digits, _, exponent = f"{value:.2e}".partition("e")
        return f"{digits}e{int(exponent)}"
    return f"{value:.3g}"


def show_range(ends: tuple[float, float], show: Callable[[float], str]) -> str:
    """`14.9-25.3 s`, `971 MB-1.03 GB`; one value where both ends read the same."""
    low, high = (show(end) for end in ends)
    if low == high:
        return low
    unit = high.partition(" ")[2]
    return f"{low.removesuffix(f' {unit}') if unit else low}-{high}"


def show_count(count: float) -> str:
    """`3.88 G`, `14.9 M`."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= 0.9995 * scale:
            return f"{_three(count / scale)} {unit}"
    return f"{count:.0f}"


def _three(value: float) -> str:
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f}"


def whole_us(parts_ns: dict[str, int]) -> dict[str, int]:
    """Nanoseconds by part as whole microseconds that sum to the rounded total: rounding is carried from part to part."""
    found: dict[str, int] = {}
    done_ns = done_us = 0
    for part, ns in parts_ns.items():
        done_ns += ns
        found[part] = round(done_ns / 1000) - done_us
        done_us += found[part]
    return found
