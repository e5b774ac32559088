"""``embed_texts``: checked texts to embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from hasten.core.errors import InvalidRequest, show
from hasten.entrypoints.input_processor import InputProcessor, Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from hasten.engine.embedder import Embedder

_ALLOWED = 'texts or {"prompt_token_ids": [token ids]}'


def embed_texts(
    input_processor: InputProcessor, embedder: Embedder, texts: Sequence[Prompt], before_step: Callable[[], None]
) -> Tensor:
    """See ``LLM.embed``. All texts are checked before anything runs."""
    if not isinstance(texts, Sequence) or isinstance(texts, (str, bytes, bytearray)):
        raise InvalidRequest("texts are not a list", got=type(texts).__name__, allowed=f"a list of {_ALLOWED}")
    sequences = []
    for number, text in enumerate(texts):
        if not isinstance(text, (str, Mapping)):
            raise InvalidRequest(f"texts[{number}] has the wrong type", got=show(text), allowed=_ALLOWED)
        try:
            sequences.append(input_processor.encode(text))
        except InvalidRequest as fault:
            what = f"texts[{number}]: {fault.what}"
            raise type(fault)(what, got=fault.got, allowed=fault.allowed, remedy=fault.remedy) from None
    return embedder.embed(sequences, before_step)
