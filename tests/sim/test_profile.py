"""Device profiles: every number has a source, and a broken file is refused by name, key and line."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from mebp.errors import ProfileError
from mebp.sim.device import KEYS, RANGES, SWITCHES, Source
from mebp.sim.profile import device_names, dump_device, load_device, override, parse_device, read_device, user_device_dir

TEXT = dump_device(load_device("iphone15promax"))
SHIPPED = sorted(path.stem for path in (Path(__file__).parents[2] / "mebp/sim/devices").glob("*.toml"))


def refusal(text: str) -> str:
    with pytest.raises(ProfileError) as caught:
        parse_device(text, "my.toml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(key: str, line: str | None) -> str:
    """The profile with the entry `key` replaced by a line (or removed)."""
    lines = [line if text.startswith(f"{key} =") else text for text in TEXT.splitlines()]
    return "\n".join(text for text in lines if text is not None)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_number_of_every_profile_has_kind_and_source(name: str) -> None:
    device = load_device(name)
    assert set(device.sources) == set(KEYS)
    assert all(origin.source.strip() for origin in device.sources.values())
    assert device.name == name


def test_all_devices_are_listed() -> None:
    assert set(SHIPPED) <= set(device_names())
    assert len(SHIPPED) == 19


def test_a_profile_survives_being_written() -> None:
    device = load_device("rpi5_nvme")
    assert parse_device(dump_device(device), "x") == device


def test_shapes_survive_being_written_and_are_checked_as_every_number() -> None:
    device = load_device("iphone15promax")
    origin = {"shapes.linear rows=256 cols=896 outs=128": device.sources["hardware.ram_bytes"]}
    known = replace(device, shapes={"linear rows=256 cols=896 outs=128": 2.5}, sources={**device.sources, **origin})
    text = dump_device(known)
    assert parse_device(text, "again.toml") == known
    with pytest.raises(ProfileError, match=r"again.toml:\d+: shapes.linear rows=256 .* = -1: must be a number between 0.0001 and"):
        parse_device(text.replace("value = 2.5", "value = -1"), "again.toml")
    with pytest.raises(ProfileError, match="shapes must be a section"):
        parse_device("shapes = 3\n" + dump_device(device), "again.toml")


def test_a_missing_entry_is_named() -> None:
    assert "hardware.flash_read is missing" in refusal(changed("flash_read", None))


def test_a_misspelt_entry_is_named_with_its_line_and_what_was_meant() -> None:
    text = TEXT.replace("flash_read =", "flash_raed =")
    line = next(n for n, row in enumerate(text.splitlines(), 1) if row.startswith("flash_raed"))
    assert f"my.toml:{line}: unknown entry 'flash_raed': did you mean flash_read?" in refusal(text)


@pytest.mark.parametrize("value", ["-1", "0", "inf", "nan", '"fast"', "true"])
def test_a_number_that_cannot_be_is_named_with_its_line(value: str) -> None:
    message = refusal(changed("flash_read", f'flash_read = {{ value = {value}, kind = "assumed", source = "x" }}'))
    assert "my.toml:" in message
    assert "hardware.flash_read" in message


@pytest.mark.parametrize(
    "entry",
    ["5", '{ value = 5, kind = "guessed", source = "x" }', '{ value = 5, kind = "assumed", source = " " }', "{ value = 5 }"],
)
def test_a_number_without_provenance_is_refused(entry: str) -> None:
    assert "flash_read" in refusal(changed("flash_read", f"flash_read = {entry}"))


@pytest.mark.parametrize("text", ["", "name = 3", "[hardware", "name = 'x'\n[software]\n"])
def test_text_that_is_no_profile_is_refused(text: str) -> None:
    assert "my.toml" in refusal(text)


def test_an_unknown_device_suggests_a_known_one() -> None:
    with pytest.raises(ProfileError, match="did you mean iphone15promax"):
        load_device("iphone15promx")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot read device profile"):
        read_device(tmp_path / "none.toml")


def test_overrides_change_one_number_and_its_source() -> None:
    device = override(load_device("iphone15promax"), ["runtime.unpack_rate=3e9"])
    assert device.runtime.unpack_rate == 3e9
    assert "set for this plan" in device.sources["runtime.unpack_rate"].source


@pytest.mark.parametrize("assignment", ["x=1", "runtime.unpack_rate", "runtime.unpack_rate=-1", "runtime.unpack_rate=abc"])
def test_an_override_that_cannot_be_is_refused(assignment: str) -> None:
    with pytest.raises(ProfileError, match="`set`"):
        override(load_device("iphone15promax"), [assignment])


@pytest.mark.parametrize(("key", "bounds"), [(key, bounds) for key, bounds in RANGES.items() if key not in SWITCHES])
def test_every_number_has_its_range(key: str, bounds: tuple[float, float]) -> None:
    device = load_device("iphone15promax")
    for value in bounds:
        others = {"hardware.ram_bytes": ["hardware.app_limit_bytes=1e3"], "hardware.app_limit_bytes": ["hardware.ram_bytes=1e15"]}
        assert override(device, [*others.get(key, []), f"{key}={value}"]).value(key) == value
    for value in (bounds[0] - 1, bounds[1] * 1.1 + 1):
        with pytest.raises(ProfileError, match="must be a number between"):
            override(device, [f"{key}={value}"])


def test_the_default_budget_stays_below_the_app_limit() -> None:
    assert load_device("iphone15promax").default_budget_bytes == 10**9
    small = override(load_device("iphone15promax"), ["hardware.app_limit_bytes=1e9"])
    assert small.default_budget_bytes == 800_000_000


def test_no_app_gets_more_memory_than_there_is() -> None:
    with pytest.raises(ProfileError, match=r"app_limit_bytes = 3e\+09 is more than hardware\.ram_bytes = 1e\+06"):
        override(load_device("iphone15promax"), ["hardware.ram_bytes=1e6"])


@pytest.mark.parametrize("what", ["name", "title"])
def test_a_name_that_would_be_printed_raw_is_refused(what: str) -> None:
    text = dump_device(load_device("iphone15promax"))
    with pytest.raises(ProfileError, match=f"{what} = .*cannot be printed"):
        parse_device(re.sub(f"^{what} = .*", rf'{what} = "\\u001b[31mred"', text, flags=re.MULTILINE), "x.toml")


def test_a_mark_before_the_text_is_understood(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xef\xbb\xbf" + dump_device(load_device("iphone15promax")).encode())
    assert load_device(str(tmp_path / "x.toml")) == load_device("iphone15promax")


def test_a_folder_or_a_pipe_in_the_place_of_a_profile_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (user_device_dir() / "host.toml").mkdir(parents=True)
    with pytest.raises(ProfileError, match=r"is no file: .*calibrate"):
        load_device("host")
    os.mkfifo(user_device_dir() / "pipe.toml")
    with pytest.raises(ProfileError, match="is no file"):
        load_device("pipe")


def test_what_was_measured_by_shape_is_written_and_read_back() -> None:
    device = load_device("laptop16")
    measured = Source(kind="measured", source="a test")
    sources = {**device.sources, "workspace.linear rows=3": measured, "shapes.linear rows=3": measured}
    device = replace(device, workspace={"linear rows=3": 2.5e6}, shapes={"linear rows=3": 1.25}, sources=sources)
    assert parse_device(dump_device(device), "x") == device
