"""Read the rotary embeddings of a config.json, spelled both ways that transformers writes: `rope_theta` with `rope_scaling`, and
`rope_parameters` (5.x), by kind of attention or not.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mebp.errors import ModelError
from mebp.models.config import Rope
from mebp.models.family import Traits
from mebp.models.hf_config import HFConfig
from mebp.models.window import LOCAL

FULL = "full_attention"
OTHER_NAMES = {"mrope": "default", "su": "longrope"}  # mrope's three positions are one and the same for text
LARGEST = 1e6  # divisor of a frequency
KNOWN = "default, linear, dynamic, llama3, yarn and longrope"


def ropes(hf: HFConfig, traits: Traits, source: str) -> tuple[Rope, Rope]:
    """The rotary embeddings of layers without and with a window; ModelError naming `source` for what is not understood."""
    parameters, scaling = hf.rope_parameters or {}, hf.rope_scaling or {}
    by_kind = FULL in parameters
    _require_spelling(parameters, scaling, traits, hf.model_type, source)
    theta = hf.rope_theta or 10_000.0
    if by_kind:
        local_theta = hf.rope_local_base_freq if traits.local_rope == "own" else theta
        local = _rope(parameters.get(LOCAL) or {}, local_theta, hf, source)
        return _rope(parameters[FULL], theta, hf, source), local
    full = _rope(parameters or scaling, theta, hf, source)
    others = {"same": full, "own": Rope(theta=hf.rope_local_base_freq), "unscaled": Rope(theta=full.theta)}
    return full, others[traits.local_rope]


def _require_spelling(parameters: Mapping[str, Any], scaling: Mapping[str, Any], traits: Traits, kind: str, source: str) -> None:
    """Refuse spellings of the rotary embedding that transformers reads in another way than they are meant."""
    if parameters and scaling:
        raise ModelError(f"{source}: both rope_parameters and rope_scaling are given: leave one of them out")
    if traits.local_rope != "same" and parameters and FULL not in parameters:
        raise ModelError(f"{source}: rope_parameters must name {FULL} and {LOCAL} for {kind}")
    if traits.local_rope == "same" and {FULL, LOCAL} & parameters.keys():
        raise ModelError(f"{source}: rope_parameters by kind of attention are not {kind}'s: name rope_type and rope_theta")
    if traits.local_rope == "own" and "type" in scaling and "rope_type" not in scaling:
        raise ModelError(f"{source}: rope_scaling has type, which {kind} does not read: call it rope_type")


def _rope(fields: Any, theta: float, hf: HFConfig, source: str) -> Rope:
    if not isinstance(fields, dict):
        raise ModelError(f"{source}: rope parameters are a {type(fields).__name__}, not an object")
    kind = fields.get("rope_type", fields.get("type", "default"))
    kind = OTHER_NAMES.get(kind, kind) if isinstance(kind, str) else kind
    if kind == "yarn" and hf.model_type == "phi3":
        kind = "longrope"  # what early Phi-3 configs call it
    if not isinstance(kind, str) or kind not in READERS:
        raise ModelError(f"{source}: rope type {kind!r} is not supported: {KNOWN} are")
    try:
        fraction = float(fields.get("partial_rotary_factor", hf.partial_rotary_factor or 1.0))
        rope = READERS[kind](fields, hf, Rope(theta=float(fields.get("rope_theta", theta)), fraction=fraction))
    except KeyError as error:
        raise ModelError(f"{source}: rope type {kind!r} lacks {error}") from None
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise ModelError(f"{source}: rope parameters {fields!r}: {error}") from None
    _require_sane(rope, fields, hf, source)
    return rope


def _unscaled(fields: dict[str, Any], hf: HFConfig, base: Rope) -> Rope:
    return base


def _linear(fields: dict[str, Any], hf: HFConfig, base: Rope) -> Rope:
    return replace(base, scaling="linear", factor=float(fields["factor"]))


def _dynamic(fields: dict[str, Any], hf: HFConfig, base: Rope) -> Rope:
    return replace(base, scaling="dynamic", factor=float(fields["factor"]), original_context=_context(hf.max_position_embeddings))


def _llama3(fields: dict[str, Any], hf: HFConfig, base: Rope) -> Rope:
    return replace(
        base,
        scaling="llama3",
        factor=float(fields["factor"]),
        low=float(fields["low_freq_factor"]),
        high=float(fields["high_freq_factor"]),
        original_context=_original(fields, hf),
    )


def _yarn(fields: dict[str, Any], hf: HFConfig, base: Rope) -> Rope:
    """`attention_factor` is what multiplies the tables; where it is left out, Peng et al. (2023), YaRN, equation 22."""
    original = _original(fields, hf)
    factor = float(fields["factor"] or _context(hf.max_position_embeddings) / original)

    def grown(by: float) -> float:
        return 0.1 * by * math.log(factor) + 1.0 if factor > 1 else 1.0

    by, by_all = (float(fields.get(name) or 0.0) for name in ("mscale", "mscale_all_dim"))
    magnitude = fields.get("attention_factor")
    if magnitude is None:
        magnitude = grown(by) / grown(by_all) if by and by_all else grown(1.0)
    return replace(
        base,
        scaling="yarn",
        factor=factor,
        low=float(fields.get("beta_slow") or 1),
        high=float(fields.get("beta_fast") or 32),
        truncate=bool(fields.get("truncate", True)),
        original_context=original,
        magnitude=float(magnitude),
        query_growth=float(fields.get("llama_4_scaling_beta") or 0.0) if hf.model_type == "ministral3" else 0.0,
    )


def _longrope(fields: dict[str, Any], hf: HFConfig, base: Rope) -> Rope:
    """Ding et al. (2024), LongRoPE; the tables grow with the ratio of contexts as transformers has it."""
    original = _original(fields, hf)
    factor = float(fields.get("factor") or _context(hf.max_position_embeddings) / original)
    magnitude = fields.get("attention_factor")
    if magnitude is None:
        magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    short, long = (tuple(float(value) for value in fields[name]) for name in ("short_factor", "long_factor"))
    return replace(base, scaling="longrope", short=short, long=long, original_context=original, magnitude=float(magnitude))


READERS = {"default": _unscaled, "linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope}


def _original(fields: dict[str, Any], hf: HFConfig) -> int:
    """The context before scaling: of the whole config, where that says, else of the rope's own fields."""
    given = hf.original_max_position_embeddings or fields.get("original_max_position_embeddings")
    return int(given) if given is not None else _context(hf.max_position_embeddings)


