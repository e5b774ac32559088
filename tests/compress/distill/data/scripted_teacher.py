"""A teacher that answers as a test says, and notes what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hasten.compress.distill.data.text_teacher import LabelRequest, TeacherPrompt, TeacherText, TextRequest


def text(content: str, finish_reason: str = "stop", logprob: float | None = None) -> TeacherText:
    return TeacherText(content, finish_reason, len(content), logprob)


class ScriptedTeacher:
    """``write`` makes the text of sample ``i`` of a request; ``choose`` gives the probabilities of labels."""

    def __init__(
        self,
        write: Callable[[TextRequest, int], TeacherText] = lambda request, i: text(f"{request.prompt}|{request.params.seed}|{i}"),
        choose: Callable[[LabelRequest], tuple[float, ...]] = lambda request: (1.0,),
        *,
        batch_size: int = 4,
        fits: Callable[[TextRequest | LabelRequest], bool] = lambda request: True,
        name: str = "scripted",
    ) -> None:
        self._write, self._choose, self._fits = write, choose, fits
        self.batch_size, self.name = batch_size, name
        self.batches: list[Sequence[TextRequest | LabelRequest]] = []

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"name": self.name}

    @property
    def asked(self) -> list[TextRequest | LabelRequest]:
        return [request for batch in self.batches for request in batch]

    @property
    def prompts(self) -> list[TeacherPrompt]:
        return [request.prompt for request in self.asked]

    def fits(self, request: TextRequest | LabelRequest) -> bool:
        return self._fits(request)

    def write(self, requests: Sequence[TextRequest]) -> list[tuple[TeacherText, ...]]:
        self.batches.append(list(requests))
        return [tuple(self._write(request, i) for i in range(request.params.n)) for request in requests]

    def choose(self, requests: Sequence[LabelRequest]) -> list[tuple[float, ...]]:
        self.batches.append(list(requests))
        return [self._choose(request) for request in requests]
