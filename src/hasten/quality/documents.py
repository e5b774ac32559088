"""Reading the texts for quality measurements: those that ship with hasten, or the user's."""

from __future__ import annotations

import json
import re
from pathlib import Path

from hasten.core.errors import InvalidOption

# The demo models were not trained on these texts; other models may have been.
HELD_OUT = Path(__file__).parents[1] / "demo" / "heldout.jsonl"
_TOKEN_ID = re.compile(r"[0-9]{1,12}")


def read_texts(file: Path) -> list[str]:
    """Return the texts of a file.

    A ``.jsonl`` file has one per line, under "text"; any other file is one UTF-8 text. Raises ``InvalidOption`` for a file that
    cannot be read, is not text or is empty.
    """
    content = read_text_file(file)
    if file.suffix.lower() != ".jsonl":
        return [content]
    texts = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
            text.encode()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise InvalidOption(
                f"line {number} of {file} holds no text", got=repr(line[:60]), allowed='one {"text": "..."} per line'
            ) from None
        texts.append(text)
    return texts


def read_token_ids(file: Path, vocab_size: int) -> list[tuple[int, ...]]:
    """Return one text per line, written as token ids with spaces or commas between them.

    Raises ``InvalidOption``.
    """
    texts = []
    for number, line in enumerate(read_text_file(file).splitlines(), 1):
        words = line.replace(",", " ").split()
        wrong = [word for word in words if not (_TOKEN_ID.fullmatch(word) and int(word) < vocab_size)]
        if wrong:
            raise InvalidOption(
                f"line {number} of {file} holds something that is not a token id",
                got=", ".join(word[:20] for word in wrong[:8]),
                allowed=f"whole numbers from 0 to {vocab_size - 1}",
            )
        if words:
            texts.append(tuple(int(word) for word in words))
    return texts


def read_text_file(file: Path) -> str:
    """Return the text of a UTF-8 file.

    Raises ``InvalidOption`` for a file that cannot be read, is not text or is empty.
    """
    remedy = "Give a file of UTF-8 text"
    try:
        if file.is_char_device():
            raise OSError("a device, which may have no end")
        content = file.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: no name of a file
        got = getattr(error, "strerror", None) or error
        raise InvalidOption(f"the file {file} cannot be read", got=got, remedy=remedy) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidOption(f"the file {file} is not text", got=f"byte {error.start} is not UTF-8", remedy=remedy) from None
    if "\0" in text:
        raise InvalidOption(f"the file {file} is not text", got=f"a zero byte at {content.index(0)}", remedy=remedy)
    if not text.strip():
        raise InvalidOption(f"the file {file} is empty", got=f"{len(content)} bytes", remedy=remedy)
    return text