def _context(length: int | None) -> int:
    if length is None:
        raise KeyError("max_position_embeddings")
    return length


def _require_sane(rope: Rope, fields: Any, hf: HFConfig, source: str) -> None:
    sane = 1 < rope.theta <= 1e12 and 1e-3 <= rope.factor <= 1e6 and 1 <= rope.original_context <= 1 << 30
    sane &= 0 < rope.fraction <= 1 and 1e-3 <= rope.magnitude <= 1e3 and 0 <= rope.query_growth <= 1e3
    if not (sane and 0 < rope.low < rope.high <= 1e6):
        bounds = "theta in (1, 1e12], factor in [1e-3, 1e6], 0 < low < high, a context of 1 or more"
        raise ModelError(f"{source}: rope parameters {fields!r} (theta {rope.theta:g}) are out of range: {bounds}")
    head_dim = hf.head_dim or hf.hidden_size // hf.num_attention_heads
    width = rope.width(head_dim)
    if width < 2 or width % 2:
        raise ModelError(
            f"{source}: partial_rotary_factor = {rope.fraction:g} rotates {width} of {head_dim} columns: expected even"
        )
    if rope.scaling == "dynamic" and width < 4:
        raise ModelError(f"{source}: rope type 'dynamic' rotates {width} columns: expected 4 or more")
    for name, factors in (("short_factor", rope.short), ("long_factor", rope.long)):
        if rope.scaling == "longrope" and (len(factors) != width // 2 or not all(0 < f < LARGEST for f in factors)):
            raise ModelError(f"{source}: {name} has {len(factors)} entries: expected {width // 2} above 0")
