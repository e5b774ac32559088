"""Reading the texts for quality measurements: those that ship with hasten, or the user's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from hasten.core.errors import InvalidOption

_DEMO = Path(__file__).parents[1] / "demo"
# The demo models were not trained on these texts; other models may have been.
HELD_OUT = _DEMO / "heldout.jsonl"
CALIBRATION = _DEMO / "calibration.jsonl"  # of the training text of the demo models; no held-out text
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


def split_lines(text: str, length: int) -> Iterator[str]:
    """Yield the text in parts that end with a line, each a little longer than ``length`` characters."""
    start = 0
    while len(text) - start > length:
        end = text.find("\n", start + length) + 1
        if end == 0:
            break
        yield text[start:end]
        start = end
    yield text[start:]


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
