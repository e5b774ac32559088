"""``RecordedTeacher``: a teacher that is asked nothing twice, because its answers are kept.

Requests go to the teacher in batches, and the answers of a batch are on the disk before the first of them is used. What a run makes
of the answers depends on them alone, so a run that was killed ends as one that was not.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from hasten.compress.distill.data.answer_file import AnswerFile
from hasten.compress.distill.data.text_teacher import LabelRequest, TeacherText, TextRequest, TextTeacher
from hasten.core.errors import InvalidOption
from hasten.prompts.metric import text_digest

AnyRequest = TypeVar("AnyRequest", TextRequest, LabelRequest)
Answer = TypeVar("Answer")


class RecordedTeacher:
    """``on_answers`` is called with the number of requests answered since the last call."""

    def __init__(self, teacher: TextTeacher, answers: AnswerFile, on_answers: Callable[[int], None] = lambda count: None) -> None:
        self._teacher, self._answers, self._on_answers = teacher, answers, on_answers
        self._identity = json.dumps(teacher.identity, sort_keys=True)

    @property
    def batch_size(self) -> int:
        return self._teacher.batch_size

    def write(self, requests: Iterable[TextRequest]) -> Iterator[tuple[TeacherText, ...]]:
        """Yield the texts of each request, in order; none for one that does not fit the context.

        ``requests`` is read batch by batch. Raises ``HastenError``.
        """
        for batch in self._batches(requests):
            yield from self._ask(batch, self._teacher.write, _texts_as_data, self._read_texts)

    def choose(self, requests: Iterable[LabelRequest]) -> Iterator[tuple[float, ...]]:
        """Yield the probabilities of each request's labels, in order; none for one that does not fit."""
        for batch in self._batches(requests):
            yield from self._ask(batch, self._teacher.choose, list, self._read_probabilities)

    def _batches(self, requests: Iterable[AnyRequest]) -> Iterator[list[AnyRequest]]:
        batch: list[AnyRequest] = []
        size = 0
        for request in requests:
            batch.append(request)
            size += request.params.n if isinstance(request, TextRequest) else 1
            if size >= self.batch_size:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _ask(
        self,
        batch: Sequence[AnyRequest],
        ask: Callable[[Sequence[AnyRequest]], Sequence[Any]],
        write: Callable[[Any], Any],
        read: Callable[[Any, AnyRequest], Any],
    ) -> Iterator[Any]:
        keys = [self._key(request) for request in batch]
        missing: dict[str, AnyRequest] = {}
        for key, request in zip(keys, batch, strict=True):
            if key not in self._answers and key not in missing:
                missing[key] = request
        fitting = {key: request for key, request in missing.items() if self._teacher.fits(request)}
        found: list[Any] = list(ask(list(fitting.values()))) if fitting else []
        new = {key: write(answer) for key, answer in zip(fitting, found, strict=True)}
        if missing:
            self._answers.add([(key, new.get(key, [])) for key in missing])
        self._on_answers(len(batch))
        for key, request in zip(keys, batch, strict=True):
            yield read(self._answers.get(key), request)

    def _key(self, request: TextRequest | LabelRequest) -> str:
        """Return the digest of all that the answer depends on."""
        if isinstance(request, LabelRequest):
            kind, facts = "choose", repr(request.labels)
        else:
            kind, facts = "write", repr(request.params)
        return text_digest("hasten/data/1", self._identity, kind, json.dumps(request.prompt, default=list), facts)

    def _read_texts(self, data: Any, request: TextRequest) -> tuple[TeacherText, ...]:
        if not (isinstance(data, list) and len(data) in (0, request.params.n) and all(map(_is_text, data))):
            raise self._damaged(data)
        return tuple(TeacherText(**fields) for fields in data)

    def _read_probabilities(self, data: Any, request: LabelRequest) -> tuple[float, ...]:
        if not (isinstance(data, list) and len(data) in (0, len(request.labels)) and all(map(_is_probability, data))):
            raise self._damaged(data)
        return tuple(data)

    def _damaged(self, data: Any) -> InvalidOption:
        path = self._answers.path
        remedy = f"Remove {path}, or give another path with --out"
        return InvalidOption(f"an answer in {path} is damaged", got=data, remedy=remedy)


def _texts_as_data(texts: Sequence[TeacherText]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(text) for text in texts]


_FIELDS = {field.name for field in dataclasses.fields(TeacherText)}


def _is_text(data: Any) -> bool:
    if not (isinstance(data, dict) and data.keys() == _FIELDS):
        return False
    are_texts = isinstance(data["text"], str) and isinstance(data["finish_reason"], str)
    is_logprob = data["mean_logprob"] is None or (isinstance(data["mean_logprob"], float) and not math.isnan(data["mean_logprob"]))
    is_count = type(data["num_tokens"]) is int and data["num_tokens"] >= 0
    return are_texts and is_logprob and is_count and isinstance(data["reasoning"], str | None)


def _is_probability(value: Any) -> bool:
    return isinstance(value, float) and 0 <= value <= 1 + 1e-9
