"""A run's folder: what the run was begun with, its plans, its log; and the hashes that tell whether any of that changed.

run.json               the run: what was asked, predicted, and of which files
plan-256.json          the plan of each length; held-out-256.json those for held-out data
state.safetensors      the last save; best.safetensors the adapters with the best evaluation
log.jsonl              every figure of every update, evaluation and save
adapter/               the adapter as PEFT loads it, with a model card
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from mebp.data.sample import SampleRange
from mebp.errors import InputError
from mebp.executor.train.settings import TrainSettings
from mebp.store.header import read_header
from mebp.task.train.corpus import Source
from mebp.text import read_text, write_file

RUN, LOG, ADAPTER = "run.json", "log.jsonl", "adapter"
VERSION = 1
MODEL, DATA, HELD_OUT, PLANS = "the model's weights", "the data", "the held-out data", "a plan of the run"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseName:
    """The model as it was named, and what exports have to know of it in addition to its config."""

    name: str
    wrapper: str | None = None
    architecture: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What a run was predicted to take."""

    peak_breakdown: Mapping[str, int]
    update_ns: int
    evaluation_ns: int
    total_ns: int

    @property
    def peak_bytes(self) -> int:
        return sum(self.peak_breakdown.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as its folder has it; `to` are the forms that the adapter is written in at the end, `command` what was typed, `sha256`
    the hashes of the data files by name.
    """

    version: int = VERSION
    store: Path
    base: BaseName
    source: Source
    settings: TrainSettings
    train: SampleRange
    seq_lens: tuple[int, ...]
    held_out: SampleRange | None
    held_out_lens: tuple[int, ...]
    updates_per_epoch: int
    budget_bytes: int
    predicted: Predicted
    hashes: Mapping[str, str]
    to: tuple[str, ...] = ("peft",)
    command: tuple[str, ...] = ()
    device: str = "cpu"
    spill_dir: Path | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)


def plan_files(folder: Path, seq_lens: tuple[int, ...], held_out_lens: tuple[int, ...]) -> tuple[list[Path], list[Path]]:
    """Where the plans are."""
    own = [folder / f"plan-{length}.json" for length in seq_lens]
    return own, [folder / f"held-out-{length}.json" for length in held_out_lens]


def plans_hash(texts: list[str]) -> str:
    """One hash of all plans."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def store_hash(store: Path) -> str:
    """A hash of a store's weights: of all their checksums."""
    header = read_header(store)
    return hashlib.sha256(json.dumps(sorted(header.facts.items())).encode()).hexdigest()


def write_run(folder: Path, run: Run) -> None:
    """Write what a run is."""
    write_file(folder / RUN, TypeAdapter(Run).dump_json(run, indent=2).decode() + "\n")


def read_run(folder: Path) -> Run:
    """Read what a run is; InputError in one line for a folder that is none of a run."""
    file = folder / RUN
    try:
        raw = json.loads(read_text(file))
        if isinstance(raw, dict) and raw.get("version") != VERSION:
            raise InputError(f"{file} was written by another version of mebp-plan: begin a new run")
        return TypeAdapter(Run).validate_python(raw)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"`resume` {folder} has no {RUN}: name the folder of a run, which `output` named") from None
    except (OSError, ValueError, ValidationError, RecursionError) as error:
        said = getattr(error, "strerror", None) or "not what a run writes"
        raise InputError(f"{file} cannot be read ({said}): begin a new run") from None


def read_plans(run: Run, folder: Path) -> tuple[list[str], list[str]]:
    """The texts of a run's plans; InputError where one is missing."""
    found = []
    for files in plan_files(folder, run.seq_lens, run.held_out_lens):
        try:
            found.append([read_text(file) for file in files])
        except (OSError, UnicodeDecodeError) as error:
            said = getattr(error, "strerror", None) or "not UTF-8"
            raise InputError(f"{PLANS} in {folder} cannot be read ({said}): begin a new run") from None
    return found[0], found[1]
