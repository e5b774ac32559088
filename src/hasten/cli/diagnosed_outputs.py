"""``read_outputs``: the outputs for ``hasten diagnose``, from one text or from lines of JSON.

A line is one that ``hasten generate --json`` printed, or has ``text``, and as far as they are known ``prompt``, ``params``,
``finish_reason``, ``stop_reason``, ``token_ids`` and ``logprobs``. A line with a ``prompt`` alone counts for the order of prompts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hasten.core.errors import HastenError, InvalidOption, show
from hasten.core.result import FinishReason, TokenLogprob
from hasten.core.sampling_params import MAX_TOKENS, SamplingParams
from hasten.core.unicode_text import is_unicode
from hasten.quality.diagnosis.observed import ObservedOutput

FINISH_REASONS = tuple(str(reason) for reason in FinishReason)
_KEYS = ("text", "outputs", "prompt")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagnosedOutput:
    """One output of a line, or the prompt of a line without one."""

    line: int
    index: int = 0
    prompt_token_ids: tuple[int, ...] = ()
    observed: ObservedOutput
    has_text: bool = True


def read_outputs(
    content: str, *, prompt: str | None, finish_reason: str | None, settings: Mapping[str, Any], is_jsonl: bool = False
) -> list[DiagnosedOutput]:
    """Return the outputs in order.

    ``settings`` override those of the lines; ``prompt`` and ``finish_reason`` are of outputs that name none. ``is_jsonl``: the
    content is no text, whatever it looks like. Raises ``InvalidOption`` that names the first line with a fault.
    """
    lines = [(number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    if not is_jsonl and not (lines and _is_output(lines[0][1])):
        if not is_unicode(content):
            raise InvalidOption("the output is not UTF-8 text")
        params = SamplingParams.from_dict(settings)
        content = content.removesuffix("\n")  # an editor ends every file with one
        return [
            DiagnosedOutput(
                line=1, observed=ObservedOutput(text=content, prompt=prompt, finish_reason=finish_reason, params=params)
            )
        ]
    found: list[DiagnosedOutput] = []
    for number, line in lines:
        try:
            found += _read_line(number, line, prompt, finish_reason, settings)
        except HastenError as fault:
            raise InvalidOption(
                f"line {number} holds no output: {fault.what}", got=fault.got, allowed=fault.allowed, remedy=fault.remedy
            ) from None
    if not found:
        raise InvalidOption("there is no output to diagnose", remedy="Give a text, or lines that hasten generate --json printed")
    return found


def _is_output(line: str) -> bool:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and any(key in content for key in _KEYS)


def _read_line(
    number: int, line: str, prompt: str | None, finish_reason: str | None, settings: Mapping[str, Any]
) -> Iterator[DiagnosedOutput]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        raise InvalidOption("this is not JSON", got=show(line)) from None
    if not isinstance(content, dict) or not any(key in content for key in _KEYS):
        raise InvalidOption("a key is missing", got=show(content), allowed=" or ".join(_KEYS))
    values = content.get("params")
    params = SamplingParams.from_dict({} if values is None else values).replace(**settings)
    seed = content.get("seed")
    if params.seed is None and seed is not None:
        params = params.replace(seed=seed)
    text = content.get("prompt")
    if text is not None and not is_unicode(text):
        raise InvalidOption("the prompt is no text", got=show(text))
    prompt_ids = _token_ids(content.get("prompt_token_ids"))
    answers = content.get("outputs", [content])
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise InvalidOption("outputs is no list of mappings", got=show(answers))
    for index, answer in enumerate(answers):
        has_text = "text" in answer
        observed = ObservedOutput(
            text=_text(answer) if has_text else "",
            prompt=prompt if text is None else text,
            token_ids=_token_ids(answer.get("token_ids")),
            logprobs=_logprobs(answer.get("logprobs")),
            finish_reason=_finish_reason(answer, finish_reason),
            stop_reason=answer["stop_reason"] if isinstance(answer.get("stop_reason"), (str, int)) else None,
            params=params,
        )
        yield DiagnosedOutput(line=number, index=index, prompt_token_ids=prompt_ids, observed=observed, has_text=has_text)


def _text(answer: Mapping[str, Any]) -> str:
    text = answer["text"]
    if not is_unicode(text):
        raise InvalidOption("the text is no text", got=show(text))
    return text


def _finish_reason(answer: Mapping[str, Any], default: str | None) -> str | None:
    reason = answer.get("finish_reason")
    if reason is not None and reason not in FINISH_REASONS:
        raise InvalidOption("unknown finish reason", got=show(reason), allowed=", ".join(FINISH_REASONS))
    return default if reason is None else str(reason)


def _token_ids(value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item <= MAX_TOKENS for item in value):
        raise InvalidOption("token ids are no list of whole numbers", got=show(value), allowed=f"0 to {MAX_TOKENS}")
    return tuple(value)


def _logprobs(value: object) -> tuple[TokenLogprob, ...]:
    """Return the log-probabilities, written as numbers or as ``hasten generate --json`` prints them."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InvalidOption("logprobs is no list", got=show(value))
    return tuple(_logprob(item) for item in value)


def _logprob(item: object) -> TokenLogprob:
    if not isinstance(item, dict):
        return TokenLogprob(0, _log_probability(item), 1)
    top = item.get("top") or []
    if not isinstance(top, list) or not all(isinstance(pair, list) and len(pair) == 2 and type(pair[0]) is int for pair in top):
        raise InvalidOption("the top tokens are no list of pairs", got=show(top), allowed="[token id, log-probability]")
    token_id = item.get("token_id", 0)
    if type(token_id) is not int:
        raise InvalidOption("a token id is no whole number", got=show(token_id))
    pairs = tuple((pair[0], _log_probability(pair[1])) for pair in top)
    return TokenLogprob(token_id, _log_probability(item.get("logprob")), 1, pairs)


def _log_probability(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or value > 1e-3:
        raise InvalidOption("a log-probability is no number", got=show(value), allowed="at most 0")
    return min(0.0, float(value)) if value > -1e30 else -1e30
