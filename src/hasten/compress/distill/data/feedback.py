"""``score_outputs`` and ``compare_outputs``: pairs of a better and a worse output.

A teacher writes a critique first. A score is the expectation over the probabilities of all scores, so that two outputs seldom have
the same one (G-Eval: Liu et al., 2023, arXiv 2303.16634). A comparison is asked in both orders, and only verdicts that agree are
kept, because a judge may prefer a place (Zheng et al., 2023, arXiv 2306.05685).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from hasten.compress.distill.data.ask_templates import AskTemplates
from hasten.compress.distill.data.example_pairs import Candidates
from hasten.compress.distill.data.generate import Record
from hasten.compress.distill.data.recorded_teacher import RecordedTeacher
from hasten.compress.distill.data.text_teacher import LabelRequest, TextRequest
from hasten.core.sampling_params import SamplingParams
from hasten.training.corpus import derived_seed

PLACES = ("A", "B")
HIGHEST = 5
_TEXTS = {"input": "?", "output": "?", "first": "?", "second": "?", "critique": "?", "highest": str(HIGHEST)}
TRIAL: dict[str, dict[str, Any]] = dict.fromkeys(("critique", "score", "comparison", "verdict"), _TEXTS)


class Feedback:
    """Asks for a critique of a text, and then for a label. ``params`` are those of the critique."""

    def __init__(self, teacher: RecordedTeacher, params: SamplingParams, templates: AskTemplates, *, seed: int = 0) -> None:
        self._teacher, self._templates, self._seed = teacher, templates, seed
        self._params = params.replace(n=1)

    def ask(
        self, critique: str, label: str, labels: tuple[str, ...], all_variables: Sequence[dict[str, str]]
    ) -> Iterator[tuple[str, tuple[float, ...]]]:
        """Yield a critique and the probabilities of the labels for each set of variables.

        ``critique`` and ``label`` are names of templates. There are no probabilities if the prompt is too long. A batch is
        criticised, then its labels are asked, so that the prefix cache still has its prompts.
        """
        size = self._teacher.batch_size
        for start in range(0, len(all_variables), size):
            batch = all_variables[start : start + size]
            requests = [
                TextRequest(
                    self._templates.render(critique, variables),
                    self._params.replace(seed=derived_seed(self._seed, critique, start + i)),
                )
                for i, variables in enumerate(batch)
            ]
            critiques = [texts[0].text.strip() if texts else "" for texts in self._teacher.write(requests)]
            asked = [
                LabelRequest(self._templates.render(label, {**variables, "critique": text}), labels)
                for variables, text in zip(batch, critiques, strict=True)
            ]
            yield from zip(critiques, self._teacher.choose(asked), strict=True)


def score_outputs(
    feedback: Feedback, candidates: Sequence[Candidates], *, highest: int = HIGHEST, min_margin: float = 0.0, dropped: Counter[str]
) -> Iterator[Record]:
    """Yield the best and the worst output per input, with their scores and critiques.

    Scores are from 1 to ``highest``. A pair whose scores differ by ``min_margin`` or less is dropped. ``dropped`` counts by reason.
    """
    labels = tuple(str(score) for score in range(1, highest + 1))
    flat = [
        {"input": one.input_text, "output": output, "highest": str(highest)}
        for one in _several(candidates, dropped)
        for output in one.outputs
    ]
    found = feedback.ask("critique", "score", labels, flat)
    for one in _several(candidates, Counter()):
        scored = [(output, *next(found)) for output in one.outputs]
        rated = [(expected_score(shares), output, critique) for output, critique, shares in scored if shares]
        dropped["outputs whose prompt is too long for the context"] += len(scored) - len(rated)
        best, worst = max(rated, key=_score, default=None), min(rated, key=_score, default=None)
        if best is None or worst is None or best[0] - worst[0] <= min_margin:
            dropped["inputs without a clear difference"] += 1
            continue
        yield {
            "input": one.input_text,
            "chosen": best[1],
            "rejected": worst[1],
            "chosen_score": best[0],
            "rejected_score": worst[0],
            "critique": best[2],
            "rejected_critique": worst[2],
        }


def compare_outputs(feedback: Feedback, candidates: Sequence[Candidates], *, dropped: Counter[str]) -> Iterator[Record]:
    """Yield each two outputs of an input about which the verdicts in both orders agree.

    The scores are the probabilities of being better, averaged over both orders. ``dropped`` counts by reason.
    """
    pairs = [(one.input_text, *pair) for one in _several(candidates, dropped) for pair in combinations(one.outputs, 2)]
    flat = [
        {"input": input_text, "first": first, "second": second}
        for input_text, one, other in pairs
        for first, second in ((one, other), (other, one))
    ]
    found = feedback.ask("comparison", "verdict", PLACES, flat)
    for input_text, one, other in pairs:
        (critique, forward), (other_critique, backward) = next(found), next(found)
        if not (forward and backward):
            dropped["pairs whose prompt is too long for the context"] += 1
            continue
        # The first place has the one output, and then the other.
        if (forward[0] - 0.5) * (0.5 - backward[0]) <= 0:
            dropped["pairs whose verdict depends on the order"] += 1
            continue
        share = (forward[0] + backward[1]) / 2
        chosen, rejected = (one, other) if share > 0.5 else (other, one)
        yield {
            "input": input_text,
            "chosen": chosen,
            "rejected": rejected,
            "chosen_score": max(share, 1 - share),
            "rejected_score": min(share, 1 - share),
            "critique": critique,
            "critique_in_other_order": other_critique,
        }


def expected_score(shares: Sequence[float]) -> float:
    """Return the expectation of a score from 1, given the probability of each score."""
    return sum(score * share for score, share in enumerate(shares, 1))


def _score(rated: tuple[float, str, str]) -> float:
    return rated[0]


def _several(candidates: Sequence[Candidates], dropped: Counter[str]) -> Iterator[Candidates]:
    """Yield the inputs with two outputs or more."""
    for one in candidates:
        if len(one.outputs) > 1:
            yield one
        else:
            dropped["inputs with a single output"] += 1
