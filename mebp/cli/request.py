"""The flags that plan, run and compare share, and what they ask for: a graph, a device, a budget, limits of the search."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from mebp.cli.screen import note
from mebp.cli.unit import parse_nbytes, show_nbytes
from mebp.errors import InputError
from mebp.models.build import build_graph
from mebp.models.catalogue import load_model
from mebp.models.config import ModelConfig
from mebp.models.format import weight_format
from mebp.models.graph import Graph
from mebp.models.workload import Lora, Optimizer, Precision, Workload, parse_targets
from mebp.sim.device import Device
from mebp.sim.profile import load_device, override

Flag = typer.Option
DEFAULT_MODEL = "0.5b"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the shared flags say, checked; `device_name` is None where the command is to choose it.

    `given` names the flags that were used at all, `sources` the files that they read.
    """

    config: ModelConfig
    workload: Workload
    device_name: str | None
    overrides: tuple[str, ...]
    budget_text: str | None
    time_limit_s: float
    seed: int
    given: frozenset[str] = frozenset()
    sources: tuple[str, ...] = ()

    def graph(self) -> Graph:
        return build_graph(self.config, self.workload)

    def device(self, default: str) -> Device:
        """The device asked for (or `default`), with overrides."""
        return override(load_device(self.device_name or default), self.overrides)

    def budget(self, device: Device) -> int:
        """The budget asked for, or the device's own; never more than the device gives an app."""
        if self.budget_text is None:
            return device.default_budget_bytes
        asked, limit = parse_nbytes(self.budget_text, "--budget"), int(device.hardware.app_limit_bytes)
        if asked > limit:
            note(f"--budget {self.budget_text} is above what {device.name} gives an app: planning for {show_nbytes(limit)}")
        return min(asked, limit)


def make_request(
    model: Annotated[
        str | None,
        Flag("--model", "-m", help="Name, alias (0.5b 1.5b 3b 1b 4b), config.json or its folder. Default: 0.5b."),
    ] = None,
    device: Annotated[str | None, Flag("--device", "-d", help="Device name, or a profile's .toml file.")] = None,
    seq_len: Annotated[int, Flag("--seq-len", help="Tokens a sequence.")] = 256,
    batch_size: Annotated[int, Flag("--batch-size", help="Sequences a step.")] = 1,
    lora_r: Annotated[int, Flag("--lora-r", "--lora-rank", help="Rank of the adapters.")] = 8,
    lora_alpha: Annotated[float, Flag("--lora-alpha", help="Adapters are scaled by alpha / rank.")] = 16.0,
    lora_targets: Annotated[
        str, Flag("--lora-targets", "--target-modules", help="all-linear, or some of q,k,v,o,gate,up,down.")
    ] = "all-linear",
    weights: Annotated[
        str, Flag("--weights", help="Format of the frozen weights: int4-g32 int4-g64 int4-g128 int8 ternary bf16.")
    ] = "int4-g64",
    precision: Annotated[str, Flag("--precision", help="Activations and products: bf16 or fp32.")] = "bf16",
    optimizer: Annotated[str, Flag("--optimizer", help="sgd or adamw.")] = "sgd",
    accumulate: Annotated[int, Flag("--accumulate", help="Steps whose mean gradient makes one update.")] = 1,
    clip_norm: Annotated[float, Flag("--clip-norm", help="Longest gradient, all adapters together; 0: no clipping.")] = 0.0,
    budget: Annotated[
        str | None, Flag("--budget", "-b", help="Footprint allowed: 1GB, 512MiB, or bytes. Default: the device's.")
    ] = None,
    max_flash_write: Annotated[
        str | None, Flag("--max-flash-write", help="Bytes a step may write to flash. Default: the device's.")
    ] = None,
    set_: Annotated[
        list[str] | None, Flag("--set", help="Override a profile entry: --set runtime.unpack_rate=2e9. Repeatable.")
    ] = None,
    time_limit: Annotated[float, Flag("--time-limit", help="Seconds that one search may take, about.")] = 4.0,
    seed: Annotated[int, Flag("--seed", help="Seed of the search, and of random tokens.")] = 0,
) -> Request:
    """Check the shared flags and put them together."""
    require_effort(time_limit, seed)
    if budget is not None:
        parse_nbytes(budget, "--budget")
    lora = Lora(rank=lora_r, alpha=lora_alpha, targets=parse_targets(lora_targets))
    return Request(
        config=load_model(DEFAULT_MODEL if model is None else model),
        workload=Workload(
            seq_len=seq_len,
            batch_size=batch_size,
            lora=lora,
            weights=weight_format(weights),
            precision=cast(Precision, precision),
            optimizer=cast(Optimizer, optimizer),
            accumulate=accumulate,
            clip_norm=clip_norm,
        ),
        device_name=_named(device),
        overrides=_overrides(set_, max_flash_write),
        budget_text=budget,
        time_limit_s=time_limit,
        seed=seed,
        sources=_files(model, device),
    )


def _overrides(assignments: list[str] | None, max_flash_write: str | None) -> tuple[str, ...]:
    """--set as it is, and --max-flash-write as an entry of the profile."""
    if max_flash_write is None:
        return tuple(assignments or ())
    cap = parse_nbytes(max_flash_write, "--max-flash-write", lowest=0)
    return (*(assignments or ()), f"runtime.flash_write_cap_bytes={cap}")


def _files(model: str | None, device: str | None) -> tuple[str, ...]:
    """Files that the flags name as inputs."""
    named = [spec for spec in (model, device) if spec]
    inside = [str(Path(spec) / "config.json") for spec in named if Path(spec).is_dir()]
    return tuple(spec for spec in (*named, *inside) if Path(spec).is_file())


def _named(device: str | None) -> str | None:
    if device is not None and not device.strip():
        raise InputError("--device is empty: take a name that `mebp-plan devices` lists, or a .toml file")
    return device


def require_effort(time_limit: float, seed: int) -> None:
    """Refuse a --time-limit or --seed that no search can take."""
    if not 0 < time_limit < 1e6:
        raise InputError(f"--time-limit = {time_limit:g}: must be a positive number of seconds, below a million")
    if not 0 <= seed < 2**31:
        raise InputError(f"--seed = {seed}: must be between 0 and {2**31 - 1}")


def takes_request(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command(request, ...)` the shared flags in place of its first parameter."""
    shared = inspect.signature(make_request, eval_str=True).parameters
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    def wrapped(**given: Any) -> None:
        flags = {name: given.pop(name) for name in shared}
        used = frozenset(name.rstrip("_") for name, value in flags.items() if value != shared[name].default and value != [])
        command(replace(make_request(**flags), given=used), **given)

    arguments = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *shared.values())]
    wrapped.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in arguments}
    wrapped.__name__ = command.__name__
    wrapped.__doc__ = command.__doc__
    return wrapped
