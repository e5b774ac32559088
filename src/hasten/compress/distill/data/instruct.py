"""``choose_answers``: several answers with reasoning per prompt, of which the best is kept."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from hasten.compress.distill.data.ask_templates import AskTemplates
from hasten.compress.distill.data.generate import Record
from hasten.compress.distill.data.prompt_file import PromptRecord
from hasten.compress.distill.data.recorded_teacher import RecordedTeacher
from hasten.compress.distill.data.text_teacher import TeacherPrompt, TeacherText, TextRequest
from hasten.compress.distill.data.vote import Answer, Vote, by_majority, by_score, final_answer
from hasten.core.errors import InvalidOption, nearest, show
from hasten.core.sampling_params import SamplingParams
from hasten.training.corpus import derived_seed

Rule = Literal["majority", "logprob", "check"]
RULES: tuple[Rule, ...] = ("majority", "logprob", "check")
TRIAL: dict[str, dict[str, Any]] = {"answer": {"input": "?"}}
Check = Callable[[str, str], float]  # from input and output to a score


def read_rule(name: str) -> Rule:
    """Return the rule of this name. Raises ``InvalidOption``."""
    for rule in RULES:
        if rule == name:
            return rule
    raise InvalidOption("unknown rule for the best answer", got=show(name), remedy=nearest(name, RULES))


def choose_answers(
    teacher: RecordedTeacher,
    prompts: Sequence[PromptRecord],
    params: SamplingParams,
    templates: AskTemplates,
    *,
    rule: Rule = "majority",
    pattern: re.Pattern[str] | None = None,
    check: Check | None = None,
    min_score: float | None = None,
    answers_only: bool = False,
    seed: int = 0,
    dropped: Counter[str],
) -> Iterator[Record]:
    """Yield the best of ``params.n`` answers per prompt, with its reasoning, the votes and its score.

    Answers that were cut or are blank have no vote. A prompt whose best score is below ``min_score`` is dropped. A conversation is
    asked as it is, without the template. ``check`` is for the rule of that name; ``dropped`` counts by reason.
    """
    requests = (
        TextRequest(_asked(prompt, templates), params.replace(logprobs=0, seed=derived_seed(seed, "instruct", i)))
        for i, prompt in enumerate(prompts)
    )
    for prompt, texts in zip(prompts, teacher.write(requests), strict=True):
        if not texts:
            dropped["too long for the context"] += 1
            continue
        complete = [text for text in texts if not text.is_cut and text.text.strip()]
        dropped["answers that were cut or blank"] += len(texts) - len(complete)
        answers = [Answer(text.text, final_answer(text.text, pattern), text.mean_logprob or 0.0) for text in complete]
        vote = _vote(prompt, answers, rule, check)
        if vote is None:
            dropped["prompts without a final answer"] += 1
        elif min_score is not None and vote.score < min_score:
            dropped["prompts whose best answer is below the minimum"] += 1
        else:
            yield _record(prompt, complete[vote.index], answers[vote.index], vote, answers_only)


def _asked(prompt: PromptRecord, templates: AskTemplates) -> TeacherPrompt:
    return templates.render("answer", {"input": prompt.prompt}) if isinstance(prompt.prompt, str) else prompt.prompt


def _vote(prompt: PromptRecord, answers: Sequence[Answer], rule: Rule, check: Check | None) -> Vote | None:
    if rule == "majority":
        return by_majority(answers)
    if rule == "logprob":
        return by_score(answers, [answer.logprob for answer in answers])
    assert check is not None, "the rule check needs a function"
    return by_score(answers, [check(prompt.input_text, answer.text.strip()) for answer in answers])


def _record(prompt: PromptRecord, text: TeacherText, answer: Answer, vote: Vote, answers_only: bool) -> Record:
    """Return the record of a chosen answer.

    A thought that the model's family keeps apart is part of the reasoning, and never of the output.
    """
    content = text.text.strip()
    final = answer.final or content
    return {
        **prompt.others,
        "input": prompt.input_text,
        "output": final if answers_only else content,
        "answer": final,
        "reasoning": "\n\n".join(filter(None, (text.reasoning, content))),
        "votes": vote.votes,
        "score": vote.score,
        "mean_logprob": text.mean_logprob,
        "num_tokens": text.num_tokens,
    }
