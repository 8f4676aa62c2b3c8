"""The tokenizer that belongs to a model's weights, kept beside them: `tokenizer.json` as the library `tokenizers` reads it, the
names of its special tokens, and the chat template. Taken from a checkpoint's folder as they are, or made of a GGUF file's metadata.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from mebp.errors import ModelError
from mebp.text import read_text, shortened

TOKENIZER, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
GENERATION = "generation_config.json"  # which says where a text ends
Files = Mapping[str, str]  # file names to contents
Metadata = Callable[[str], Any]  # a GGUF file's metadata by key, None where there are none
CONTROL, USER_DEFINED, BYTE = 3, 4, 6  # types of tokens in GGUF
SPACE = "\u2581"  # what SentencePiece writes for a space

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
LLAMA3 = rf"{_WORDS}|\p{{N}}{{1,3}}{_REST}"
QWEN2 = rf"{_WORDS}|\p{{N}}{_REST}"
GPT4O = _CASED % (_CONTRACTED, _CONTRACTED, r"\p{N}{1,3}")
TEKKEN = _CASED % ("", "", r"\p{N}")
PATTERNS = {  # how text is split before byte pairs are joined, by the name that llama.cpp gives it; None is GPT-2's own
    **dict.fromkeys(("default", "gpt-2", "olmo", "phi-2"), None),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "dbrx", "falcon3"), LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), QWEN2),
    "gpt-4o": GPT4O,
    "tekken": TEKKEN,
}
BY_DIGIT = ("smollm", "starcoder", "refact", "command-r")  # each digit by itself, then GPT-2's split
KNOWN = "llama (SentencePiece) and gpt2 (byte pairs)"


def of_folder(folder: Path) -> Files:
    """The files of a checkpoint's tokenizer that exist; its template taken out of the settings where it is there. ModelError for
    one that is no text.
    """
    found: dict[str, str] = {}
    for name in (TOKENIZER, SETTINGS, TEMPLATE, GENERATION):
        try:
            if (folder / name).is_file():
                found[name] = read_text(folder / name)
        except (OSError, UnicodeDecodeError):
            raise ModelError(f"{folder / name} is not readable text: copy the checkpoint again") from None
    try:
        template = json.loads(found.get(SETTINGS, "{}")).get("chat_template")
        str(template).encode()
    except (ValueError, AttributeError):
        raise ModelError(f"{folder / SETTINGS} is not readable JSON: copy the checkpoint again") from None
    return found if TEMPLATE in found or not isinstance(template, str) else found | {TEMPLATE: template}


def of_gguf(field: Metadata) -> Files:
    """The same files, made of a GGUF file's metadata; none where it has no tokenizer of a kind that is known."""
    given = _read(field)
    if given is None:
        return {}
    try:
        tokenizer = _made(given)
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(f"its tokenizer's metadata do not fit together ({shortened(str(error))}): copy the file again") from None
    template = field("tokenizer.chat_template")
    settings = json.dumps(given.settings, indent=2, ensure_ascii=False)
    return {TOKENIZER: tokenizer.to_str(), SETTINGS: settings} | ({TEMPLATE: template} if isinstance(template, str) else {})


def _made(given: "_Given") -> Tokenizer:
    tokenizer = _byte_pairs(given) if given.model == "gpt2" else _sentence_pieces(given)
    special = [
        AddedToken(token, special=kind == CONTROL, normalized=False)
        for token, kind in zip(given.tokens, given.types, strict=True)
        if kind in (CONTROL, USER_DEFINED)
    ]
    tokenizer.add_special_tokens([token for token in special if token.special])
    tokenizer.add_tokens([token for token in special if not token.special])
    ends = [(given.tokens[token], token) for token in (given.first, given.last) if token is not None]
    if ends:
        first, last = ([given.tokens[token]] if token is not None else [] for token in (given.first, given.last))
        single, pair = " ".join([*first, "$A", *last]), " ".join([*first, "$A", *last, *first, "$B", *last])
        around = processors.TemplateProcessing(single=single, pair=pair, special_tokens=list(dict.fromkeys(ends)))
        own = [tokenizer.post_processor] if tokenizer.post_processor is not None else []
        tokenizer.post_processor = processors.Sequence([*own, around])
    return tokenizer


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in `folder`, which neither cuts nor pads; ModelError where there is none that can be read."""
    file = folder / TOKENIZER
    if not file.is_file():
        raise ModelError(f"there is no {TOKENIZER} beside the weights, or in the file: put the model's there")
    try:
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_truncation()  # which files that were saved in training may ask for
        tokenizer.no_padding()
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(f"{file} cannot be read as a tokenizer ({shortened(str(error))}): copy the model's again") from None
    return tokenizer


def token_ids(folder: Path, text: str) -> list[int]:
    """A text's tokens by the tokenizer in `folder`; ModelError where there is none that can be read."""
    tokenizer = open_tokenizer(folder)
    try:
        found: list[int] = tokenizer.encode(text).ids
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(f"{folder / TOKENIZER} cannot spell the text ({shortened(str(error))}): copy the model's again") from None
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """What a GGUF file says of its tokenizer."""

    model: str
    split: str
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    merges: Sequence[str]
    first: int | None
    last: int | None
    adds_space: bool
    settings: Mapping[str, object]


