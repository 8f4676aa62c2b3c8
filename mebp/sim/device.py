"""A device: hardware numbers, the runtime fitted on them, and where each number comes from. profile.py reads and writes it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal, cast

from mebp.models.op import Rate
from mebp.models.tensor import FLOAT_BYTES
from mebp.plan import Engine

Provenance = Literal["measured", "vendor", "assumed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What the machine is. Bytes, bytes/s and FLOP/s; `flash_life_bytes` are what the flash is rated to take in its life (0: not
    known), `product_flops` is what a good dense 16-bit product attains,
    `page_cache_bytes` what the system keeps in memory of files (compressed weights) in addition to the app.
    """

    ram_bytes: float
    memory_bandwidth: float
    product_flops: float
    flash_read: float
    flash_write: float
    flash_life_bytes: float
    app_limit_bytes: float
    page_cache_bytes: float
    page_bytes: float
    sustained_factor: float
    power_watts: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What a training runtime gets out of the hardware.

    The fractions are of `product_flops` (products of the forward and of the backward, attention, head) and `memory_bandwidth`;
    `unpack_rate` is in weights/s; `fp32_factor` multiplies the time of products in fp32. `unpack_beside` is 1 where unpacking has a
    processor of its own. `footprint_bytes` is there before any tensor; `kernel_bytes` are what the libraries keep for each shape of
    a product in 16 bits (see models/kind/table.py), `kernel_bytes_fp32` for one in fp32, `op_bytes` what the runtime keeps in
    memory for each op of the graph and the plan, `kept_...` what the paper's implementation keeps (see published.py).
    """

    product_fraction: float
    backward_fraction: float
    attention_fraction: float
    head_fraction: float
    bandwidth_fraction: float
    unpack_rate: float
    fp32_factor: float
    launch_seconds: float
    flash_latency_seconds: float
    unpack_beside: float
    footprint_bytes: float
    kernel_bytes: float
    kernel_bytes_fp32: float
    op_bytes: float
    kept_logits: float
    kept_heads: float
    kept_scores: float
    kept_adapter_bytes: float
    recommended_budget_bytes: float
    flash_write_cap_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a number comes from, and the lowest and highest that it may be, where that is known."""

    kind: Provenance
    source: str
    range: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A named profile; `sources` has an entry for every number, keyed `hardware.x`, `runtime.x`, `shapes.x` or `workspace.x`.

    `shapes` are measured factors by the name of an op's shape (see shape.py), `workspace` the bytes that libraries were measured to
    keep for ops of a shape; a name that no op has is never asked for. `overrides` are the `key=value` that changed it after it was
    read.
    """

    name: str
    title: str
    hardware: Hardware
    runtime: Runtime
    shapes: Mapping[str, float] = field(default_factory=dict)
    workspace: Mapping[str, float] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()

    @property
    def unpacks_concurrently(self) -> bool:
        """Whether weights are unpacked on an engine of its own, concurrently with the processor."""
        return bool(self.runtime.unpack_beside)

    @property
    def runs_torch(self) -> bool:
        """Whether its runtime is this project's executor: libraries that keep something for each kernel that they compile."""
        return self.runtime.kernel_bytes > 0

    @property
    def unpack_engine(self) -> Engine:
        return Engine.UNPACK if self.unpacks_concurrently else Engine.COMPUTE

    @property
    def default_budget_bytes(self) -> int:
        """The recommended budget, never above 0.8 x the app limit."""
        return int(min(self.runtime.recommended_budget_bytes, 0.8 * self.hardware.app_limit_bytes))

    def rate(self, rate: Rate, itemsize: int = 2) -> float:
        """FLOP/s that ops of a rate attain on values of `itemsize` bytes; of MEMORY bytes/s. The one rule of rates."""
        if rate is Rate.MEMORY:
            return self.hardware.memory_bandwidth * self.runtime.bandwidth_fraction
        fraction = cast(float, getattr(self.runtime, FRACTIONS[rate]))
        return self.dense_flops(itemsize) * fraction

    def dense_flops(self, itemsize: int) -> float:
        """FLOP/s that a good dense product attains on values of `itemsize` bytes."""
        return self.hardware.product_flops / (self.runtime.fp32_factor if itemsize == FLOAT_BYTES else 1.0)

    def value(self, key: str) -> float:
        """The number behind `hardware.x`, `runtime.x`, `shapes.x` or `workspace.x`."""
        section, _, name = key.partition(".")
        if section in MEASURED_BY_SHAPE:
            return cast(float, getattr(self, section)[name])
        return cast(float, getattr(getattr(self, section), name))

    def with_value(self, key: str, value: float) -> "Device":
        """The same profile with another number behind a key."""
        section, _, name = key.partition(".")
        match section:
            case "hardware":
                return replace(self, hardware=replace(self.hardware, **{name: value}))
            case "runtime":
                return replace(self, runtime=replace(self.runtime, **{name: value}))
            case "shapes":
                return replace(self, shapes={**self.shapes, name: value})
            case _:
                return replace(self, workspace={**self.workspace, name: value})


