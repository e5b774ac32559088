"""``TokenReader``: output tokens in TGI's form, each with its own part of the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hasten.core.result import TokenLogprob
from hasten.serving.finite_logprob import finite_logprob
from hasten.text.tokenizer import TextTokenizer


class TokenReader:
    """Reads the tokens of one output, in order.

    The texts of all tokens that are not special join to the generated text. A token that ends inside a character has less text,
    and the one that completes it has the character. A special token has its own text, which the generated text lacks.
    """

    def __init__(self, tokenizer: TextTokenizer, prompt_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = tokenizer.detokenizer(True, prompt_token_ids)
        self._special = {token_id: text for text, token_id in tokenizer.special_token_ids.items()}
        self._num_characters = 0

    def read(self, token_id: int, logprob: float, generated_text: str | None = None) -> dict[str, Any]:
        """Return a token. ``generated_text``: all of the output's text, if this token is its last."""
        text = self._detokenizer.push(token_id)
        if generated_text is not None:  # a stop string cuts the last token, and text that was held back belongs to it
            text = generated_text[self._num_characters :]
        self._num_characters += len(text)
        special = self._special.get(token_id)
        return {
            "id": token_id,
            "text": text if special is None else special,
            "logprob": finite_logprob(logprob),
            "special": special is not None,
        }

    def alternatives(self, logprob: TokenLogprob) -> list[dict[str, Any]]:
        """Return the most likely tokens in place of one, best first, each with its text alone."""
        return [
            {"id": token_id, "text": self.text_of(token_id), "logprob": finite_logprob(value), "special": token_id in self._special}
            for token_id, value in logprob.top
        ]

    def text_of(self, token_id: int) -> str:
        """Return the text of a token on its own."""
        return self._tokenizer.decode([token_id], skip_special_tokens=False)
