"""``question_features``: what the router sees of a question, as named features.

Features are words and Chinese characters, and the classes of words that ``router_lexicon.json`` lists in both languages: "poem" and
"诗" are writing, "tips" and "技巧" are points. A word of no class is reduced to its ending. Quoted text is left out, since it holds
no order. All patterns take time linear in the text.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

START, BREAK, END = "^", "|", "$"  # marks around a clause; END: after the last clause
CLASSES = "_"  # prefix of features made of classes
MAX_OPENING = 3  # most words or classes in a feature of the beginning

_QUOTED = re.compile(r"[\"“”][^\"“”]*[\"“”]|‘[^‘’]*’|(?<!\w)'[^']*'(?!\w)|「[^「」]*」")
_CLAUSE_END = re.compile(r"[.!?:;,\n。、]+")
_TOKEN = re.compile(r"[a-z]+(?:['-][a-z]+)*|\d+|[\u4e00-\u9fff]|[^\w\s]|_")
_CODE_SIGN = re.compile(r"[=+*/^<>{}\[\]_`\\|]|\w\(")
_ENDINGS = ("est", "ing", "ed", "ly")
_LENGTHS, _CLAUSES, _NUMBERS = (4, 7, 10, 14, 20, 28, 40, 60, 100), (1, 2, 3, 5), (0, 1, 2, 4)


class Piece(NamedTuple):
    name: str  # as it stands in the names of features
    words: str  # as it stands in the question


class Lexicon(NamedTuple):
    names: dict[str, str]  # word -> "<class>", or the word itself if it is a function word
    lengths: dict[str, list[int]]  # first character of Chinese words -> their lengths, longest first


@functools.cache
def lexicon() -> Lexicon:
    """Return the classes of words, read once."""
    found = json.loads(Path(__file__).with_name("router_lexicon.json").read_text(encoding="utf-8"))
    names = {word: word for word in found["function_words"]}
    names |= {word: f"<{name}>" for name, words in found["classes"].items() for word in words}
    lengths: dict[str, set[int]] = {}
    for word in filter(_is_chinese, names):
        lengths.setdefault(word[0], set()).add(len(word))
    return Lexicon(names, {first: sorted(found, reverse=True) for first, found in lengths.items()})


def question_features(question: str) -> dict[str, str]:
    """Return the names of a question's features, each with the words it stands for ("" if it is a count)."""
    text = unicodedata.normalize("NFKC", question).lower()
    unquoted = _QUOTED.sub(' " ', text).replace("’", "'")
    clauses = [tokens for clause in _CLAUSE_END.split(unquoted) if (tokens := _TOKEN.findall(clause))]
    found = dict.fromkeys(_counts(text, clauses), "")
    if _QUOTED.search(text):
        found["#quote"] = ""
    for index, tokens in enumerate(clauses):
        words = [Piece("0" if token.isdigit() else token, token) for token in tokens]
        end = Piece(END if index == len(clauses) - 1 else BREAK, "")
        for prefix, pieces in (("", words), (CLASSES, _classes(tokens))):
            if index == 0:
                for size in range(1, min(MAX_OPENING, len(pieces)) + 1):
                    name = " ".join([piece.name for piece in pieces[:size]])
                    found[f"{prefix}{START}{START}{name}"] = _joined(*[piece.words for piece in pieces[:size]])
            before = Piece(START, "")
            for piece in (*pieces, end):
                name, shown = piece
                found.setdefault(prefix + name, shown)
                if prefix or _is_chinese(name) or _is_chinese(before.name):
                    found.setdefault(f"{prefix}{before.name} {name}", _joined(before.words, shown))
                before = piece
    return found


def _joined(*words: str) -> str:
    return ("" if _is_chinese(words[-1] or "^") else " ").join(filter(None, words))


def _counts(text: str, clauses: list[list[str]]) -> Iterator[str]:
    tokens = [token for clause in clauses for token in clause]
    language = "zh" if 3 * sum(map(_is_chinese, tokens)) > len(tokens) else "en"
    numbers = sum(token.isdigit() for token in tokens)
    yield from (f"#length {language}>{limit}" for limit in _LENGTHS if len(tokens) > limit)
    yield from (f"#clauses>{limit}" for limit in _CLAUSES if len(clauses) > limit)
    yield from (f"#numbers>{limit}" for limit in _NUMBERS if numbers > limit)
    yield from (f"#{sign}" for sign in "?:" if sign in text)
    if _CODE_SIGN.search(text):
        yield "#code sign"


def _is_chinese(token: str) -> bool:
    return "\u4e00" <= token[0] <= "\u9fff"


def _classes(tokens: list[str]) -> list[Piece]:
    """Return the classes of words.

    Chinese words are the longest of the lexicon. The characters between them are one piece, ``*``.
    """
    names, lengths = lexicon()
    found: list[Piece] = []
    i, unknown, text = 0, 0, "".join(token if _is_chinese(token) else " " for token in tokens)  # one character for each token
    while i < len(tokens):
        size, name = 1, ""
        if text[i] == " ":
            name = _class_of_word(tokens[i], names)
        else:
            for size in lengths.get(text[i], ()):
                if name := names.get(text[i : i + size], ""):
                    break
        if name:
            if unknown < i:
                found.append(Piece("*", text[unknown:i]))
            found.append(Piece(name, "".join(tokens[i : i + size])))
            i = unknown = i + size
        else:
            i += 1
    if unknown < i:
        found.append(Piece("*", text[unknown:i]))
    return found


def _class_of_word(word: str, names: dict[str, str]) -> str:
    if name := names.get(word):
        return name
    if word.isdigit():
        return "0"
    if not word[0].isalpha():
        return word
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) > len(ending) + 2:
            return f"~{ending}"
    return "~s" if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3 else "~"
