"""Folders that appear whole or not at all, and the JSON objects in them."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mebp.errors import InputError, StoreError
from mebp.leftover import part_name, sweep
from mebp.text import read_text, require_writable, resolved, shortened


def require_new_path(path: Path, *, folder: bool = True) -> None:
    """Refuse a place where something is already (an empty folder may become one), or where nothing can be written."""
    if str(path) in ("", ".", "-"):
        raise InputError(f"{str(path)!r} is no name for what is written: name a new file or folder as `output`")
    empty = folder and path.is_dir() and not path.is_symlink() and not any(path.iterdir())
    if os.path.lexists(path) and not empty:
        raise InputError(f"{path} exists already: remove it or name another")
    if not folder:
        require_writable({"`output`": path})


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write in, which takes the name `folder` once all is written; StoreError where it cannot be written."""
    require_new_path(folder)
    target = resolved(folder)
    part = target.with_name(part_name(target.name))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent, target.name)
        part.mkdir()
        yield part
        part.replace(target)  # takes the place of an empty folder, of no other
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error.strerror or error}: name another folder") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """The same for a file."""
    require_new_path(path, folder=False)
    target = resolved(path)
    part = target.with_name(part_name(target.name))
    try:
        sweep(target.parent, target.name)
        yield part
        part.replace(target)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}: name another file") from None
    finally:
        part.unlink(missing_ok=True)


def read_object(file: Path, expected: str) -> dict[str, Any]:
    """The object in a JSON file; InputError in one line, saying what was `expected`, where there is none."""
    try:
        found = json.loads(read_text(file))
    except FileNotFoundError:
        raise InputError(f"no {file.name} in {file.parent}: expected {expected}") from None
    except (OSError, ValueError, RecursionError) as error:
        said = shortened(getattr(error, "strerror", None) or str(error), 120)
        raise InputError(f"{file} is not readable JSON ({said}): expected {expected}") from None
    if not isinstance(found, dict):
        raise InputError(f"{file} holds a {type(found).__name__}, not an object: expected {expected}")
    return found
