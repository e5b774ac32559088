"""``Proposer``: texts that a model writes for a meta-prompt, for the search of instructions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hasten.core.errors import HastenError, InvalidOption
from hasten.core.sampling_params import SamplingParams
from hasten.prompts.endpoint import Endpoint, open_endpoint
from hasten.prompts.metric import text_digest

if TYPE_CHECKING:
    from hasten.entrypoints.llm import LLM

END_MARK = "</INS>"  # stands after an instruction in meta-prompts and answers
TEMPERATURE = 1.0
MAX_ANSWER_TOKENS = 2048  # of an endpoint's answer, which may reason before it proposes
_MAX_COUNT = 64  # texts of one request to the model itself


@dataclass(frozen=True, slots=True)
class Proposals:
    texts: tuple[str, ...]  # as they were written
    num_tokens: int  # computed for them; of an endpoint, as far as it counts them


class Proposer(Protocol):
    @property
    def identity(self) -> str:
        """A text that changes whenever answers could change; proposals are kept under it."""

    @property
    def max_count(self) -> int:
        """The number of texts per call."""

    def propose(self, prompt: str, count: int, seed: int) -> Proposals:
        """Return ``count`` texts, up to ``max_count``, sampled by ``seed``. Raises ``HastenError``."""


class ModelProposer:
    """A loaded model, which may be the one that is evaluated.

    ``chat``: the meta-prompt is a user's message. Raises ``InvalidOption`` for a model without a tokenizer.
    """

    max_count = _MAX_COUNT

    def __init__(self, llm: LLM, *, chat: bool, max_tokens: int) -> None:
        if llm.tokenizer is None:
            raise InvalidOption("this checkpoint has no tokenizer, so it cannot propose instructions")
        self._llm, self._chat, self._max_tokens = llm, chat, max_tokens

    @property
    def identity(self) -> str:
        digest = self._llm.digest()
        return text_digest("model", digest.weights, digest.text, str(self._chat), str(self._max_tokens))

    def propose(self, prompt: str, count: int, seed: int) -> Proposals:
        """Return the texts; ``PromptTooLong`` if the meta-prompt exceeds the context."""
        params = [
            SamplingParams(temperature=TEMPERATURE, max_tokens=self._max_tokens, stop=(END_MARK,), seed=seed + index)
            for index in range(count)
        ]
        if self._chat:
            outputs = self._llm.chat([[{"role": "user", "content": prompt}]] * count, params, use_tqdm=False)
        else:
            outputs = self._llm.generate([prompt] * count, params, use_tqdm=False)
        failed = [output.error for output in outputs if output.error is not None]
        if failed:
            raise HastenError(f"the request for proposals failed: {failed[0]}")
        num_tokens = sum(len(output.prompt_token_ids) + output.metrics.num_output_tokens for output in outputs)
        return Proposals(tuple(output.outputs[0].text for output in outputs), num_tokens)


class EndpointProposer:
    """A model behind an OpenAI-compatible endpoint.

    A request is for one text, because not every endpoint gives more.
    """

    max_count = 1

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    @property
    def identity(self) -> str:
        return text_digest("endpoint", self._endpoint.url, self._endpoint.model)

    def propose(self, prompt: str, count: int, seed: int) -> Proposals:
        answers = [
            self._endpoint.chat(prompt, temperature=TEMPERATURE, max_tokens=MAX_ANSWER_TOKENS, seed=seed + index)
            for index in range(count)
        ]
        return Proposals(tuple(answer.text for answer in answers), sum(answer.num_tokens for answer in answers))


def open_proposer(llm: LLM, url: str | None, model: str | None, *, chat: bool, max_tokens: int) -> Proposer:
    """Return the endpoint at ``url``, or without one the model itself. Raises ``InvalidOption``."""
    if url is not None:
        return EndpointProposer(open_endpoint(url, model))
    return ModelProposer(llm, chat=chat, max_tokens=max_tokens)
