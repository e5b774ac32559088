"""Checks the token ids in the settings of a request against the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hasten.core.errors import InvalidRequest
from hasten.core.sampling_params import SamplingParams

MAX_NAMED_IDS = 8  # per field in an error message


def check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    """Raise ``InvalidRequest`` with every field that has ids outside the vocabulary, and those ids."""
    ids_by_field: dict[str, Iterable[int]] = {
        "allowed_token_ids": params.allowed_token_ids or (),
        "bad_words_ids": (i for word in params.bad_words_ids for i in word),
        "logit_bias": params.logit_bias,
        "stop_token_ids": params.stop_token_ids,
    }
    unknown = {name: sorted({i for i in ids if not 0 <= i < vocab_size}) for name, ids in ids_by_field.items()}
    problems = [f"{name} has {_named(ids)}" for name, ids in unknown.items() if ids]
    if problems:
        raise InvalidRequest(
            "sampling settings have token ids that the model's vocabulary does not have",
            got="; ".join(problems),
            allowed=f"0 to {vocab_size - 1}",
            remedy="Use ids of this model's tokenizer",
        )


def _named(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:MAX_NAMED_IDS])) + (", ..." if len(ids) > MAX_NAMED_IDS else "")
