"""``check_request_limits``: the engine's limits on settings that cost time or memory per item."""

from __future__ import annotations

from collections.abc import Sequence, Sized

from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidRequest
from hasten.core.sampling_params import SamplingParams

IDS_PER_BAD_WORD = 16  # ``bad_words_ids`` per bad word: a text has several tokenisations


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


def _longest(items: Sequence[Sized]) -> int:
    return max(map(len, items), default=0)