FRACTIONS = {  # of `product_flops` that each kind of product attains
    Rate.FORWARD_PRODUCT: "product_fraction",
    Rate.BACKWARD_PRODUCT: "backward_fraction",
    Rate.ATTENTION: "attention_fraction",
    Rate.HEAD: "head_fraction",
}
SWITCHES = ("runtime.unpack_beside",)  # 0 or 1
BYTES = (1e3, 1e15)
RATE = (1e4, 1e15)  # bytes/s, weights/s
FRACTION = (1e-4, 10.0)
RANGES: dict[str, tuple[float, float]] = {  # what a number can be; wide enough to refuse only typing errors
    "hardware.ram_bytes": BYTES,
    "hardware.memory_bandwidth": RATE,
    "hardware.product_flops": (1e7, 1e18),
    "hardware.flash_read": RATE,
    "hardware.flash_write": RATE,
    "hardware.flash_life_bytes": (0.0, 1e18),
    "hardware.app_limit_bytes": BYTES,
    "hardware.page_cache_bytes": (0.0, 1e15),
    "hardware.page_bytes": (512, 1e9),
    "hardware.sustained_factor": (0.01, 1.0),
    "hardware.power_watts": (0.01, 1e5),
    "runtime.product_fraction": FRACTION,
    "runtime.backward_fraction": FRACTION,
    "runtime.attention_fraction": FRACTION,
    "runtime.head_fraction": FRACTION,
    "runtime.bandwidth_fraction": FRACTION,
    "runtime.unpack_rate": RATE,
    "runtime.fp32_factor": (0.01, 100.0),
    "runtime.launch_seconds": (0.0, 1.0),
    "runtime.flash_latency_seconds": (0.0, 10.0),
    "runtime.unpack_beside": (0.0, 1.0),
    "runtime.footprint_bytes": BYTES,
    "runtime.kernel_bytes": (0.0, 1e15),
    "runtime.kernel_bytes_fp32": (0.0, 1e15),
    "runtime.op_bytes": (0.0, 1e9),
    "runtime.kept_logits": (0.0, 100.0),
    "runtime.kept_heads": (0.0, 100.0),
    "runtime.kept_scores": (0.0, 100.0),
    "runtime.kept_adapter_bytes": (0.0, 8.0),
    "runtime.recommended_budget_bytes": BYTES,
    "runtime.flash_write_cap_bytes": (0.0, 1e15),
}
SECTIONS: dict[str, type[Hardware] | type[Runtime]] = {"hardware": Hardware, "runtime": Runtime}
KEYS = tuple(f"{section}.{f.name}" for section, cls in SECTIONS.items() for f in fields(cls))
SHAPES, WORKSPACE = "shapes", "workspace"
MEASURED_BY_SHAPE = (SHAPES, WORKSPACE)
SHAPE_FACTOR = (1e-4, 1e4)  # an op that takes microseconds may take a hundred times what its bytes say


def range_of(key: str) -> tuple[float, float]:
    """The lowest and the highest that a profile's number can be."""
    section = key.partition(".")[0]
    return SHAPE_FACTOR if section == SHAPES else (0.0, 1e15) if section == WORKSPACE else RANGES[key]
