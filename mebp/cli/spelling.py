"""How a setting that the library names in backticks is typed here."""

import re

SPELLED = {  # settings whose flag is not their own name
    "rank": "--lora-r",
    "alpha": "--lora-alpha",
    "targets": "--lora-targets",
    "output": "-o",
    "dropout": "--lora-dropout",
}
SETTINGS = {
    *("model", "seq_len", "batch_size", "weights", "precision", "optimizer", "accumulate", "clip_norm", "device", "set"),
    *("max_flash_write", "budget", "time_limit", "seed", "copies", "capacity", "spill_dir", "store", "ids", "steps"),
    *("torch_device", "check_gradients", "enforce", "limit", "flash_bandwidth", "calibrate_on", "to", "text", *SPELLED),
    *("data", "valid", "hold_out", "buckets", "epochs", "learning_rate", "schedule", "warm_up", "lowest_rate", "weight_decay"),
    *(
        "perturbation",
        "beta1",
        "beta2",
        "layers",
        "tokens_per_step",
        "evaluate_every",
        "evaluate_batches",
        "patience",
        "save_every",
        "resume",
        "labelled",
        "states_in_file",
    ),
}


def flag_of(setting: str) -> str:
    """How a setting is typed."""
    return SPELLED.get(setting, f"--{setting.replace('_', '-')}")


def spell(text: str) -> str:
    """A library's text with the settings that it names in backticks as flags."""
    return re.sub(r"`([a-z_0-9]+)`", lambda match: flag_of(match[1]) if match[1] in SETTINGS else match[0], text)
