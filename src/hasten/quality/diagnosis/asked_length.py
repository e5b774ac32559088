"""``AskedLength``: how long an answer the prompt asks for, in English and Chinese."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

CountedUnit = Literal["words", "sentences", "characters"]

MAX_PROMPT = 600  # characters at either end of a prompt in which a length is looked for
MAX_LENGTH = 1_000_000
_NUMBERS = {
    name: number
    for number, names in {
        1: "one a single 一 单",
        2: "two 两 二",
        3: "three 三",
        4: "four 四",
        5: "five 五",
        6: "six 六",
        7: "seven 七",
        8: "eight 八",
        9: "nine 九",
        10: "ten 十",
        20: "twenty 二十",
        50: "fifty 五十",
        100: "hundred 一百",
    }.items()
    for name in names.split()
}
_WORDS = "|".join(sorted((name for name in _NUMBERS if name.isascii()), key=len, reverse=True))
_IDEOGRAPHS = "|".join(sorted((name for name in _NUMBERS if not name.isascii()), key=len, reverse=True))
_ENGLISH = re.compile(
    rf"(?P<before>(?:\w+\s+){{0,3}})\b(?P<number>\d{{1,6}}|(?:one )?hundred|{_WORDS})[\s-]+(?P<unit>words?|sentences?)\b",
    re.IGNORECASE,
)
_CHINESE = re.compile(
    rf"(?P<before>不超过|不多于|最多|至多|至少|不少于|不低于)?\s*(?P<number>\d{{1,6}}|{_IDEOGRAPHS})\s*个?(?P<unit>字|词|句话|句)"
    r"(?P<after>以内|以下|之内|以上)?"
)
_UPPER = re.compile(r"at most|no more than|up to|under|below|fewer than|less than|within|maximum|in$|in a$|only", re.IGNORECASE)
_LOWER = re.compile(r"at least|no fewer than|no less than|minimum|more than|over$", re.IGNORECASE)


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
    return max(found, key=lambda pair: pair[0])[1] if found else None


def count_units(text: str, unit: CountedUnit) -> int:
    """Return how many words, sentences or ideographs a text has."""
    if unit == "characters":
        return sum(1 for sign in text if not sign.isspace())
    if unit == "sentences":
        return len(re.findall(r"[^.!?。！？\n]*\w[^.!?。！？\n]*(?:[.!?。！？]+|\n|$)", text))
    return len(re.findall(r"[\u2e80-\u9fff]|[^\W\u2e80-\u9fff]+", text))


def _english(match: re.Match[str]) -> AskedLength:
    unit: CountedUnit = "words" if match["unit"].lower().startswith("word") else "sentences"
    before = " ".join(match["before"].split())
    return _limits(_number(match["number"]), unit, bool(_UPPER.search(before)), bool(_LOWER.search(before)))


def _chinese(match: re.Match[str]) -> AskedLength:
    unit: CountedUnit = "characters" if match["unit"] == "字" else "words" if match["unit"] == "词" else "sentences"
    before, after = match["before"] or "", match["after"] or ""
    is_upper = before in ("不超过", "不多于", "最多", "至多") or after in ("以内", "以下", "之内")
    return _limits(_number(match["number"]), unit, is_upper, before in ("至少", "不少于", "不低于") or after == "以上")


def _limits(number: int, unit: CountedUnit, is_upper: bool, is_lower: bool) -> AskedLength:
    if is_lower:
        return AskedLength(number, None, unit)
    if is_upper:
        return AskedLength(None, number, unit)
    return AskedLength(number, number, unit)


def _number(text: str) -> int:
    text = text.lower().removeprefix("one ")
    return min(MAX_LENGTH, int(text) if text.isdecimal() else _NUMBERS[text])
