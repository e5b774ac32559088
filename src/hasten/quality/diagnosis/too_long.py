"""Too long: an output that goes on after its end.

The end is an end marker, the next turn of the conversation, or the length that the prompt asks for.
"""

from __future__ import annotations

import re

from hasten.quality.diagnosis.asked_length import asked_length, count_units
from hasten.quality.diagnosis.observed import NOTHING, Measurement, ObservedOutput

MAX_CHARACTERS = 1 << 20
MAX_EXCESS = 1.5  # times the length that was asked for
_MARKERS = (
    "<|im_end|>",
    "<|im_start|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end|>",
    "<|return|>",
    "<|user|>",
    "<end_of_turn>",
    "<start_of_turn>",
    "</s>",
    "[/INST]",
    "[INST]",
    "<｜end▁of▁sentence｜>",
    "<|END_OF_TURN_TOKEN|>",
)
_MARKER = re.compile(f"(?<![\"'`])(?:{'|'.join(map(re.escape, _MARKERS))})")  # a quoted marker is text
_LABEL = re.compile(r"^[ \t]*([^\W\d_][^\n:：]{0,24}?)[ \t]*[:：]", re.MULTILINE)
MAX_PROMPT = 1 << 16  # characters of the end of a prompt in which turns are looked for


def measure_too_long(output: ObservedOutput) -> Measurement:
    """Return the share of the output after its end."""
    text = output.text[:MAX_CHARACTERS]
    marker = _MARKER.search(text)
    if marker is not None and text[marker.end() :].strip():
        return _found("marker", marker.start(), text, output, stop=marker[0])
    turn = _next_turn(text, output.prompt)
    if turn is not None:
        return _found("turn", turn.start(), text, output, stop=f"\n{turn[0].strip()}")
    asked = asked_length(output.prompt)
    if asked is None or asked.high is None:
        return NOTHING
    count = count_units(text, asked.unit)
    return Measurement(
        value=max(0.0, 1 - asked.high / max(1, count)),
        is_fault=count > MAX_EXCESS * asked.high + 1,
        kind="asked_less",
        offset=None,
        details={"count": count, "asked": asked.high, "unit": asked.unit},
    )


def _found(kind: str, offset: int, text: str, output: ObservedOutput, stop: str) -> Measurement:
    share = (len(text) - offset) / len(text)
    return Measurement(value=share, is_fault=True, kind=kind, offset=offset, details={"share": share, "stop": stop})


def _next_turn(text: str, prompt: str | None) -> re.Match[str] | None:
    """Return the line of the output with which the turns of the prompt go on.

    A prompt has turns if its last line is a label, such as "A:", and another label stood before.
    """
    lines = (prompt or "")[-MAX_PROMPT:].rstrip().rsplit("\n", 1)
    last = _LABEL.match(lines[-1])
    if last is None or lines[-1].strip() != last[0].strip() or len(lines) == 1:
        return None
    labels = {label[1] for label in _LABEL.finditer(lines[0])}
    return next((line for line in _LABEL.finditer(text) if line.start() > 0 and line[1] in labels), None)
