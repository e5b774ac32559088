"""``AskedLength``: how long an answer the prompt asks for, in English and Chinese.

A number of words asks for a length only with a word that says so: "in 50 words", "a 300-word essay"; not "these five words".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

CountedUnit = Literal["words", "sentences", "characters"]

MAX_PROMPT = 600  # characters at either end of a prompt in which a length is looked for
MAX_TEXT = 1 << 20  # characters of an output that are counted
MIN_CHARACTERS = 20  # Chinese characters that are a length without a word that says so
_ENGLISH_NUMBERS = {
    **{
        name: number
        for number, name in enumerate(("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), 1)
    },
    "a single": 1,
    "twenty": 20,
    "fifty": 50,
    "hundred": 100,
}
_CHINESE_NUMBERS = dict(zip("一两二三四五六七八九十", (1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10), strict=True)) | {"五十": 50, "一百": 100}
_ENGLISH = re.compile(
    rf"(?P<before>(?:[\w']+\s+){{0,3}})\b(?P<number>\d{{1,6}}|(?:one )?hundred|{'|'.join(_ENGLISH_NUMBERS)})"
    r"(?P<hyphen>[\s-]+)(?P<unit>words?|sentences?)\b(?P<after>\s*(?:or (?:less|fewer|more)|at most|at least|max|long))?",
    re.IGNORECASE,
)
_CHINESE = re.compile(
    r"(?P<before>不超过|不多于|最多|至多|至少|不少于|不低于|用|以|写|约|大约)?\s*"
    rf"(?P<number>\d{{1,6}}|{'|'.join(sorted(_CHINESE_NUMBERS, key=len, reverse=True))})\s*个?(?P<unit>字|词|句话|句)"
    r"(?P<after>以内|以下|之内|以上|左右|总结|概括|回答|说明|介绍)?"
)
_LENGTH = re.compile(
    r"\b(?:in|with|of|about|around|approximately|roughly|exactly|least|most|up to|than|under|below|within|write|maximum|max|"
    r"minimum|only|just|over)(?: (?:a|an|the))?$",
    re.IGNORECASE,
)
_UPPER = re.compile(r"\b(?:at most|no more than|up to|under|below|fewer|less|within|maximum|max|only|just|in)\b", re.IGNORECASE)
_LOWER = re.compile(r"\b(?:at least|no fewer than|no less than|minimum|more|over)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class AskedLength:
    low: int | None  # None: no lower limit
    high: int | None
    unit: CountedUnit


def asked_length(prompt: str | None) -> AskedLength | None:
    """Return the last length that a prompt names at its beginning or its end; None without one."""
    if not prompt:
        return None
    text = prompt if len(prompt) <= 2 * MAX_PROMPT else f"{prompt[:MAX_PROMPT]}\n{prompt[-MAX_PROMPT:]}"
    found = [(match.start(), _english(match)) for match in _ENGLISH.finditer(text)]
    found += [(match.start(), _chinese(match)) for match in _CHINESE.finditer(text)]
    asked = [(start, length) for start, length in found if length is not None]
    return max(asked, key=lambda pair: pair[0])[1] if asked else None


def count_units(text: str, unit: CountedUnit) -> int:
    """Return how many words, sentences or Chinese characters the beginning of a text has."""
    text = text[:MAX_TEXT]
    if unit == "characters":
        return sum(1 for sign in text if not sign.isspace())
    if unit == "sentences":
        return sum(1 for part in re.split(r"[.!?。！？\n]+", text) if re.search(r"\w", part))
    return len(re.findall(r"[\u2e80-\u9fff]|[^\W\u2e80-\u9fff]+", text))


def _english(match: re.Match[str]) -> AskedLength | None:
    before, after = " ".join(match["before"].split()), match["after"] or ""
    if not (after or "-" in match["hyphen"] or _LENGTH.search(before)):
        return None
    unit: CountedUnit = "words" if match["unit"].lower().startswith("word") else "sentences"
    name = match["number"].lower().removeprefix("one ")
    number = int(name) if name.isdecimal() else _ENGLISH_NUMBERS[name]
    words = f"{before} {after}"
    if _LOWER.search(words) and "no more" not in words.lower():
        return AskedLength(number, None, unit)
    return AskedLength(None if _UPPER.search(words) else number, number, unit)


def _chinese(match: re.Match[str]) -> AskedLength | None:
    before, after = match["before"] or "", match["after"] or ""
    number = int(match["number"]) if match["number"].isdecimal() else _CHINESE_NUMBERS[match["number"]]
    if not (before or after or (match["unit"] == "字" and number >= MIN_CHARACTERS)):
        return None
    unit: CountedUnit = "characters" if match["unit"] == "字" else "words" if match["unit"] == "词" else "sentences"
    if before in ("至少", "不少于", "不低于") or after == "以上":
        return AskedLength(number, None, unit)
    is_upper = before in ("不超过", "不多于", "最多", "至多") or after in ("以内", "以下", "之内")
    return AskedLength(None if is_upper else number, number, unit)
