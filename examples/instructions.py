"""Write a small set of instructions to learn: conversions of units, as a conversation per line.

python examples/instructions.py FOLDER    writes FOLDER/train.jsonl (400 lines) and FOLDER/valid.jsonl (40 others)
"""

import json
import random
import sys
from pathlib import Path

UNITS = [
    ("kilometres", "metres", 1000),
    ("metres", "centimetres", 100),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("kilograms", "grams", 1000),
    ("litres", "millilitres", 1000),
]
QUESTIONS = ["How many {small} are {n} {large}?", "Convert {n} {large} to {small}.", "{n} {large} in {small}, please."]
ANSWER = "{n} {large} are {result} {small}: one of them is {factor}, times {n}."


def conversation(draw: random.Random) -> dict[str, object]:
    """One question and its answer, in one fixed form."""
    large, small, factor = draw.choice(UNITS)
    n = draw.randint(2, 99)
    given = {"large": large, "small": small, "factor": factor, "n": n, "result": factor * n}
    asked = draw.choice(QUESTIONS).format(**given)
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": ANSWER.format(**given)}]}


def main() -> None:
    """Write both files; no question of the second is in the first."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "instructions")
    folder.mkdir(parents=True, exist_ok=True)
    draw, lines = random.Random(7), dict[str, None]()
    while len(lines) < 440:
        lines[json.dumps(conversation(draw))] = None
    for name, some in (("train.jsonl", list(lines)[:400]), ("valid.jsonl", list(lines)[400:])):
        (folder / name).write_text("\n".join(some) + "\n")
    print(f"wrote {folder}/train.jsonl and {folder}/valid.jsonl")


if __name__ == "__main__":
    main()
