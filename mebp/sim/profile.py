"""Read and write device profiles: one TOML file per device, shipped, calibrated or the user's own.

Every number is `{ value = ..., kind = "measured" | "vendor" | "assumed", source = "..." }`, with `range = [low, high]` where that
is known (see uncertainty.py). A measured machine may have sections [shapes] and [workspace] too (see shape.py). A file is refused
by name, key and line where an entry is missing, misspelt, negative or without provenance.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import platformdirs

from mebp.errors import ProfileError
from mebp.plan import HOST
from mebp.sim.device import KEYS, MEASURED_BY_SHAPE, SECTIONS, SWITCHES, Device, Provenance, Source, range_of
from mebp.text import read_text, shortened
from mebp.unit import require_kind


def user_device_dir() -> Path:
    """Where `calibrate` writes profiles of this user's machines."""
    return platformdirs.user_config_path("mebp-plan") / "devices"


def device_names() -> list[str]:
    """Names of all profiles: shipped ones and the user's own."""
    shipped = {Path(entry.name).stem for entry in resources.files("mebp.sim").joinpath("devices").iterdir()}
    own = {path.stem for path in user_device_dir().glob("*.toml")} if user_device_dir().is_dir() else set()
    return sorted(shipped | own)


def load_device(spec: str) -> Device:
    """Find the profile that `spec` names: a shipped or calibrated device, or a TOML file."""
    require_kind("`device`", spec, str, remedy="name a device, or the path of a .toml file")
    if spec.endswith(".toml") or "/" in spec:
        return read_device(Path(spec))
    own = user_device_dir() / f"{spec}.toml"
    if os.path.lexists(own):
        try:
            return read_device(own)
        except ProfileError as error:
            if spec != HOST:
                raise
            raise ProfileError(f"{error}: `mebp-plan calibrate` measures this machine again") from None
    shipped = resources.files("mebp.sim").joinpath("devices", f"{spec}.toml")
    if shipped.is_file():
        return parse_device(shipped.read_text(encoding="utf-8"), f"{spec}.toml")
    near = difflib.get_close_matches(spec, device_names(), n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    calibrate = "run `mebp-plan calibrate` first" if spec == HOST else "take a name that `mebp-plan devices` lists, or a .toml file"
    raise ProfileError(f"unknown device {spec!r}: {hint}{calibrate}")


def read_device(path: Path) -> Device:
    """Read a profile from a TOML file."""
    if path.exists() and not path.is_file():
        raise ProfileError(f"device profile {path} is no file: remove it, or name another")
    try:
        return parse_device(read_text(path), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"cannot read device profile {path}: {getattr(error, 'strerror', None) or error}") from None


def parse_device(text: str, source: str) -> Device:
    """Parse a profile; ProfileError names `source`, the key and its line."""
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{source}: {error}") from None
    for key in raw:
        _require_known(key, ("name", "title", *SECTIONS, *MEASURED_BY_SHAPE), source, text)
    sources: dict[str, Source] = {}
    sections: dict[str, Any] = {}
    for section, cls in SECTIONS.items():
        entries = raw.get(section)
        if not isinstance(entries, dict):
            raise ProfileError(f"{source}: section [{section}] is missing")
        names = tuple(f.name for f in fields(cls))
        for key in entries:
            _require_known(key, names, source, text)
        values = {name: _entry(f"{section}.{name}", entries.get(name), source, text, sources) for name in names}
        sections[section] = cls(**values)
    shapes, workspace = (_by_shape(raw.get(section, {}), section, source, text, sources) for section in MEASURED_BY_SHAPE)
    name = raw.get("name")
    if not isinstance(name, str) or not name:
        raise ProfileError(f"{source}: name is missing: a short word such as iphone15promax")
    title = raw.get("title", name)
    if not isinstance(title, str):
        raise ProfileError(f"{source}:{_line('title', text)}: title = {shortened(repr(title))}: must be a text, in quotes")
    for what, given in (("name", name), ("title", title)):
        if not given.isprintable():
            raise ProfileError(f"{source}:{_line(what, text)}: {what} = {shortened(given)}: holds what cannot be printed")
    found = Device(name=name, title=title, shapes=shapes, workspace=workspace, sources=sources, **sections)
    _require_consistent(found, source)
    return found


def _require_consistent(device: Device, source: str) -> None:
    """Refuse numbers that contradict each other."""
    hardware = device.hardware
    if hardware.app_limit_bytes > hardware.ram_bytes:
        limit, ram = (
            f"hardware.{name} = {value:g}"
            for name, value in (("app_limit_bytes", hardware.app_limit_bytes), ("ram_bytes", hardware.ram_bytes))
        )
        raise ProfileError(f"{source}: {limit} is more than {ram}: no app gets more than there is")


def _by_shape(entries: Any, section: str, source: str, text: str, sources: dict[str, Source]) -> dict[str, float]:
    if not isinstance(entries, dict):
        raise ProfileError(f"{source}:{_line(section, text)}: {section} must be a section of entries")
    return {shape: _entry(f"{section}.{shape}", entry, source, text, sources) for shape, entry in entries.items()}


def _require_known(key: str, known: tuple[str, ...], source: str, text: str) -> None:
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f": did you mean {near[0]}?" if near else ""
        raise ProfileError(f"{source}:{_line(key, text)}: unknown entry {key!r}{hint}")


def _entry(key: str, entry: Any, source: str, text: str, sources: dict[str, Source]) -> float:
    name = key.partition(".")[2]
    where = f"{source}:{_line(name, text)}: {key}"
    if entry is None:
        raise ProfileError(f"{source}: {key} is missing: write {{ value = ..., kind = ..., source = ... }}")
    if not isinstance(entry, dict) or set(entry) - {"range"} != {"value", "kind", "source"}:
        raise ProfileError(
            f"{where} = {entry!r}: must be {{ value = ..., kind = ..., source = ... }}, and range = [low, high] if known"
        )
    if entry["kind"] not in get_args(Provenance):
        raise ProfileError(f"{where} has kind {entry['kind']!r}: must be one of {', '.join(get_args(Provenance))}")
    if not isinstance(entry["source"], str) or not entry["source"].strip():
        raise ProfileError(f"{where} has no source: say where the number comes from")
    value = _number(key, entry["value"], where)
    sources[key] = Source(kind=entry["kind"], source=entry["source"], range=_range(key, entry.get("range"), value, where))
    return value


def _range(key: str, given: Any, value: float, where: str) -> tuple[float, float] | None:
    if given is None:
        return None
    if not isinstance(given, list) or len(given) != 2:
        raise ProfileError(f"{where} has range {given!r}: must be [low, high]")
    low, high = (_number(key, end, f"{where}: range") for end in given)
    if not low <= value <= high:
        raise ProfileError(f"{where} has range {given!r}: must contain its value {value:g}")
    return low, high


def _number(key: str, value: Any, where: str) -> float:
    if key in SWITCHES and value not in (0, 1):
        raise ProfileError(f"{where} = {value!r}: must be 0 or 1")
    low, high = range_of(key)
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not number or not low <= value <= high:
        raise ProfileError(f"{where} = {value!r}: must be a number between {low:g} and {high:g}")
    return float(value)


def _line(key: str, text: str) -> int:
    """The first line that begins with a key, bare, quoted or as a section; 1 where none does."""
    return _lines(text).get(key, 1)


@lru_cache(maxsize=1)
def _lines(text: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if key := re.match(r'\s*\[?\s*(?:"([^"]*)"|([\w.-]+))', line):
            found.setdefault(key[1] or key[2], number)
    return found


def override(device: Device, assignments: Sequence[str]) -> Device:
    """Apply `key=value` overrides, the key as `devices show` prints it."""
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if key.partition(".")[0] in MEASURED_BY_SHAPE:
            raise ProfileError(
                f"`set` {assignment}: what a shape takes is measured, not set: calibrate, or edit the profile's file"
            )
        if not equals:
            raise ProfileError(f"`set` {assignment}: expected KEY=VALUE, such as runtime.unpack_rate=3e9")
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ProfileError(
                f"`set` {assignment}: unknown entry {key!r}: {hint}`mebp-plan devices show {device.name}` lists them"
            )
        try:
            value: float | str = float(text)
        except ValueError:
            value = text
        number = _number(key, value, f"`set` {key}")
        asked = Source(kind="assumed", source="set for this plan", range=(number, number))
        sources = {**device.sources, key: asked}
        overrides = (*device.overrides, assignment)
        device = replace(device.with_value(key, number), sources=sources, overrides=overrides)
    if assignments:
        _require_consistent(device, f"`set` {', '.join(assignments)}")
    return device


def dump_device(device: Device) -> str:
    """Write a profile as TOML; `parse_device` reads it back equal."""
    lines = [f'name = "{device.name}"', f"title = {_quoted(device.title)}"]
    for section, cls in SECTIONS.items():
        lines += ["", f"[{section}]", *(f"{f.name} = {_written(device, f'{section}.{f.name}')}" for f in fields(cls))]
    for section in MEASURED_BY_SHAPE:
        if names := getattr(device, section):
            lines += ["", f"[{section}]", *(f"{_quoted(name)} = {_written(device, f'{section}.{name}')}" for name in names)]
    return "\n".join(lines) + "\n"


def _written(device: Device, key: str) -> str:
    origin = device.sources[key]
    ends = f", range = [{', '.join(map(_shown, origin.range))}]" if origin.range else ""
    return f'{{ value = {_shown(device.value(key))}, kind = "{origin.kind}", source = {_quoted(origin.source)}{ends} }}'


def _shown(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a TOML string escapes as JSON does
