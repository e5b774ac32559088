"""``find_references``: which sections a heading refers to, so that it is written after them.

Rules over the headings, in English and Chinese: "based on step 2", "as above", "compare the two", "conclusion".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hasten.core.errors import show


@dataclass(frozen=True, slots=True)
class Reference:
    waits_for: tuple[int, ...] = ()  # indices of sections, ascending
    reason: str | None = None  # None: the heading refers to no other section


_STEP, _STEP_ZH = r"(?:step|section|part|point|stage|phase)", r"(?:步|节|点|章|部分)"
_NUMBER, _NUMBER_ZH = r"\d{1,2}", r"(?:\d{1,2}|[一二三四五六七八九十])"
_LABEL = re.compile(rf"\s*(?:{_STEP}\s*#?({_NUMBER})\b|第\s*({_NUMBER_ZH})\s*{_STEP_ZH})", re.I)
_NUMBERED = re.compile(
    rf"\b{_STEP}s?\s*#?({_NUMBER}(?:\s*(?:,|and|or|&|to|-|–)\s*{_NUMBER}\b)*)"
    rf"|第\s*({_NUMBER_ZH}(?:\s*[、和与到至]\s*第?\s*{_NUMBER_ZH})*)\s*{_STEP_ZH}"
    rf"|(?:步骤|要点|部分)\s*({_NUMBER}(?:\s*[、和与到至]\s*{_NUMBER})*)",
    re.I,
)
_BOTH = re.compile(
    r"\b(?:the two|both)\b.*\b(?:compare|compared|comparison|together)\b"
    r"|\b(?:compar\w+|contrast\w*|choos\w+|differences?)\b.*\b(?:the two|both)\b"
    r"|(?:两者|二者|这两).{0,8}(?:比较|对比|区别|差异|异同|选择)"
    r"|(?:比较|对比|区分).{0,8}(?:两者|二者|这两)",
    re.I,
)
_BEFORE = re.compile(r"\bprevious (?:step|section|part|point)\b|前一[步节点]|上一[步节点]", re.I)
_EARLIER = re.compile(
    r"\b(?:above|previous(?:ly)?|aforementioned|preceding|earlier (?:step|section|point|part)s?|the foregoing)\b"
    r"|上述|上文|前文|前面|前述|以上(?:内容|各|几|这|所述|提到|步骤)|^以上",
    re.I,
)
_ALL = re.compile(
    r"\b(?:summary|summari[sz]ing|conclusions?|concluding|recap|takeaways?|final thoughts|closing thoughts|in short)\b"
    r"|\b(?:wrap(?:ping)?[- ]up|verdict|putting it (?:all )?together)\b|^\s*(?:overall )?(?:comparison|assessment)\s*$"
    r"|\b(?:compar\w+|contrast\w*|choosing (?:between|among)) (?:of )?(?:these|them|all)\b"
    r"|总结|小结|结论|结语|综上|总的来说|归纳|要点回顾|^\s*(?:综合)?(?:比较|对比)\s*$|综合(?:比较|对比|评价)",
    re.I,
)
_DIGITS = {character: value for value, character in enumerate("一二三四五六七八九十", 1)}


def find_references(headings: Sequence[str]) -> tuple[Reference, ...]:
    """Return, for each heading, the sections that it refers to.

    No section waits for itself, directly or through others: of a circle, the last reference is dropped.
    """
    labels = {number: i for i, heading in enumerate(headings) if (number := _label(heading)) is not None}
    waits_for: list[tuple[int, ...]] = [()] * len(headings)
    found: list[Reference] = []
    for i in range(len(headings)):
        wanted, reason = _wanted(i, headings, labels)
        kept = tuple(j for j in sorted(set(wanted)) if j != i and not _reaches(waits_for, j, i))
        waits_for[i] = kept
        names = ", ".join(str(j + 1) for j in kept)
        found.append(Reference(kept, f"{reason}, so it follows section{'s' * (len(kept) > 1)} {names}") if kept else Reference())
    return tuple(found)


def _wanted(i: int, headings: Sequence[str], labels: dict[int, int]) -> tuple[list[int], str]:
    """Return the sections that heading ``i`` names, and how it names them."""
    heading = headings[i]
    own = _LABEL.match(heading)
    text = heading if own is None else heading[own.end() :]  # "Step 2: mix" is step 2
    if numbers := list(_NUMBERED.finditer(text)):
        listed = [number for found in numbers for number in _numbers(next(filter(None, found.groups())))]
        known = [labels.get(number, number - 1) for number in listed]
        if named := [j for j in known if 0 <= j < len(headings) and j != i]:
            return named, f"its heading names {show(', '.join(found[0].strip() for found in numbers), 40)}"
    if i >= 2 and (pair := _BOTH.search(text)):
        return [i - 2, i - 1], f"its heading takes up two sections with {show(pair[0], 40)}"
    if i and (last := _BEFORE.search(text)):
        return [i - 1], f"its heading refers to the section before it with {show(last[0], 40)}"
    if i and (earlier := _EARLIER.search(text)):
        return list(range(i)), f"its heading refers to earlier sections with {show(earlier[0], 40)}"
    if covered := _ALL.search(text):
        others = list(range(i)) or list(range(1, len(headings)))  # a summary that comes first covers all that follows
        return others, f"its heading covers other sections with {show(covered[0].strip(), 40)}"
    return [], ""


def _label(heading: str) -> int | None:
    found = _LABEL.match(heading)
    return None if found is None else _number(found[1] or found[2])


def _numbers(text: str) -> list[int]:
    """Return the numbers of "1, 2 and 4" and of "2 to 4"."""
    if bounds := re.fullmatch(r"\s*(\w+?)\s*(?:to|-|–|到|至)\s*第?\s*(\w+)\s*", text):
        return list(range(_number(bounds[1]), _number(bounds[2]) + 1))
    return [_number(number) for number in re.findall(r"\d{1,2}|[一二三四五六七八九十]", text)]


def _number(text: str) -> int:
    return _DIGITS.get(text) or int(text)


def _reaches(waits_for: Sequence[Sequence[int]], start: int, goal: int) -> bool:
    """Whether section ``start`` waits for ``goal``, directly or through others."""
    seen, frontier = {start}, [start]
    while frontier:
        found = set(waits_for[frontier.pop()]) - seen
        seen |= found
        frontier += found
    return goal in seen
