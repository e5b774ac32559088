"""``Scoring``: the log-probabilities of continuations after a prompt, and the most likely one.

Prompt and continuation are tokenised as one text and cut after the tokens that the prompt has alone, as lm-evaluation-harness does.
Spaces at the end of the prompt count for the continuation, and so does a token that spans the cut::

    "The answer: " + "Paris"     The | answer | :     ▁Paris            not  ▁ | ▁Paris
    "under" + "stand"            (nothing)            understand

Continuations with the same tokens before the cut, in most cases all of them, share the computation of these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from hasten.core.early_exit import REQUEST_CRITERIA
from hasten.core.errors import InvalidRequest, PromptTooLong, nearest, show
from hasten.core.output import Choice, ScoreOutput
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams
from hasten.core.soft_prompt import SoftPrompt
from hasten.entrypoints.input_processor import InputProcessor, Prompt, format_first, read_token_ids

Continuation = str | Mapping[str, Any]
EXIT_RULES = ("none", "fixed", *REQUEST_CRITERIA, "prompt_hash")  # those with one exit layer for the entire request
NORMALIZATIONS = ("mean", "sum")
_ALLOWED = 'texts or {"token_ids": [token ids]}'


Scored = tuple[list[tuple[float, ...]], int | None]  # what ``ContinuationScorer.score`` returns


@dataclass(frozen=True, slots=True)
class ScorePlan:
    """What to compute for some continuations of one prompt, and how to read it."""

    texts: tuple[str | None, ...]  # of the continuations, as ``ScoreOutput.text``
    token_ids: tuple[tuple[int, ...], ...]  # of the continuations, after the cut
    queries: tuple[tuple[Request, list[tuple[int, ...]]], ...]  # each: tokens before the cut, and continuations of them
    members: tuple[list[int], ...]  # of each query: which continuations
    normalize: str = "mean"

    def outputs(self, results: Sequence[Scored]) -> list[ScoreOutput]:
        """Return the outputs for the results of the queries, in order."""
        outputs: dict[int, ScoreOutput] = {}
        for members, (all_logprobs, exit_layer) in zip(self.members, results, strict=True):
            for i, logprobs in zip(members, all_logprobs, strict=True):
                outputs[i] = ScoreOutput(text=self.texts[i], token_ids=self.token_ids[i], logprobs=logprobs, exit_layer=exit_layer)
        return [outputs[i] for i in range(len(self.texts))]

    def choice(self, results: Sequence[Scored]) -> Choice:
        """Return the most likely of the continuations."""
        scores = tuple(self.outputs(results))
        logprobs = [score.mean if self.normalize == "mean" else score.total for score in scores]
        best = logprobs.index(max(logprobs))
        return Choice(
            index=best,
            text=scores[best].text,
            probabilities=_softmax(logprobs),
            scores=scores,
            exit_layer=scores[best].exit_layer,
        )


@dataclass(frozen=True, slots=True)
class Scoring:
    input_processor: InputProcessor
    cache_salt: str
    soft_prompt: SoftPrompt | None  # stands before the prompt

    def plan(
        self,
        prompt: Prompt,
        continuations: Sequence[Continuation],
        params: SamplingParams | None,
        name: str = "continuations",
        normalize: str = "mean",
    ) -> ScorePlan:
        """See ``LLM.score``. ``name`` is the caller's word for the continuations in error messages."""
        if not isinstance(continuations, Sequence) or isinstance(continuations, (str, bytes, bytearray)):
            raise InvalidRequest(f"{name} are not a list", got=type(continuations).__name__, allowed=f"a list of {_ALLOWED}")
        if not continuations:
            raise InvalidRequest(f"there are no {name}", got="an empty list", allowed=f"at least one of {_ALLOWED}")
        num_virtual = len(self.input_processor.soft_prompts.virtual_token_ids(self.soft_prompt))
        prompt_ids = self.input_processor.encode(prompt, num_virtual)
        pairs = [self._encode(prompt, prompt_ids, continuation) for continuation in continuations]
        self._check(pairs, num_virtual, name)
        groups: dict[tuple[int, ...], list[int]] = {}  # the continuations of each sequence of prompt tokens
        for i, (before, _) in enumerate(pairs):
            groups.setdefault(before, []).append(i)
        return ScorePlan(
            texts=tuple(each if isinstance(each, str) else None for each in continuations),
            token_ids=tuple(token_ids for _, token_ids in pairs),
            queries=tuple((self._request(before, params), [pairs[i][1] for i in members]) for before, members in groups.items()),
            members=tuple(groups.values()),
            normalize=normalize,
        )

    def plan_choice(
        self, prompt: Prompt, choices: Sequence[Continuation], params: SamplingParams | None, normalize: str
    ) -> ScorePlan:
        """See ``LLM.choose``."""
        if not isinstance(normalize, str) or normalize not in NORMALIZATIONS:
            raise InvalidRequest("unknown normalize", got=show(normalize), remedy=nearest(normalize, NORMALIZATIONS))
        return self.plan(prompt, choices, params, "choices", normalize)

    def _request(self, prompt_ids: tuple[int, ...], params: SamplingParams | None) -> Request:
        """Return a request for these tokens, with the exit settings of ``params`` and no others."""
        params = self.input_processor.check_params(params)
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
        prompt = {"prompt_token_ids": prompt_ids}
        return self.input_processor.request(
            "score", prompt, settings, arrival=0.0, cache_salt=self.cache_salt, soft_prompt=self.soft_prompt
        )

    def _encode(
        self, prompt: Prompt, prompt_ids: tuple[int, ...], continuation: Continuation
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the token ids before the cut and after it, unchecked.

        ``prompt_ids`` are those of the prompt alone.
        """
        if not isinstance(continuation, str):
            max_tokens = self.input_processor.max_model_len
            return prompt_ids, read_token_ids(continuation, "continuation", "token_ids", max_tokens=max_tokens)
        tokenizer = self.input_processor.tokenizer_for(continuation, "continuation", "token_ids")
        if not isinstance(prompt, str):
            return prompt_ids, tuple(tokenizer.encode_fragment(continuation))
        if not continuation:
            return prompt_ids, ()
        without_spaces = tuple(tokenizer.encode_open(prompt.rstrip(" "))) if prompt.endswith(" ") else prompt_ids
        joint_ids = tuple(tokenizer.encode_open(prompt + continuation))
        num_shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(joint_ids, without_spaces, strict=False)))
        return joint_ids[:num_shared], joint_ids[num_shared:]

    def _check(self, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], num_virtual: int, name: str) -> None:
        """Raise ``InvalidRequest`` for continuations that are empty, too long, no token ids, or first.

        ``num_virtual``: positions of the soft prompt.
        """
        empty = [f"{name}[{i}]" for i, (_, token_ids) in enumerate(pairs) if not token_ids]
        if empty:
            raise InvalidRequest(f"{len(empty)} of the {name} are empty", got=format_first(empty), allowed="one token or more")
        first = [f"{name}[{i}]" for i, (before, _) in enumerate(pairs) if not before]
        if first:
            raise InvalidRequest(
                f"the prompt's first token goes on in {len(first)} of the {name}, so none is left before these",
                got=format_first(first),
                remedy="Put a word before the prompt, or pass token ids",
            )
        self.input_processor.check_vocabulary((token_id for _, token_ids in pairs for token_id in token_ids), name)
        before, longest = max(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))
        max_model_len = self.input_processor.max_model_len
        if (total := num_virtual + len(before) + len(longest)) > max_model_len:
            virtual = f"{num_virtual} virtual tokens + " if num_virtual else ""
            raise PromptTooLong(
                f"the prompt and the longest of the {name} do not fit the context",
                got=f"{virtual}{len(before)} + {len(longest)} = {total} tokens",
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
