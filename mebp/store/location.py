"""Where a source keeps what a store calls by one name: a tensor of its own, or some rows of one that several share."""

from collections.abc import Mapping
from dataclasses import dataclass

from mebp.models.config import LinearName, ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Rows from `first` on, of the `total` that the tensor `{module}.{part}` has."""

    module: str
    part: str = "weight"
    first: int = 0
    total: int

    @property
    def tensor(self) -> str:
        return f"{self.module}.{self.part}"


Modules = Mapping[LinearName, str]
Fused = Mapping[str, tuple[LinearName, ...]]  # modules that several linears share, rows one behind the other


def locations(
    config: ModelConfig, outer: Mapping[str, str], layer: str, linears: Modules, norms: Mapping[str, str], fused: Fused
) -> dict[str, Location]:
    """The location of every tensor of a store. `outer` names the modules outside the layers, `layer` is what stands before the
    names within a layer, with {} for its number; `linears` and `norms` name those.
    """
    rows = {name: shape[0] for name, shape in config.linear_shapes().items()}
    of_linear = {name: Location(module=module, total=rows[name]) for name, module in linears.items()}
    for module, parts in fused.items():
        first, total = 0, sum(rows[role] for role in parts)
        for role in parts:
            of_linear[role] = Location(module=module, first=first, total=total)
            first += rows[role]
    found: dict[str, Location] = {}
    for name, shape in config.shapes().items():
        number, _, part = name.rpartition(".")
        linear = next((of_linear[role] for role in of_linear if part in (role, f"{role}_bias")), None)
        if not number:
            found[name] = Location(module=outer[name], total=shape[0])
        elif linear is None:
            found[name] = Location(module=layer.format(number) + norms[part], total=shape[0])
        else:
            kind = "bias" if part.endswith("_bias") else "weight"
            found[name] = Location(module=layer.format(number) + linear.module, part=kind, first=linear.first, total=linear.total)
    return found
