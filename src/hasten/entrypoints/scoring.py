"""``Scoring``: how likely texts are after a prompt, and which is the likeliest. Texts to tokens, checks, and what the caller gets.

A prompt and its continuation are read as one text, and cut where the prompt ends. Where a token would span the cut, the
continuation is encoded alone: the prompt's tokens are the same for all continuations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hasten.core.early_exit import REQUEST_CRITERIA
from hasten.core.errors import InvalidRequest, PromptTooLong, nearest
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams
from hasten.core.score_output import Choice, ScoreOutput
from hasten.engine.continuation_scorer import ContinuationScorer
from hasten.entrypoints.input_processor import InputProcessor, Prompt

Continuation = str | Mapping[str, Any]
RULES = ("none", "fixed", *REQUEST_CRITERIA, "prompt_hash")  # that say one layer for a request
NORMALIZATIONS = ("mean", "sum")
_ALLOWED = 'texts or {"token_ids": [token ids]}'


class Scoring:
    def __init__(self, input_processor: InputProcessor, scorer: ContinuationScorer) -> None:
        self._input_processor, self._scorer = input_processor, scorer

    def score(
        self,
        prompt: Prompt,
        continuations: Sequence[Continuation],
        params: SamplingParams | None,
        *,
        cache_salt: str,
        name: str = "continuations",
    ) -> list[ScoreOutput]:
        """See ``LLM.score``. ``name``: what the caller calls the continuations."""
        if not isinstance(continuations, Sequence) or isinstance(continuations, str):
            raise InvalidRequest(f"{name} are not a list", got=type(continuations).__name__, allowed=f"a list of {_ALLOWED}")
        if not continuations:
            raise InvalidRequest(f"there are no {name}", got="an empty list", allowed=f"at least one of {_ALLOWED}")
        request = self._request(prompt, params, cache_salt)
        encoded = [self._encode(prompt, request.prompt_token_ids, continuation) for continuation in continuations]
        self._check(request, encoded, name)
        logprobs, exit_layer = self._scorer.score(request, encoded)
        return [
            ScoreOutput(text=given if isinstance(given, str) else None, token_ids=ids, logprobs=found, exit_layer=exit_layer)
            for given, ids, found in zip(continuations, encoded, logprobs, strict=True)
        ]

    def choose(
        self, prompt: Prompt, choices: Sequence[Continuation], params: SamplingParams | None, *, normalize: str, cache_salt: str
    ) -> Choice:
        """See ``LLM.choose``."""
        if normalize not in NORMALIZATIONS:
            raise InvalidRequest("unknown normalize", got=repr(normalize), remedy=nearest(str(normalize), NORMALIZATIONS))
        scores = tuple(self.score(prompt, choices, params, cache_salt=cache_salt, name="choices"))
        compared = [score.mean if normalize == "mean" else score.total for score in scores]
        best = compared.index(max(compared))
        return Choice(
            index=best,
            text=scores[best].text,
            probabilities=_softmax(compared),
            scores=scores,
            exit_layer=scores[best].exit_layer,
        )

    def _request(self, prompt: Prompt, params: SamplingParams | None, cache_salt: str) -> Request:
        """The prompt with the settings that count here: when tokens leave early."""
        given = params or self._input_processor.defaults
        if given.exit_rule not in RULES:
            raise InvalidRequest(
                "this exit rule lets every token leave at its own layer, and scores would not compare",
                got=f"exit_rule={given.exit_rule!r}",
                allowed=", ".join(RULES),
                remedy="Use a rule that chooses one layer for the whole request",
            )
        names = ("exit_rule", "exit_layer", "exit_threshold", "exit_tolerance", "exit_decay")
        # The seed is given so that none is drawn: scoring between two requests does not change the second.
        settings = SamplingParams(max_tokens=1, seed=0, **{name: getattr(given, name) for name in names})
        return self._input_processor.request("score", prompt, settings, arrival=0.0, cache_salt=cache_salt)

    def _encode(self, prompt: Prompt, prompt_ids: tuple[int, ...], continuation: Continuation) -> tuple[int, ...]:
        """Token ids, without any that the tokenizer puts around a text; not checked."""
        if not isinstance(continuation, str):
            return _given_ids(continuation)
        tokenizer = self._input_processor.tokenizer
        if tokenizer is None:
            raise InvalidRequest(
                "this checkpoint has no tokenizer, so a continuation cannot be text", remedy='Pass {"token_ids": [...]}'
            )
        try:
            continuation.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(
                "this is not Unicode text", got=repr(continuation)[:80], remedy="Half of a surrogate pair was cut off"
            ) from None
        if isinstance(prompt, str):
            whole = tuple(tokenizer.encode(prompt + continuation))
            if whole[: len(prompt_ids)] == prompt_ids:
                return whole[len(prompt_ids) :]
        return tuple(tokenizer.encode(continuation, special=False))

    def _check(self, request: Request, encoded: Sequence[tuple[int, ...]], name: str) -> None:
        """Raises ``InvalidRequest`` for continuations that are empty, outside the vocabulary, or too long for the context."""
        empty = [index for index, token_ids in enumerate(encoded) if not token_ids]
        if empty:
            raise InvalidRequest(
                f"{len(empty)} of the {name} are empty",
                got=_listed([f"{name}[{index}]" for index in empty]),
                allowed="one token or more",
            )
        size, most = self._input_processor.vocab_size, self._input_processor.max_model_len
        wrong = sorted({token for token_ids in encoded for token in token_ids if not 0 <= token < size})
        if wrong:
            raise InvalidRequest(
                f"{len(wrong)} token ids of the {name} are outside the vocabulary",
                got=_listed(wrong),
                allowed=f"0 to {size - 1}",
                remedy="Tokenise them with this model's tokenizer",
            )
        num_prompt, longest = len(request.prompt_token_ids), max(len(token_ids) for token_ids in encoded)
        if num_prompt + longest > most:
            raise PromptTooLong(
                f"the prompt and the longest of the {name} do not fit the context",
                got=f"{num_prompt} + {longest} = {num_prompt + longest} tokens",
                allowed=f"up to {most} tokens",
                remedy="Shorten one of them, or raise max_model_len",
            )


def _given_ids(continuation: object) -> tuple[int, ...]:
    if not isinstance(continuation, Mapping) or set(continuation) != {"token_ids"}:
        raise InvalidRequest("this is not a continuation", got=repr(continuation)[:80], allowed=_ALLOWED)
    token_ids = continuation["token_ids"]
    if not isinstance(token_ids, Sequence) or isinstance(token_ids, str) or not all(type(token) is int for token in token_ids):
        raise InvalidRequest("token_ids are not whole numbers", got=repr(token_ids)[:80], allowed=_ALLOWED)
    return tuple(token_ids)


def _listed(offenders: Sequence[object]) -> str:
    """The first of them."""
    return ", ".join(map(str, offenders[:8])) + (", ..." if len(offenders) > 8 else "")


def _softmax(values: Sequence[float]) -> tuple[float, ...]:
    best = max(values)
    if best == -math.inf:  # the model holds all of them for impossible
        return (1 / len(values),) * len(values)
    shares = [math.exp(value - best) for value in values]
    return tuple(share / math.fsum(shares) for share in shares)
