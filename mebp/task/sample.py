"""Text that is measured or run on, as tokens of a model's own tokenizer."""

from pathlib import Path

from mebp.errors import InputError
from mebp.text import read_text, shortened


def read_sample(path: Path, what: str) -> str:
    """A text file that `what` names; InputError in one line for one that cannot be read, or is empty."""
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        said = shortened(getattr(error, "strerror", None) or "not UTF-8")
        raise InputError(f"{what} {path} cannot be read ({said}): name a text file") from None
    if not text.strip():
        raise InputError(f"{what} {path} is empty: name a text file")
    return text


def sample_ids(store: Path, path: Path, what: str, *, count: int, length: int) -> tuple[tuple[int, ...], ...]:
    """The first `count` sequences of `length` tokens of a text file, by the tokenizer beside `store`'s weights."""
    from mebp.store.tokenizer import token_ids  # noqa: PLC0415  (its library takes a while)

    ids = token_ids(store, read_sample(path, what))
    if len(ids) < count * length:
        raise InputError(f"{what} {path} has {len(ids):,} tokens, the step takes {count * length:,}: name a longer text")
    return tuple(tuple(ids[start : start + length]) for start in range(0, count * length, length))
