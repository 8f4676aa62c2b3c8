"""The flags that commands share, in groups.

A command's function takes whole groups (`plan(model: ModelFlags, step: StepFlags, ...)`); `with_flags` turns their fields into the
command's own flags. Groups check what they are given and hand on what the library takes.
"""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, cast, get_type_hints

import typer

from mebp.cli.spelling import flag_of
from mebp.errors import InputError
from mebp.models.format import DEFAULT_RECIPE, OFFERED, RECIPES
from mebp.unit import parse_nbytes, show_nbytes

if TYPE_CHECKING:
    from mebp.models.config import ModelConfig
    from mebp.models.format import WeightFormats
    from mebp.models.workload import Workload
    from mebp.planner.effort import Effort, Progress
    from mebp.sim.device import Device
    from mebp.task.model import FoundModel

Flag = typer.Option
MODEL, STEP, TARGET, SEARCH, OUTPUT, RUN = "Model", "Training step", "Device and budget", "Search", "Output", "Run"
DEFAULT_MODEL, DEFAULT_DEVICE = "0.5b", "iphone15promax"
TIME_LIMIT, CURVE_TIME_LIMIT = 30.0, 120.0  # seconds, for a table and for a curve
SEARCHES = 37.5  # wall seconds of a table's --time-limit for each deterministic second of one search: it runs several


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagGroup:
    """Fields that are flags, each with its default."""

    def given(self) -> list[str]:
        """Flags that differ from their defaults."""
        changed = (f.name for f in fields(self) if getattr(self, f.name) not in (f.default, []))
        return [flag_of({"lora_r": "rank", "set_": "set"}.get(name, name)) for name in changed]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFlags(FlagGroup):
    """Which model."""

    model: Annotated[
        str | None,
        Flag(
            "--model",
            "-m",
            help="Name or alias (0.5b 1.5b 3b 1b 4b), Hugging Face id of one of these, config.json or its folder, store or GGUF"
            " file. Default: 0.5b.",
            rich_help_panel=MODEL,
        ),
    ] = None

    def found(self, store: Path | None = None) -> "FoundModel":
        """The model that --model names, on the weights of `store` where one is named; without it the store's, or the default."""
        from mebp.task.model import find_model, found_store  # noqa: PLC0415  (--help does without)

        if store is None:
            return find_model(DEFAULT_MODEL if self.model is None else self.model)
        of_store = found_store(store)
        return of_store if self.model is None else replace(find_model(self.model), formats=of_store.formats, store=store)

    def config(self) -> "ModelConfig":
        return self.found().config

    def files(self) -> list[Path]:
        """Files that the flag names."""
        return _files(self.model)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFlags(FlagGroup):
    """One training step."""

    seq_len: Annotated[int, Flag("--seq-len", help="Tokens per sequence.", rich_help_panel=STEP)] = 256
    batch_size: Annotated[int, Flag("--batch-size", help="Sequences per step.", rich_help_panel=STEP)] = 1
    lora_r: Annotated[int, Flag("--lora-r", "--lora-rank", help="Rank of the adapters.", rich_help_panel=STEP)] = 8
    lora_alpha: Annotated[float, Flag("--lora-alpha", help="Adapters are scaled by alpha / rank.", rich_help_panel=STEP)] = 16.0
    lora_targets: Annotated[
        str,
        Flag(
            "--lora-targets",
            "--target-modules",
            help="all-linear, or some of q,k,v,o,gate,up,down.",
            rich_help_panel=STEP,
        ),
    ] = "all-linear"
    lora_dropout: Annotated[float, Flag("--lora-dropout", help="Dropout probability on adapter inputs.", rich_help_panel=STEP)] = (
        0.0
    )
    rslora: Annotated[bool, Flag("--rslora", help="Scale adapters by alpha / sqrt(rank).", rich_help_panel=STEP)] = False
    lora_layers: Annotated[
        int | None, Flag("--layers", "--lora-layers", help="Put adapters in the last N layers only.", rich_help_panel=STEP)
    ] = None
    labelled: Annotated[
        int | None,
        Flag("--labelled", help="Most labelled tokens per step; the head computes only these.", rich_help_panel=STEP),
    ] = None
    weights: Annotated[
        str | None,
        Flag(
            "--weights",
            help=f"Formats of the frozen weights: {' '.join((*RECIPES, *OFFERED))}; or a list that changes one for some weights:"
            f" {DEFAULT_RECIPE},ffn=int4-g64. Default: what the store or GGUF file has, without one {DEFAULT_RECIPE}.",
            rich_help_panel=MODEL,
        ),
    ] = None
    precision: Annotated[str, Flag("--precision", help="Activations and products: bf16 or fp32.", rich_help_panel=STEP)] = "bf16"
    optimizer: Annotated[str, Flag("--optimizer", help="sgd or adamw.", rich_help_panel=STEP)] = "sgd"
    states_in_file: Annotated[
        bool, Flag("--states-in-file", help="Keep the optimizer state in a memory-mapped file.", rich_help_panel=STEP)
    ] = False
    accumulate: Annotated[int, Flag("--accumulate", help="Steps whose mean gradient makes one update.", rich_help_panel=STEP)] = 1
    clip_norm: Annotated[
        float, Flag("--clip-norm", help="Clip the gradient of all adapters together to this 2-norm; 0: off.", rich_help_panel=STEP)
    ] = 0.0

    def workload(self, formats: "WeightFormats | None" = None) -> "Workload":
        """The step that the flags describe, on weights in what --weights names, else in `formats`, else in the default recipe."""
        from mebp.models.format import weight_formats  # noqa: PLC0415
        from mebp.models.workload import Lora, OptimizerName, Precision, Workload, parse_targets  # noqa: PLC0415

        return Workload(
            seq_len=self.seq_len,
            batch_size=self.batch_size,
            labelled=self.labelled,
            lora=Lora(
                rank=self.lora_r,
                alpha=self.lora_alpha,
                targets=parse_targets(self.lora_targets),
                dropout=self.lora_dropout,
                rslora=self.rslora,
                layers=self.lora_layers,
            ),
            weights=weight_formats(self.weights or DEFAULT_RECIPE) if self.weights or formats is None else formats,
            precision=cast(Precision, self.precision),
            optimizer=cast(OptimizerName, self.optimizer),
            states_in_file=self.states_in_file,
            accumulate=self.accumulate,
            clip_norm=self.clip_norm,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileFlags(FlagGroup):
    """Changes to a device's profile."""

    max_flash_write: Annotated[
        str | None,
        Flag("--max-flash-write", help="Bytes a step may write to flash. Default: the device's.", rich_help_panel=TARGET),
    ] = None
    set_: Annotated[
        list[str] | None,
        Flag("--set", help="Override a profile entry: --set runtime.unpack_rate=2e9. Repeatable.", rich_help_panel=TARGET),
    ] = None

    def __post_init__(self) -> None:
        self.overrides()  # what cannot be read is refused before anything is measured

    def overrides(self) -> tuple[str, ...]:
        """--set as it is, and --max-flash-write as an entry of the profile."""
        if self.max_flash_write is None:
            return tuple(self.set_ or ())
        cap = parse_nbytes(self.max_flash_write, "--max-flash-write", lowest=0)
        return (*(self.set_ or ()), f"runtime.flash_write_cap_bytes={cap}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetFlags(FlagGroup):
    """Which device, and how much of it."""

    device: Annotated[
        str | None, Flag("--device", "-d", help="Device name, or a profile's .toml file.", rich_help_panel=TARGET)
    ] = None
    budget: Annotated[
        str | None,
        Flag("--budget", "-b", help="Footprint allowed: 1GB, 512MiB, or bytes. Default: the device's.", rich_help_panel=TARGET),
    ] = None

    def load(self, profile: ProfileFlags, default: str = DEFAULT_DEVICE) -> "Device":
        """The device named (or `default`), with overrides."""
        from mebp.sim.profile import load_device, override  # noqa: PLC0415

        if self.device is not None and not self.device.strip():
            raise InputError("--device is empty: take a name that `mebp-plan devices` lists, or a .toml file")
        return override(load_device(self.device or default), profile.overrides())

    def __post_init__(self) -> None:
        if self.budget is not None:
            parse_nbytes(self.budget, "--budget")  # refused before anything is measured

    def budget_on(self, device: "Device", say: Callable[[str], None]) -> int:
        """The budget named, or the device's own; never more than the device gives an app, which is said."""
        if self.budget is None:
            return device.default_budget_bytes
        asked, limit = parse_nbytes(self.budget, "--budget"), int(device.hardware.app_limit_bytes)
        if asked > limit:
            say(f"--budget {self.budget} is above what {device.name} gives an app: planning for {show_nbytes(limit)}")
        return min(asked, limit)

    def files(self) -> list[Path]:
        """Files that the flags name."""
        return _files(self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchFlags(FlagGroup):
    """How long to search."""

    time_limit: Annotated[
        float | None,
        Flag("--time-limit", help="Seconds to plan in, measuring not counted. Default: 30 (a curve: 120).", rich_help_panel=SEARCH),
    ] = None
    seed: Annotated[int, Flag("--seed", help="Seed of the search, and of random tokens.", rich_help_panel=SEARCH)] = 0

    def __post_init__(self) -> None:
        require_search(TIME_LIMIT if self.time_limit is None else self.time_limit, self.seed)

    def effort(self, progress: "Progress | None" = None, default: float = TIME_LIMIT) -> "Effort":
        """What the flags allow a command that begins to search now; `default` seconds where no limit was given."""
        from mebp.planner.effort import Effort  # noqa: PLC0415  (the solver takes half a second to import)

        limit = default if self.time_limit is None else self.time_limit
        require_search(limit, self.seed)
        one_s = limit / default * TIME_LIMIT / SEARCHES
        return Effort(deterministic_s=one_s, wall_s=limit, until=monotonic() + limit, seed=self.seed, progress=progress)


def require_search(time_limit: float, seed: int) -> None:
    """Refuse a --time-limit or --seed that no search can take."""
    if not 0 < time_limit < 1e6:
        raise InputError(f"`time_limit` = {time_limit:g}: must be a positive number of seconds, below a million")
    if not 0 <= seed < 2**31:
        raise InputError(f"`seed` = {seed}: must be between 0 and {2**31 - 1}")


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """The same command with the fields of its flag groups as parameters of their own."""
    own = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {name: p.annotation for name, p in own.items() if is_dataclass(p.annotation)}
    expanded: list[inspect.Parameter] = []
    for name, parameter in own.items():
        if name in groups:
            expanded += _parameters(groups[name])
        else:
            expanded.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    def wrapped(**given: Any) -> None:
        arguments = {name: group(**{f.name: given.pop(f.name) for f in fields(group)}) for name, group in groups.items()}
        command(**arguments, **given)

    wrapped.__signature__ = inspect.Signature(expanded)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in expanded}
    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    return wrapped


def _parameters(group: Any) -> list[inspect.Parameter]:
    """A group's fields as keyword parameters."""
    hints = get_type_hints(group, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(f.name, kind, default=f.default, annotation=hints[f.name]) for f in fields(group)]


def folder_files(folder: Path | None) -> list[Path]:
    """Files of a folder that a flag names."""
    return _files(None if folder is None else str(folder))


def _files(spec: str | None) -> list[Path]:
    """The file that a flag names, with its neighbours in a checkpoint's folder; or all files of the folder named."""
    if not spec or not os.path.exists(spec):
        return []
    path = Path(spec)
    folder = path if path.is_dir() else path.parent if path.suffix == ".json" else None
    return [path, *(other for other in folder.iterdir() if other.is_file())] if folder else [path]
