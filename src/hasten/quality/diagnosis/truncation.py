"""Truncation: an output that ends in the middle of a sentence, a bracket or a block of code.

A finish reason "length" says that a limit ended the output; whether it lost something, the end of the text says. After a stop, a
title, a name or a line of a poem is complete without a full stop, so only an open block of code or JSON counts.
"""

from __future__ import annotations

import re

from hasten.quality.diagnosis.observed import NOTHING, Measurement, ObservedOutput

MAX_CHARACTERS = 1 << 18  # from the end of the text
_ENDS = ".!?。！？…」』”’\"')]}）】》>|`*_~"
_CLOSED = re.compile(r"[.!?。！？…][\"'”’」』)\]）】*_`]*(?=\s|$)|[。！？]|\n\s*\n")
_FENCE = re.compile(r"^[ \t]*(```|~~~)", re.MULTILINE)
_OPENERS = {"(": ")", "[": "]", "{": "}", "（": "）", "【": "】", "「": "」", "《": "》"}
_CLOSERS = {closer: opener for opener, closer in _OPENERS.items()}
_WANTS_MORE = (",", "，", "、", ":", "：", "(", "[", "{", "（", "=", "+", "\\", "；")
_ITEM = re.compile(r"^\s*(?:[-*•]|\d{1,4}[.)、])\s")
_CODE_SIGNS = re.compile(r"[{}=<>\\|#@]|\w\(|\"\"\"|::|->|^\s|^(?:from|import|return|raise|yield|def|class)\b")
MIN_PROSE = 40  # characters of a last line that is prose, where no finish reason is known
MIN_SENTENCES = 2


def measure_truncation(output: ObservedOutput) -> Measurement:
    """Return the share of the text after its last complete part; 0 for a text that is complete."""
    text = output.text[-MAX_CHARACTERS:]
    stripped = text.rstrip()
    if not stripped:
        return NOTHING
    fences = list(_FENCE.finditer(text))
    if len(fences) % 2:
        return _found("fence", fences[-1].start(), output, text)
    unclosed = _unclosed_bracket(text)
    is_json = stripped.lstrip()[0] in "{["
    if unclosed is not None and (is_json or output.finish_reason == "length"):
        return _found("bracket", unclosed, output, text, bracket=text[unclosed])
    if output.finish_reason == "length":
        is_cut = _is_unfinished(text, stripped)
    else:
        is_cut = output.finish_reason is None and _is_cut_prose(stripped)
    if not is_cut:
        return NOTHING
    ends = [match.end() for match in _CLOSED.finditer(text) if match.end() < len(stripped)]
    begin = ends[-1] if ends else 0
    begin += len(text[begin:]) - len(text[begin:].lstrip())
    return _found("sentence", begin, output, text)


def _found(kind: str, begin: int, output: ObservedOutput, text: str, **details: str) -> Measurement:
    share = (len(text) - begin) / len(output.text)
    offset = begin + len(output.text) - len(text)
    end = " ".join(text.rstrip()[-40:].split())
    return Measurement(value=share, is_fault=True, kind=kind, offset=offset, details={"share": share, "end": end, **details})


def _is_unfinished(text: str, stripped: str) -> bool:
    """Whether a limit cut the text within a sentence. A complete line of code or of a list is complete."""
    if stripped.endswith(_WANTS_MORE):
        return True
    return not text.endswith("\n") and stripped[-1] not in _ENDS


def _is_cut_prose(stripped: str) -> bool:
    """Whether a text of sentences ends without the end of one. Code and titles do."""
    last = stripped.rsplit("\n", 1)[-1]
    if len(last) < MIN_PROSE or _ITEM.match(last) or _CODE_SIGNS.search(last):
        return False
    return len(_CLOSED.findall(stripped)) >= MIN_SENTENCES and (stripped[-1].isalpha() or stripped[-1] in ",，、;；")


def _unclosed_bracket(text: str) -> int | None:
    """Return the place of the first bracket that is never closed. Brackets in quotes do not count."""
    stack: list[int] = []
    quoted = False
    for position, sign in enumerate(text):
        if sign == '"' and (position == 0 or text[position - 1] != "\\"):
            quoted = not quoted
        elif sign == "\n":
            quoted = False
        elif quoted:
            continue
        elif sign in _OPENERS:
            stack.append(position)
        elif sign in _CLOSERS and stack and text[stack[-1]] == _CLOSERS[sign]:
            stack.pop()
    return stack[0] if stack else None
