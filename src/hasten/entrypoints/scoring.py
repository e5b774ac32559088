"""``Scoring``: the log-probabilities of continuations after a prompt, and the most likely one.

Prompt and continuation are tokenised as one text and cut where the prompt ends. Where a token would span the cut, the continuation
is tokenised alone, so that all continuations share the prompt's tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hasten.core.early_exit import REQUEST_CRITERIA
from hasten.core.errors import InvalidRequest, PromptTooLong, nearest, show
from hasten.core.output import Choice, ScoreOutput
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams
from hasten.engine.scorers import ContinuationScorer
from hasten.entrypoints.input_processor import InputProcessor, Prompt, format_first, read_token_ids

Continuation = str | Mapping[str, Any]
EXIT_RULES = ("none", "fixed", *REQUEST_CRITERIA, "prompt_hash")  # those with one exit layer for the entire request
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
        """See ``LLM.score``. ``name`` is the caller's word for the continuations in error messages."""
        if not isinstance(continuations, Sequence) or isinstance(continuations, (str, bytes, bytearray)):
            raise InvalidRequest(f"{name} are not a list", got=type(continuations).__name__, allowed=f"a list of {_ALLOWED}")
        if not continuations:
            raise InvalidRequest(f"there are no {name}", got="an empty list", allowed=f"at least one of {_ALLOWED}")
        request = self._request(prompt, params, cache_salt)
        encoded = [self._encode(prompt, request.prompt_token_ids, continuation) for continuation in continuations]
        self._check(request, encoded, name)
        all_logprobs, exit_layer = self._scorer.score(request, encoded)
        return [
            ScoreOutput(
                text=continuation if isinstance(continuation, str) else None,
                token_ids=token_ids,
                logprobs=logprobs,
                exit_layer=exit_layer,
            )
            for continuation, token_ids, logprobs in zip(continuations, encoded, all_logprobs, strict=True)
        ]

    def choose(
        self, prompt: Prompt, choices: Sequence[Continuation], params: SamplingParams | None, *, normalize: str, cache_salt: str
    ) -> Choice:
        """See ``LLM.choose``."""
        if normalize not in NORMALIZATIONS:
            raise InvalidRequest("unknown normalize", got=show(normalize), remedy=nearest(normalize, NORMALIZATIONS))
        scores = tuple(self.score(prompt, choices, params, cache_salt=cache_salt, name="choices"))
        logprobs = [score.mean if normalize == "mean" else score.total for score in scores]
        best = logprobs.index(max(logprobs))
        return Choice(
            index=best,
            text=scores[best].text,
            probabilities=_softmax(logprobs),
            scores=scores,
            exit_layer=scores[best].exit_layer,
        )

    def _request(self, prompt: Prompt, params: SamplingParams | None, cache_salt: str) -> Request:
        """Return a request for the prompt, with the exit settings of ``params`` and no others."""
        params = self._input_processor.check_params(params)
        if params.exit_rule not in EXIT_RULES:
            raise InvalidRequest(
                "this exit rule gives every token its own exit layer, and scores would not compare",
                got=f"exit_rule={params.exit_rule!r}",
                allowed=", ".join(EXIT_RULES),
                remedy="Use a rule that chooses one layer for the entire request",
            )
        names = ("exit_rule", "exit_layer", "exit_threshold", "exit_tolerance", "exit_decay")
        # A fixed seed: scoring must not advance the generator that draws the seeds of later requests.
        settings = SamplingParams(max_tokens=1, seed=0, **{name: getattr(params, name) for name in names})
        return self._input_processor.request("score", prompt, settings, arrival=0.0, cache_salt=cache_salt)

    def _encode(self, prompt: Prompt, prompt_ids: tuple[int, ...], continuation: Continuation) -> tuple[int, ...]:
        """Return the token ids of a continuation, without special tokens and unchecked."""
        if not isinstance(continuation, str):
            max_tokens = self._input_processor.max_model_len
            return read_token_ids(continuation, "continuation", "token_ids", max_tokens=max_tokens)
        tokenizer = self._input_processor.tokenizer_for(continuation, "continuation", "token_ids")
        if isinstance(prompt, str):
            joint_ids = tuple(tokenizer.encode(prompt + continuation))
            if joint_ids[: len(prompt_ids)] == prompt_ids:
                return joint_ids[len(prompt_ids) :]
        return tuple(tokenizer.encode(continuation, add_special_tokens=False))

    def _check(self, request: Request, encoded: Sequence[tuple[int, ...]], name: str) -> None:
        """Raise ``InvalidRequest`` for continuations that are empty, too long, or no token ids."""
        empty = [f"{name}[{i}]" for i, token_ids in enumerate(encoded) if not token_ids]
        if empty:
            raise InvalidRequest(f"{len(empty)} of the {name} are empty", got=format_first(empty), allowed="one token or more")
        self._input_processor.check_vocabulary((token_id for token_ids in encoded for token_id in token_ids), name)
        num_prompt_tokens, longest = len(request.prompt_token_ids), max(map(len, encoded))
        max_model_len = self._input_processor.max_model_len
        if num_prompt_tokens + longest > max_model_len:
            raise PromptTooLong(
                f"the prompt and the longest of the {name} do not fit the context",
                got=f"{num_prompt_tokens} + {longest} = {num_prompt_tokens + longest} tokens",
                allowed=f"up to {max_model_len} tokens",
                remedy="Shorten one of them, or raise max_model_len",
            )


def _softmax(values: Sequence[float]) -> tuple[float, ...]:
    best = max(values)
    if best == -math.inf:  # the model gives all of them probability 0
        return (1 / len(values),) * len(values)
    weights = [math.exp(value - best) for value in values]
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)
