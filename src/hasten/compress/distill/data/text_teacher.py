"""``TextTeacher``: a model that writes texts and chooses among labels, as far as data needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hasten.core.sampling_params import SamplingParams

Message = Mapping[str, str]  # "role" and "content"
# A text, the messages of a conversation, or token ids as ``{"prompt_token_ids": [...]}``.
TeacherPrompt = str | tuple[Message, ...] | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A prompt after which the teacher writes ``params.n`` texts. ``params.seed`` is set."""

    prompt: TeacherPrompt
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class LabelRequest:
    """A prompt that one of some labels continues."""

    prompt: TeacherPrompt
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TeacherText:
    """One text of a teacher."""

    text: str
    finish_reason: str  # "stop", or "length" for a text that was cut
    num_tokens: int
    mean_logprob: float | None = None  # per token; None unless the request has ``logprobs``
    reasoning: str | None = None  # a thought that the model's family keeps apart from the text

    @property
    def is_cut(self) -> bool:
        return self.finish_reason != "stop"


class TextTeacher(Protocol):
    """What is written depends on the request and on ``identity`` only, not on the requests beside it."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Plain data that changes whenever texts could change."""

    @property
    def batch_size(self) -> int:
        """How many texts to ask for in one call."""

    def fits(self, request: TextRequest | LabelRequest) -> bool:
        """Whether prompt and text fit the context. Raises ``HastenError`` for a wrong prompt."""

    def write(self, requests: Sequence[TextRequest]) -> list[tuple[TeacherText, ...]]:
        """Return the texts of each request, which fits. Raises ``HastenError``."""

    def choose(self, requests: Sequence[LabelRequest]) -> list[tuple[float, ...]]:
        """Return the probabilities of each request's labels. Raises ``HastenError``."""
