"""Packing: no two live buffers overlap, and the height is close to what no packing can beat."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mebp.planner.pack import Buffer, pack, require_apart

BUFFERS = st.lists(
    st.builds(
        lambda start, length, size: Buffer(start=start, end=start + length, size=size * 64),
        st.integers(0, 30),
        st.integers(1, 12),
        st.integers(1, 50),
    ),
    max_size=40,
)


@given(BUFFERS)
def test_no_two_live_buffers_overlap(buffers: list[Buffer]) -> None:
    packing = pack(buffers)
    require_apart(buffers, packing)
    assert packing.live_peak <= packing.height


def test_buffers_that_never_meet_share_one_place() -> None:
    packing = pack([Buffer(start=0, end=1, size=64), Buffer(start=1, end=2, size=64)])
    assert packing.height == packing.live_peak == 64


def test_buffers_that_meet_lie_apart() -> None:
    assert pack([Buffer(start=0, end=2, size=64), Buffer(start=1, end=3, size=128)]).height == 192


def test_a_hole_left_by_the_dead_is_used_again() -> None:
    buffers = [Buffer(start=0, end=9, size=64), Buffer(start=0, end=3, size=128), Buffer(start=0, end=9, size=64), Buffer(start=4, end=9, size=128)]
    assert pack(buffers).height == 256


def test_the_validator_catches_an_overlap() -> None:
    buffers = [Buffer(start=0, end=2, size=64), Buffer(start=1, end=3, size=64)]
    packing = pack(buffers)
    with pytest.raises(AssertionError):
        require_apart([buffers[0], Buffer(start=1, end=3, size=128)], packing)
