"""Which layers of a family have a sliding window, and which no rotary embedding: a function of config.json for each way."""

from collections.abc import Callable, Sequence

from mebp.models.hf_config import HFConfig

LOCAL = "sliding_attention"  # a layer with a window, in `layer_types`


def no_windows(hf: HFConfig) -> list[bool]:
    return [False] * hf.num_hidden_layers


def all_windows(hf: HFConfig) -> list[bool]:
    return [hf.sliding_window is not None] * hf.num_hidden_layers


def late_windows(hf: HFConfig) -> list[bool]:
    """Qwen's: from layer `max_window_layers` on, where `use_sliding_window` says so."""
    if not hf.use_sliding_window or hf.sliding_window is None:
        return no_windows(hf)
    first = 28 if hf.max_window_layers is None else hf.max_window_layers
    return _listed(hf) or [layer >= first for layer in range(hf.num_hidden_layers)]


def all_but_every(nth: int) -> Callable[[HFConfig], list[bool]]:
    """A window on all layers but every nth."""

    def windows(hf: HFConfig) -> list[bool]:
        count = hf.num_hidden_layers
        if listed := _listed(hf):
            return listed
        match hf.sliding_window_pattern:
            case str(pattern):
                return [pattern[layer % len(pattern)] == "L" and layer < count - 1 for layer in range(count)]
            case int(every):
                return [(layer + 1) % every != 0 for layer in range(count)]
        return [(layer + 1) % nth != 0 for layer in range(count)]

    return windows


def exaone_windows(hf: HFConfig) -> list[bool]:
    return no_windows(hf) if hf.sliding_window is None else all_but_every(4)(hf)


def unrotated_windows(hf: HFConfig) -> list[bool]:
    """SmolLM3's: on layers without rotary embedding, where `use_sliding_window` says so."""
    if not hf.use_sliding_window or hf.sliding_window is None:
        return no_windows(hf)
    unrotated = every_nth_unrotated(hf)
    return _listed(hf) or [layer in unrotated for layer in range(hf.num_hidden_layers)]


def _listed(hf: HFConfig) -> list[bool] | None:
    return [kind == LOCAL for kind in hf.layer_types] if hf.layer_types else None


def all_rotated(hf: HFConfig) -> tuple[int, ...]:
    return ()


def every_nth_unrotated(hf: HFConfig) -> tuple[int, ...]:
    layers, every = range(hf.num_hidden_layers), hf.no_rope_layer_interval
    given: Sequence[int] = hf.no_rope_layers or [int((layer + 1) % every != 0) for layer in layers]
    return tuple(layer for layer, rotated in zip(layers, given, strict=False) if not rotated)


def windowless_unrotated(hf: HFConfig) -> tuple[int, ...]:
    """EXAONE 4's: where some layers have a window, the others have no rotary embedding."""
    windows = exaone_windows(hf)
    return () if hf.sliding_window is None else tuple(layer for layer, local in enumerate(windows) if not local)