def _read(field: Metadata) -> _Given | None:
    """None where there is no tokenizer of a kind that is known; ModelError where what there is does not fit together."""
    model, tokens, split = field("tokenizer.ggml.model"), field("tokenizer.ggml.tokens"), field("tokenizer.ggml.pre") or "default"
    if model not in ("gpt2", "llama") or not tokens or (model == "gpt2" and split not in {*PATTERNS, *BY_DIGIT}):
        return None
    types, scores, merges = (field(f"tokenizer.ggml.{name}") for name in ("token_type", "scores", "merges"))
    types = types or [1] * (len(tokens) if isinstance(tokens, list) else 0)
    lists = (tokens, types, scores or [], merges or [])
    fit = all(isinstance(found, list) for found in lists) and len(types) == len(tokens)
    fit = fit and (model == "gpt2" or len(scores or ()) == len(tokens)) and all(isinstance(token, str) for token in tokens)
    ids = {name: field(f"tokenizer.ggml.{key}_token_id") for name, key in SPECIAL.items()}
    ids = {name: token for name, token in ids.items() if token is not None}
    if not fit or not all(isinstance(token, int) and 0 <= token < len(tokens) for token in ids.values()):
        raise ModelError("its tokenizer's metadata do not fit together: copy the file again")
    adds_bos, adds_eos = field("tokenizer.ggml.add_bos_token"), bool(field("tokenizer.ggml.add_eos_token"))
    if adds_bos is None:
        adds_bos = model == "llama" or split in ("llama-bpe", "llama3", "tekken")
    settings = {name: tokens[token] for name, token in ids.items()}
    return _Given(
        model=str(model),
        split=str(split),
        tokens=tokens,
        types=types,
        scores=scores or [],
        merges=merges or [],
        first=ids.get("bos_token") if adds_bos else None,
        last=ids.get("eos_token") if adds_eos else None,
        adds_space=field("tokenizer.ggml.add_space_prefix") is not False,
        settings=settings | {"add_bos_token": bool(adds_bos), "add_eos_token": adds_eos},
    )


SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def _byte_pairs(given: _Given) -> Tokenizer:
    """GPT-2's: bytes as visible characters, split by a pattern, joined by merges."""
    vocab = {token: index for index, token in enumerate(given.tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in given.merges)]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=given.split in ("llama-bpe", "llama3")))
    pattern = PATTERNS.get(given.split)
    if given.split in BY_DIGIT:
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    elif pattern is None:
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        steps = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    if given.split == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_pieces(given: _Given) -> Tokenizer:
    """Llama's and Gemma's: pieces joined by score, bytes where there is none. A merge's rank is that of the piece it makes."""
    vocab = {token: index for index, token in enumerate(given.tokens)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab, merges=_merges_of_scores(given, vocab), unk_token=_unknown(given), fuse_unk=True, byte_fallback=True
        )
    )
    prefix = [normalizers.Prepend(SPACE)] if given.adds_space else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    tail = [decoders.Strip(content=" ", left=1)] if given.adds_space else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *tail])
    return tokenizer


def _unknown(given: _Given) -> str | None:
    found = given.settings.get("unk_token")
    return found if isinstance(found, str) else None


def _merges_of_scores(given: _Given, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two, the pieces with the best score first."""
    found: list[tuple[float, int, tuple[str, str]]] = []
    for token, kind, score in zip(given.tokens, given.types, given.scores, strict=True):
        if kind in (CONTROL, BYTE):
            continue
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        ranked = sorted((vocab[left], vocab[right], left, right) for left, right in halves if left in vocab and right in vocab)
        found += [(-score, len(found) + at, (left, right)) for at, (_, _, left, right) in enumerate(ranked)]
    return [pair for _, _, pair in sorted(found)]
