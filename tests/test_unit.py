"""Sizes and times, as written and as read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mebp.errors import InputError
from mebp.unit import parse_nbytes, show_nbytes, show_ns, whole_us


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("1", 1),
        ("1B", 1),
        ("1GB", 10**9),
        ("1GiB", 2**30),
        ("1.5 gb", 1_500_000_000),
        ("512MiB", 2**29),
        ("2e6", 2_000_000),
        (" 7kB ", 7000),
    ],
)
def test_sizes_are_read(text: str, nbytes: int) -> None:
    assert parse_nbytes(text, "--budget") == nbytes


@pytest.mark.parametrize("text", ["", "0", "GB", "1 parsec", "-1", "1e99", "nan", "inf", "1,5GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--budget"):
        parse_nbytes(text, "--budget")


@pytest.mark.parametrize(
    ("nbytes", "shown"), [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (999_800_000, "1.00 GB"), (47_200_000, "47.2 MB")]
)
def test_sizes_are_shown_with_three_figures(nbytes: int, shown: str) -> None:
    assert show_nbytes(nbytes) == shown


@pytest.mark.parametrize(("ns", "shown"), [(5, "5 ns"), (20_500_000_000, "20.5 s"), (3_140_000, "3.14 ms")])
def test_times_are_shown(ns: int, shown: str) -> None:
    assert show_ns(ns) == shown


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 10**12), max_size=9))
def test_microseconds_sum_to_the_rounded_total(parts: dict[str, int]) -> None:
    found = whole_us(parts)
    assert sum(found.values()) == round(sum(parts.values()) / 1000)
    assert all(abs(found[name] - ns / 1000) <= 1 for name, ns in parts.items())
