"""Write the calibration text of the package: ``python calibration.py --docs DIR``.

It is part of the demo model's training text, never of the held-out text: whole files of moderate size, half code and half
documentation, chosen by the hash of their names.
"""

import argparse
import json
from pathlib import Path

import corpus

TARGET = Path(__file__).parents[2] / "src" / "hasten" / "demo" / "calibration.jsonl"
BYTES_PER_KIND = 215_000
FILE_BYTES = range(1_500, 10_000)  # small enough for dozens of files of each kind
SHARED_CHARS = 200  # a file that has this many characters in a row from a held-out file is left out


def passages(document: corpus.Document) -> set[str]:
    """Return every passage of ``SHARED_CHARS`` characters."""
    text = document.text
    return {text[start : start + SHARED_CHARS] for start in range(len(text) - SHARED_CHARS + 1)}


def choose(train: list[corpus.Document], held_out: list[corpus.Document]) -> list[corpus.Document]:
    """Return the first documents of each kind, in the order of ``corpus.load``, up to ``BYTES_PER_KIND``."""
    held_out_passages = {passage for document in held_out for passage in passages(document)}
    chosen: list[corpus.Document] = []
    for kind in ("code", "docs"):
        remaining = BYTES_PER_KIND
        for document in train:
            size = len(document.text.encode())
            if document.kind != kind or size not in FILE_BYTES or size > remaining:
                continue
            if held_out_passages.isdisjoint(passages(document)):
                remaining -= size
                chosen.append(document)
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=Path, required=True, help="folder of the CPython documentation's .rst sources")
    parser.add_argument("--out", type=Path, default=TARGET)
    options = parser.parse_args()
    with options.out.open("w", encoding="utf-8") as file:
        for document in choose(*corpus.load(options.docs)):
            file.write(json.dumps({"name": document.name, "kind": document.kind, "text": document.text}) + "\n")


if __name__ == "__main__":
    main()
