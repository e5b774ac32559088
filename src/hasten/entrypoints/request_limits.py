"""Limits of a request: of settings that cost time or memory per item, and of its pins."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import replace

from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidRequest, show
from hasten.core.request import PrefixPin
from hasten.core.sampling_params import SamplingParams

IDS_PER_BAD_WORD = 16  # ``bad_words_ids`` per bad word: a text has several tokenisations

MAX_REQUEST_PINS = 16
MAX_PIN_SECONDS = 7 * 86_400


def check_request_limits(params: SamplingParams, options: EngineOptions) -> None:
    """Raise ``InvalidRequest`` that names every setting beyond a limit, and the option for it."""
    stop_length, word_length = options.max_stop_length, options.max_bad_word_length
    max_bad_words_ids = IDS_PER_BAD_WORD * options.max_bad_words
    faults: list[tuple[str, str, str]] = []  # what the setting has, what it may have, the option
    for name, items, limit, option in (
        ("stop", params.stop, options.max_stop_strings, "max_stop_strings"),
        ("bad_words", params.bad_words, options.max_bad_words, "max_bad_words"),
        ("bad_words_ids", params.bad_words_ids, max_bad_words_ids, "max_bad_words"),
        ("logit_bias", params.logit_bias, options.max_logit_bias, "max_logit_bias"),
    ):
        if len(items) > limit:
            faults.append((f"{len(items)} items in {name}", str(limit), option))
    for name, words, limit, unit, option in (
        ("stop", params.stop, stop_length, "characters", "max_stop_length"),
        ("bad_words", params.bad_words, word_length, "characters", "max_bad_word_length"),
        ("bad_words_ids", params.bad_words_ids, word_length, "tokens", "max_bad_word_length"),
    ):
        if (longest := _longest(words)) > limit:
            faults.append((f"{longest} {unit} in an item of {name}", str(limit), option))
    if faults:
        got, allowed, raised_by = zip(*faults, strict=True)
        raise InvalidRequest(
            "the request exceeds the limits of this engine",
            got=", ".join(got),
            allowed=f"up to {', '.join(allowed)}",
            remedy=f"Shorten the settings, or raise {' and '.join(dict.fromkeys(raised_by))} of the engine",
        )


def check_pins(pins: object, num_prompt_tokens: int, num_virtual_tokens: int, options: EngineOptions) -> tuple[PrefixPin, ...]:
    """Return the pins of a request, which hold its virtual tokens too.

    Raises ``InvalidRequest`` for those that the engine cannot set.
    """
    if not isinstance(pins, Sequence) or isinstance(pins, (str, bytes, bytearray)):
        raise InvalidRequest("pins have the wrong type", got=show(pins), allowed="a list of PrefixPin")
    if len(pins) > MAX_REQUEST_PINS:
        raise InvalidRequest("the request has too many pins", got=len(pins), allowed=f"up to {MAX_REQUEST_PINS}")
    if pins and not (options.prefix_caching and options.max_pins):
        raise InvalidRequest(
            "this engine has no pins",
            got=f"prefix_caching={options.prefix_caching}, max_pins={options.max_pins}",
            remedy="Load the model with prefix_caching=True and max_pins of at least 1",
        )
    for pin in pins:
        if not isinstance(pin, PrefixPin):
            raise InvalidRequest("pins have the wrong type", got=show(pin), allowed="PrefixPin")
        if type(pin.num_tokens) is not int or not 1 <= pin.num_tokens <= num_prompt_tokens:
            allowed = f"1 to {num_prompt_tokens}, the tokens of the prompt"
            raise InvalidRequest("num_tokens of a pin is out of range", got=show(pin.num_tokens), allowed=allowed)
        if type(pin.seconds) not in (int, float) or not 0 < pin.seconds <= MAX_PIN_SECONDS:
            allowed = f"more than 0 and up to {MAX_PIN_SECONDS}, a week"
            raise InvalidRequest("seconds of a pin are out of range", got=show(pin.seconds), allowed=allowed)
    return tuple(replace(pin, num_tokens=num_virtual_tokens + pin.num_tokens) for pin in pins)


def _longest(items: Sequence[Sized]) -> int:
    return max(map(len, items), default=0)
