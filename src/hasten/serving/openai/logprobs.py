"""Log-probabilities as completions, chat completions and vLLM's ``prompt_logprobs`` have them."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from hasten.core.result import TokenLogprob
from hasten.serving.finite_logprob import finite_logprob
from hasten.serving.openai.token_strings import TokenStrings


class CompletionLogprobs:
    """The parallel lists of completions, for one answer; offsets go on from one call to the next."""

    def __init__(self, strings: TokenStrings) -> None:
        self._strings = strings
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0  # characters of the text so far

    def read(self, tokens: Iterable[tuple[int, TokenLogprob | None]], num_verbatim: int = 0) -> dict[str, Any]:
        """Return the lists for these tokens. None: the first token of a prompt, which has no probability.

        ``num_verbatim``: first tokens whose text has special tokens, whatever the request says.
        """
        strings = self._strings
        found: dict[str, list[Any]] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
        for place, (token_id, logprob) in enumerate(tokens):
            found["tokens"].append(strings.text(token_id))
            found["text_offset"].append(self._offset)
            found["token_logprobs"].append(None if logprob is None else finite_logprob(logprob.logprob))
            found["top_logprobs"].append(None if logprob is None else self._top(logprob))
            shown = strings.all_bytes(token_id) if place < num_verbatim else strings.shown_bytes(token_id)
            self._offset += len(self._decoder.decode(shown))
        return found

    def _top(self, logprob: TokenLogprob) -> dict[str, float]:
        """Return the top tokens and the token itself. Of several with the same text, the most likely counts."""
        top: dict[str, float] = {}
        for token_id, value in (*logprob.top, (logprob.token_id, logprob.logprob)):
            top.setdefault(self._strings.text(token_id), finite_logprob(value))
        return top


def chat_logprobs(tokens: Sequence[TokenLogprob], strings: TokenStrings) -> dict[str, Any]:
    """Return the log-probabilities of a chat completion's choice, or of a chunk of it."""
    return {
        "content": [
            {
                **_entry(token.token_id, token.logprob, strings),
                "top_logprobs": [_entry(token_id, logprob, strings) for token_id, logprob in token.top],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def _entry(token_id: int, logprob: float, strings: TokenStrings) -> dict[str, Any]:
    return {"token": strings.text(token_id), "logprob": finite_logprob(logprob), "bytes": strings.bytes_of(token_id)}


def prompt_logprobs(tokens: Sequence[TokenLogprob | None], strings: TokenStrings) -> list[dict[str, Any] | None]:
    """Return the log-probabilities of a prompt in vLLM's form: per token, a mapping from token ids."""
    found: list[dict[str, Any] | None] = []
    for token in tokens:
        if token is None:
            found.append(None)
            continue
        ranked = [(token.token_id, token.logprob, token.rank)]
        ranked += [(token_id, logprob, rank) for rank, (token_id, logprob) in enumerate(token.top, start=1)]
        found.append(
            {
                str(token_id): {"logprob": finite_logprob(logprob), "rank": rank, "decoded_token": strings.text(token_id)}
                for token_id, logprob, rank in reversed(ranked)
            }
        )
    return found
