"""What a checkpoint says of generation: the tokens that end a sequence, and sampling settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hasten.checkpoints.json_values import are_integers
from hasten.checkpoints.reader import settings_name
from hasten.core.errors import CheckpointError, InvalidRequest, show
from hasten.core.sampling_params import SamplingParams
from hasten.models.load import LoadedModel
from hasten.text.tokenizer import TextTokenizer

_FILE = "generation_config.json"
_CORRECT = "Correct the file"


def eos_token_ids(model: LoadedModel, tokenizer: TextTokenizer | None) -> tuple[int, ...]:
    """Return every token id that a file of the checkpoint names as the end of a sequence.

    Raises ``CheckpointError`` for a value that no token has, because sequences would never end there.
    """
    token_ids: list[int] = []
    for file, values in ((_FILE, model.generation_config), ("config.json", model.config)):
        value = values.get("eos_token_id")
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if not are_integers(listed, 0, model.spec.vocab_size - 1):
            raise CheckpointError(
                f"eos_token_id in {settings_name(model.folder, file)} is not a token id, or a list of them",
                got=show(value),
                allowed=f"whole numbers from 0 to {model.spec.vocab_size - 1}",
                remedy=_CORRECT,
            )
        token_ids += listed
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        token_ids.append(tokenizer.eos_token_id)
    return tuple(dict.fromkeys(token_ids))


def default_sampling_params(generation_config: Mapping[str, Any], folder: Path) -> SamplingParams:
    """Return what ``generation_config.json`` recommends; greedy if it says ``do_sample: false``.

    Raises ``CheckpointError`` for values that ``SamplingParams`` refuses.
    """
    do_sample = generation_config.get("do_sample")
    if do_sample is not None and not isinstance(do_sample, bool):
        raise CheckpointError(
            f"do_sample in {settings_name(folder, _FILE)} is not true or false", got=show(do_sample), remedy=_CORRECT
        )
    names = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "no_repeat_ngram_size")
    values = {name: generation_config[name] for name in names if generation_config.get(name) is not None}
    for name in ("top_k", "no_repeat_ngram_size"):
        if values.get(name) == 0 and type(values[name]) is int:  # transformers writes 0 for "off" here
            del values[name]
    if do_sample is False:
        values["temperature"] = 0.0
    try:
        return SamplingParams.from_dict(values)
    except InvalidRequest as error:
        raise CheckpointError(f"the sampling in {settings_name(folder, _FILE)} is wrong: {error.what}", remedy=_CORRECT) from error
