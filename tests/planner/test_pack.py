"""Packing: no two live buffers overlap, and the height is close to what no packing can beat."""

import random
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mebp.errors import InfeasibleBudget, InputError, InvalidPacking
from mebp.planner.effort import Effort, Stop
from mebp.planner.pack.check import check_packing
from mebp.planner.pack.exact import pack_within
from mebp.planner.pack.heuristic import Buffer, Packing, live_peak, pack
from mebp.planner.pack.minimalloc import offsets_csv, read_instance
from mebp.planner.pack.search import _library, _luby, search_offsets

BUFFERS = st.lists(
    st.builds(
        lambda start, length, size: Buffer(start=start, end=start + length, size=size * 64),
        st.integers(0, 30),
        st.integers(1, 12),
        st.integers(1, 50),
    ),
    max_size=40,
)

needs_compiler = pytest.mark.skipif(_library() is None, reason="no C compiler")


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
        ("id,lower,upper,size\n0,0,1,4\n\n\n1,0,1,0\n", ":5: size = 0"),
        ('id,lower,upper,size\n"a\nb",0,1,4\n1,0,1,0\n', ":4: size = 0"),
        ("id,lower,upper,size\n0,0,1,1_0\n", "size = '1_0': must be a whole number"),
        ("id,lower,upper,size\n0,0,1,\u0664\n", "must be a whole number"),
        ("id,lower,upper,size,offset\n0,0,1,4,0\n", "a field offset already"),
        (f"id,lower,upper,size\n0,0,1,{'9' * 60}\n", "must be a whole number"),
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


def cut_rectangle(draw: random.Random, pieces: int) -> list[Buffer]:
    """Buffers that fill 64 moments x 65,536 bytes without a gap: the rectangle cut in two, again and again."""
    found = [(0, 64, 0, 65_536)]
    while len(found) < pieces:
        start, end, low, high = found.pop(draw.randrange(len(found)))
        if draw.random() < 0.5 and end - start > 1:
            middle = draw.randrange(start + 1, end)
            found += [(start, middle, low, high), (middle, end, low, high)]
        elif high - low > 512:
            middle = draw.randrange(low + 256, high - 255)
            found += [(start, end, low, middle), (start, end, middle, high)]
        else:
            found.append((start, end, low, high))
    draw.shuffle(found)
    return [Buffer(start=start, end=end, size=high - low) for start, end, low, high in found]


@needs_compiler
@pytest.mark.parametrize("seed", range(4))
def test_the_search_fills_a_rectangle_without_a_gap(seed: int) -> None:
    buffers = cut_rectangle(random.Random(seed), 40)
    offsets = search_offsets(buffers, 65_536, Effort(wall_s=30))
    assert offsets is not None
    check_packing(buffers, Packing(offsets=offsets, height=65_536, live_peak=65_536))


FEW = st.lists(
    st.builds(lambda a, n, z: Buffer(start=a, end=a + n, size=z), st.integers(0, 5), st.integers(1, 4), st.integers(1, 4)),
    min_size=1,
    max_size=6,
)


@needs_compiler
@settings(max_examples=80, deadline=None)
@given(buffers=FEW)
def test_the_search_finds_a_packing_exactly_where_there_is_one(buffers: list[Buffer]) -> None:
    for capacity in range(live_peak(buffers), live_peak(buffers) + 3):
        try:
            offsets = search_offsets(buffers, capacity, Effort(wall_s=10))
        except InfeasibleBudget:
            offsets = None
        assert (offsets is not None) == packs(buffers, capacity)
        if offsets is not None:
            check_packing(buffers, Packing(offsets=offsets, height=capacity, live_peak=0))


def packs(buffers: list[Buffer], capacity: int) -> bool:
    """Whether any choice of offsets works, tried one by one."""

    def place(number: int, placed: list[int]) -> bool:
        if number == len(buffers):
            return True
        b = buffers[number]
        for low in range(capacity - b.size + 1):
            clear = all(
                other.end <= b.start or b.end <= other.start or at + other.size <= low or low + b.size <= at
                for other, at in zip(buffers, placed, strict=False)
            )
            if clear and place(number + 1, [*placed, low]):
                return True
        return False

    return place(0, [])


@needs_compiler
def test_a_search_ends_at_a_stop() -> None:
    draw = random.Random(5)
    buffers = [Buffer(start=a, end=a + draw.randint(2, 9), size=draw.randint(1000, 9000)) for a in range(40) for _ in range(3)]
    least = live_peak(buffers)
    stop = Stop()
    stop.ask()
    assert search_offsets(buffers, least, Effort(wall_s=3600, stop=stop)) is None


def test_restarts_are_as_long_as_lubys_sequence() -> None:
    assert list(islice(_luby(), 15)) == [1, 1, 2, 1, 1, 2, 4, 1, 1, 2, 1, 1, 2, 4, 8]


HARD = [("A", 1_048_576), ("B", 1_048_576), ("C", 1_048_576), ("C", 1_039_360), ("D", 1_031_168), ("E", 1_048_576)]


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="published instances lie in shared/data only")
@pytest.mark.parametrize(("name", "capacity"), HARD)
def test_published_instances_fit_their_capacity(name: str, capacity: int) -> None:
    instance = read_instance(PUBLISHED / f"{name}.1048576.csv")
    packing = pack_within(list(instance.buffers), capacity, Effort(wall_s=120))
    check_packing(list(instance.buffers), packing)
    assert packing.height <= capacity
