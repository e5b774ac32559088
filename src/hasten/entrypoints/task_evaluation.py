"""``evaluate_task``: the scores of a model on a task file, and the difference to another model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.core.errors import HastenError, InvalidRequest, PromptTooLong
from hasten.core.sampling_params import SamplingParams
from hasten.entrypoints.evaluation import reference_options
from hasten.entrypoints.input_processor import Prompt
from hasten.entrypoints.llm import LLM
from hasten.entrypoints.progress import choice_bar
from hasten.entrypoints.task_options import TaskOptions
from hasten.quality.task_scores import Difference, MultipleChoiceResult, Score, TaskResult, differences, match, summarize
from hasten.quality.tasks import ExactMatch, MultipleChoice, TaskItem, read_task


@dataclass(frozen=True, slots=True)
class ModelResults:
    description: Mapping[str, Any]  # of ``LLM.describe``
    results: tuple[TaskResult, ...]  # in the order of the file

    @property
    def scores(self) -> list[Score]:
        return summarize(self.results)

    def as_dict(self) -> dict[str, Any]:
        scores, items = [score.as_dict() for score in self.scores], [result.as_dict() for result in self.results]
        return {"model": dict(self.description), "scores": scores, "items": items}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEvaluation:
    task: str  # the file
    options: TaskOptions
    candidate: ModelResults
    reference: ModelResults | None

    @property
    def differences(self) -> list[Difference]:
        """Candidate minus reference, per metric; empty without a reference."""
        return [] if self.reference is None else differences(self.candidate.results, self.reference.results)

    def as_dict(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "options": dataclasses.asdict(self.options),
            "candidate": self.candidate.as_dict(),
            "reference": None if self.reference is None else self.reference.as_dict(),
            "differences": [difference.as_dict() for difference in self.differences],
        }


def evaluate_task(
    model: str, options: Mapping[str, Any], task: Path, *, against: str | None = None, settings: TaskOptions | None = None
) -> TaskEvaluation:
    """Return the scores of ``model`` with ``options`` on a task file (``read_task``).

    ``options`` are fields of ``EngineOptions``. ``against`` is a reference, in float32 on PyTorch. The models run one after the
    other, and their vocabularies may differ. Raises ``HastenError``; every line is checked before a model is loaded.
    """
    settings = settings or TaskOptions()
    items = read_task(task)
    candidate = _run(model, options, task, items, settings)
    reference = None
    if against is not None:
        reference = _run(against, reference_options(options, same_model=False), task, items, settings)
    return TaskEvaluation(task=str(task), options=settings, candidate=candidate, reference=reference)


def _run(model: str, options: Mapping[str, Any], task: Path, items: Sequence[TaskItem], settings: TaskOptions) -> ModelResults:
    with LLM(model, **options) as llm:
        return ModelResults(llm.describe(), _TaskRun(llm, task, settings, visible=bool(options.get("show_progress"))).run(items))


@dataclass(frozen=True, slots=True)
class _TaskRun:
    llm: LLM
    task: Path
    settings: TaskOptions
    visible: bool  # the progress

    def run(self, items: Sequence[TaskItem]) -> tuple[TaskResult, ...]:
        """Return one result per item. All prompts are checked before the first one runs."""
        if self.llm.tokenizer is None:
            raise InvalidRequest("this checkpoint has no tokenizer, so it cannot run a task of texts")
        prompts = {item.line: self._prompt(item) for item in items}
        to_generate = [item for item in items if isinstance(item, ExactMatch)]
        to_score = [item for item in items if isinstance(item, MultipleChoice)]
        results = [*self._generate(to_generate, prompts), *self._score(to_score, prompts)]
        return tuple(sorted(results, key=lambda result: result.item.line))

    def _prompt(self, item: TaskItem) -> Prompt:
        """Return the prompt as the model gets it. Raises ``InvalidRequest`` if it does not fit the context."""
        tokenizer, max_model_len = self.llm.tokenizer, self.llm.describe()["max_model_len"]
        with self._named(item):
            if self.settings.chat:
                token_ids = tokenizer.apply_chat_template([{"role": "user", "content": item.prompt}])
            else:
                token_ids = tokenizer.encode(item.prompt)
            if isinstance(item, ExactMatch):
                num_more = self.settings.max_tokens
            else:
                num_more = max(len(tokenizer.encode_fragment(text)) for text in self._continuations(item))
            if len(token_ids) + num_more > max_model_len:
                raise PromptTooLong(
                    "prompt and answer do not fit the context",
                    got=f"{len(token_ids)} + {num_more} tokens",
                    allowed=f"up to {max_model_len} tokens",
                    remedy="Shorten the prompt, lower max_tokens or raise max_model_len",
                )
        # Prompt and choice are tokenised as one text, except after a chat template.
        is_text = isinstance(item, MultipleChoice) and not self.settings.chat
        return item.prompt if is_text else {"prompt_token_ids": token_ids}

    def _continuations(self, item: MultipleChoice) -> list[str]:
        return [self.settings.continuation(item.prompt, choice) for choice in item.choices]

    def _generate(self, items: Sequence[ExactMatch], prompts: Mapping[int, Prompt]) -> Iterator[TaskResult]:
        if not items:
            return
        params = SamplingParams(temperature=0.0, max_tokens=self.settings.max_tokens, stop=self.settings.stop_strings, seed=0)
        outputs = self.llm.generate([prompts[item.line] for item in items], params, use_tqdm=self.visible)
        for item, output in zip(items, outputs, strict=True):
            with self._named(item):
                if output.error is not None:
                    raise HastenError(f"the request failed: {output.error}")
            yield match(item, output.outputs[0].text, ignore_case=self.settings.ignore_case)

    def _score(self, items: Sequence[MultipleChoice], prompts: Mapping[int, Prompt]) -> Iterator[TaskResult]:
        with choice_bar(len(items), visible=self.visible) as progress:
            for item in items:
                with self._named(item):
                    scores = self.llm.score(prompts[item.line], self._continuations(item), SamplingParams())
                yield MultipleChoiceResult(item, tuple(score.total for score in scores))
                progress(1)

    @contextmanager
    def _named(self, item: TaskItem) -> Iterator[None]:
        """Name the item's line in an error."""
        try:
            yield
        except HastenError as error:
            message = f"line {item.line} of {self.task}: {error.what}"
            raise type(error)(message, got=error.got, allowed=error.allowed, remedy=error.remedy) from error
