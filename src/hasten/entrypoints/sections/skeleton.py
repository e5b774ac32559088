"""The skeleton of an answer: headings from the caller, or an outline by the model, parsed strictly."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hasten.core.errors import InvalidRequest, show
from hasten.core.sampling_params import SamplingParams
from hasten.core.unicode_text import is_unicode

MIN_POINTS, MAX_POINTS = 3, 10  # of an outline that the model writes
MAX_SECTIONS = 64
MAX_HEADING = 200  # characters of a heading that the caller gives
MAX_POINT, MAX_POINT_WORDS = 80, 12  # characters and words of a point; the model is asked for 3 to 5 words
OUTLINE_TOKENS = 200
FIRST_POINT = "1."  # begins the outline, so that the model goes on with a numbered list
_LINE = re.compile(r"(\d{1,2})[.)、．）]\s*(\S.*)")


class MalformedOutline(Exception):
    """The model's outline cannot be used; the message says why."""


def check_max_sections(max_sections: object) -> int:
    """Return the limit. Raises ``InvalidRequest``."""
    if type(max_sections) is not int or not MIN_POINTS <= max_sections <= MAX_SECTIONS:
        raise InvalidRequest("max_sections is out of range", got=show(max_sections), allowed=f"{MIN_POINTS} to {MAX_SECTIONS}")
    return max_sections


def check_headings(skeleton: object, max_sections: int) -> tuple[str, ...]:
    """Return the caller's headings without outer spaces.

    Raises ``InvalidRequest`` for a heading that is empty, too long, of several lines or repeated, and for too many headings.
    """
    if not isinstance(skeleton, Sequence) or isinstance(skeleton, (str, bytes, bytearray)):
        raise InvalidRequest("the skeleton has the wrong type", got=type(skeleton).__name__, allowed="a list of headings")
    if not 1 <= len(skeleton) <= max_sections:
        allowed = f"1 to {max_sections}, as max_sections says"
        raise InvalidRequest("the skeleton has the wrong number of headings", got=len(skeleton), allowed=allowed)
    for heading in skeleton:
        if not (isinstance(heading, str) and heading.strip() and len(heading) <= MAX_HEADING and _is_line(heading.strip())):
            allowed = f"one line of 1 to {MAX_HEADING} characters"
            raise InvalidRequest("a heading of the skeleton is no heading", got=show(heading), allowed=allowed)
    headings = tuple(heading.strip() for heading in skeleton)
    if len(set(headings)) < len(headings):
        repeated = next(heading for heading in headings if headings.count(heading) > 1)
        raise InvalidRequest("a heading is in the skeleton more than once", got=show(repeated), remedy="Give each section its own")
    return headings


def outline_instruction(question: str, max_sections: int) -> str:
    """Return the question with the request for an outline, in the question's language."""
    most = min(MAX_POINTS, max_sections)
    if is_chinese(question):
        asked = f"请不要直接回答，只列出回答的提纲：{MIN_POINTS}到{most}个编号的要点，每个要点3到5个词，不要解释。"
    else:
        asked = (
            f"Do not answer yet. Write only the outline of the answer: {MIN_POINTS} to {most} numbered points of 3 to 5 words "
            "each, one per line, and nothing else."
        )
    return f"{question}\n\n{asked}"


def outline_params(num_free_tokens: int) -> SamplingParams:
    """Return the settings of the outline: greedy, and ended by an empty line.

    ``num_free_tokens``: after its prompt, in the context.
    A grammar of numbered lines belongs here once requests can have one; then no outline is malformed.
    """
    return SamplingParams(temperature=0, max_tokens=max(1, min(OUTLINE_TOKENS, num_free_tokens)), stop=("\n\n",))


def parse_outline(text: str, max_sections: int) -> tuple[str, ...]:
    """Return the points of numbered lines, ``1. first`` and so on. Raises ``MalformedOutline``."""
    most = min(MAX_POINTS, max_sections)
    lines = [line.strip() for line in text.strip().splitlines()]
    points: list[str] = []
    for number, line in enumerate(lines, 1):
        found = _LINE.fullmatch(line)
        point = found[2].lstrip("*").rstrip(" *:：.。") if found else ""
        if found is None or int(found[1]) != number or not point or not _is_line(point):
            raise MalformedOutline(f"line {number} of the model's outline is no point {number}: {show(line, 60)}")
        if len(point) > MAX_POINT or len(point.split()) > MAX_POINT_WORDS:
            raise MalformedOutline(f"point {number} of the model's outline is too long: {show(point, 60)}")
        if point in points:
            raise MalformedOutline(f"the model's outline repeats a point: {show(point, 60)}")
        points.append(point)
    if not MIN_POINTS <= len(points) <= most:
        raise MalformedOutline(f"the model's outline has {len(points)} points, not {MIN_POINTS} to {most}")
    return tuple(points)


def is_chinese(text: str) -> bool:
    """Return whether the text is Chinese: at least one such character per two words of Latin letters."""
    return 2 * len(re.findall(r"[\u4e00-\u9fff]", text)) > len(re.findall(r"[A-Za-z]+", text))


def _is_line(heading: str) -> bool:
    return heading.isprintable() and is_unicode(heading)
