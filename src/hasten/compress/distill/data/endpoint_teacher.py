"""``EndpointTeacher``: a model behind an OpenAI-compatible endpoint as a ``TextTeacher``."""

from __future__ import annotations

import dataclasses
import queue
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from hasten.compress.distill.data.text_teacher import LabelRequest, TeacherText, TextRequest
from hasten.core.errors import InvalidOption, show
from hasten.core.sampling_params import SamplingParams
from hasten.prompts.endpoint import ChatAnswer, Endpoint, open_endpoint
from hasten.prompts.judge import EndpointJudge

BATCHES = 4  # requests per connection in one call, so that a slow answer delays few others
_NAME = re.compile(r"(?P<model>[^@]+)@(?P<url>https?://.*)")
# Fields of ``SamplingParams`` that the interface has under the same names.
_SENT = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "max_tokens", "seed", "stop")
_IMPLIED = ("n", "logprobs")  # a request per text; log-probabilities are left out

Request = TypeVar("Request")
Result = TypeVar("Result")


def split_endpoint(name: str) -> tuple[str, str] | None:
    """Return the model and the URL of ``MODEL@URL``; None for the name of another model."""
    found = _NAME.fullmatch(name)
    return None if found is None else (found["model"], found["url"])


class EndpointTeacher:
    """A model of an endpoint, which is asked ``num_connections`` requests at a time.

    A prompt that is a text becomes a user's message. The API key comes from the environment, as for a judge. Whether a prompt fits
    is for the endpoint to say. The number of tokens of a text includes its prompt.
    """

    def __init__(self, url: str, model: str, *, num_connections: int = 16) -> None:
        self._url, self._model = url, model
        self._judges: queue.SimpleQueue[tuple[Endpoint, EndpointJudge]] = queue.SimpleQueue()
        for _ in range(num_connections):
            endpoint = open_endpoint(url, model)  # an endpoint is for one thread at a time
            self._judges.put((endpoint, EndpointJudge(endpoint)))
        self._num_connections = num_connections
        self.batch_size = BATCHES * num_connections
        self.num_requests = self.num_tokens = 0

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"url": self._url, "model": self._model}

    @property
    def figures(self) -> str:
        return f"{self.num_requests:,} requests | {self.num_tokens:,} tokens, as the endpoint counts them"

    def fits(self, request: TextRequest | LabelRequest) -> bool:
        """Return True; an endpoint refuses a prompt that is too long."""
        if isinstance(request.prompt, Mapping):
            raise InvalidOption("an endpoint takes no token ids", remedy="Give prompts that are texts or messages")
        if isinstance(request, TextRequest):
            _settings(request.params, 0)
        return True

    def write(self, requests: Sequence[TextRequest]) -> list[tuple[TeacherText, ...]]:
        wanted = [(request, number) for request in requests for number in range(request.params.n)]
        answers = iter(self._run(self._write, wanted))
        return [tuple(_read(next(answers)) for _ in range(request.params.n)) for request in requests]

    def choose(self, requests: Sequence[LabelRequest]) -> list[tuple[float, ...]]:
        """Return the probabilities by ``EndpointJudge``."""
        return self._run(self._choose, requests)

    def _write(self, wanted: tuple[TextRequest, int]) -> ChatAnswer:
        (request, number) = wanted
        prompt = request.prompt
        assert not isinstance(prompt, Mapping)
        with self._judge() as (endpoint, _):
            return endpoint.chat(prompt, **_settings(request.params, number))

    def _choose(self, request: LabelRequest) -> tuple[float, ...]:
        assert isinstance(request.prompt, str)
        with self._judge() as (_, judge):
            return judge.judge(request.prompt, request.labels).probabilities

    def _run(self, ask: Callable[[Request], Result], requests: Sequence[Request]) -> list[Result]:
        """Return the results in order. After an error or an interrupt, no further request is sent."""
        pool = ThreadPoolExecutor(self._num_connections)
        try:
            results = list(pool.map(ask, requests))
        finally:
            pool.shutdown(cancel_futures=True)
        self.num_requests += len(requests)
        self.num_tokens += sum(result.num_tokens for result in results if isinstance(result, ChatAnswer))
        return results

    @contextmanager
    def _judge(self) -> Iterator[tuple[Endpoint, EndpointJudge]]:
        found = self._judges.get()
        try:
            yield found
        finally:
            self._judges.put(found)


def _settings(params: SamplingParams, number: int) -> dict[str, Any]:
    """Return the fields of the request for text ``number``.

    Raises ``InvalidOption`` for a setting that the interface lacks.
    """
    defaults = SamplingParams()
    values = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    changed = {name: value for name, value in values.items() if value != getattr(defaults, name)}
    unknown = [name for name in changed if name not in (*_SENT, *_IMPLIED)]
    if unknown:
        raise InvalidOption("an endpoint has no such sampling settings", got=show(unknown), allowed=", ".join(_SENT))
    sent = {name: value for name, value in changed.items() if name in _SENT}
    if sent.get("seed") is not None:
        sent["seed"] = (sent["seed"] + number) % 2**31  # endpoints may refuse larger ones
    return sent


def _read(answer: ChatAnswer) -> TeacherText:
    return TeacherText(answer.text, "length" if answer.is_cut else "stop", answer.num_tokens)
