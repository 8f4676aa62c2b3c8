"""Packing: no two live buffers overlap, and the height is close to what no packing can beat."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mebp.errors import InfeasibleBudget, InputError, InvalidPacking
from mebp.planner.effort import Effort
from mebp.planner.pack.check import check_packing
from mebp.planner.pack.exact import pack_within
from mebp.planner.pack.heuristic import Buffer, Packing, live_peak, pack
from mebp.planner.pack.minimalloc import offsets_csv, read_instance

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
    check_packing(buffers, packing)
    assert packing.live_peak <= packing.height


def test_buffers_that_never_meet_share_one_place() -> None:
    packing = pack([Buffer(start=0, end=1, size=64), Buffer(start=1, end=2, size=64)])
    assert packing.height == packing.live_peak == 64


def test_buffers_that_meet_lie_apart() -> None:
    assert pack([Buffer(start=0, end=2, size=64), Buffer(start=1, end=3, size=128)]).height == 192


def test_a_hole_left_by_the_dead_is_used_again() -> None:
    buffers = [
        Buffer(start=0, end=9, size=64),
        Buffer(start=0, end=3, size=128),
        Buffer(start=0, end=9, size=64),
        Buffer(start=4, end=9, size=128),
    ]
    assert pack(buffers).height == 256


def test_the_validator_catches_an_overlap() -> None:
    buffers = [Buffer(start=0, end=2, size=64), Buffer(start=1, end=3, size=64)]
    check_packing(buffers, Packing(offsets=(0, 64), height=128, live_peak=128))
    for offsets, height, says in (
        ((0, 0), 128, "overlap"),
        ((0, 32), 128, "overlap"),
        ((64, 32), 128, "overlap"),
        ((0, 64), 127, "lies at 64 to 128 of 127"),
        ((-1, 64), 128, "lies at -1"),
        ((0,), 128, "1 offsets for 2 buffers"),
    ):
        with pytest.raises(InvalidPacking, match=says):
            check_packing(buffers, Packing(offsets=offsets, height=height, live_peak=128))


PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "minimalloc"


def test_the_exact_model_fits_where_the_heuristic_does_not() -> None:
    """Nine squares around a hole, which first fit fills in every order that it tries."""
    sizes = [(0, 2, 3), (0, 3, 2), (2, 4, 3), (3, 5, 2), (1, 4, 1), (4, 6, 4)]
    buffers = [Buffer(start=a, end=b, size=64 * size) for a, b, size in sizes]
    packing = pack_within(buffers, live_peak(buffers), Effort(wall_s=20))
    check_packing(buffers, packing)
    assert packing.height == live_peak(buffers)


def test_a_capacity_below_what_is_live_is_refused() -> None:
    with pytest.raises(InfeasibleBudget, match="192 are live at once"):
        pack_within([Buffer(start=0, end=2, size=64), Buffer(start=1, end=3, size=128)], 191, Effort())


def test_a_capacity_that_no_packing_meets_is_proven_so() -> None:
    """Each pair lives together at some time, so the three lie apart, though only two are ever live at once."""
    buffers = [
        Buffer(start=0, end=2, size=64),
        Buffer(start=1, end=4, size=64),
        Buffer(start=3, end=6, size=128),
        Buffer(start=5, end=6, size=64),
    ]
    assert pack_within(buffers, 192, Effort(wall_s=10)).height == 192


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "first line"),
        ("id,lower,upper\n", "first line"),
        ("id,lower,upper,size\n", "no buffers"),
        ("id,lower,upper,size\n0,5,5,1\n", ":2: upper = 5"),
        ("id,lower,upper,size\n0,0,1,0\n", ":2: size = 0"),
        ("id,lower,upper,size\n0,0,x,1\n", "upper = 'x'"),
        ("id,lower,upper,size\n0,0,1\n", "have the 4 fields"),
        ("id,lower,upper,size\n0,0,1,4\n0,0,1,4\n", "an id twice"),
    ],
)
def test_files_that_are_no_packing_problem_are_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InputError) as caught:
        read_instance(tmp_path / "x.csv")
    assert says in str(caught.value)


def test_offsets_are_written_next_to_what_was_read(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("id,lower,upper,size\na,1000,2000,64\nb,1500,99999999999,128\n")
    instance = read_instance(tmp_path / "x.csv")
    assert offsets_csv(instance, pack_within(list(instance.buffers), 192, Effort())).splitlines()[0] == "id,lower,upper,size,offset"


@pytest.mark.slow
@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="published instances lie in shared/data only")
@pytest.mark.parametrize("name", ["B", "E"])
def test_published_instances_fit_their_capacity(name: str) -> None:
    instance = read_instance(PUBLISHED / f"{name}.1048576.csv")
    packing = pack_within(list(instance.buffers), 1_048_576, Effort(wall_s=120))
    check_packing(list(instance.buffers), packing)
    assert packing.height <= 1_048_576
