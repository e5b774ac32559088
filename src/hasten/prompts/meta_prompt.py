"""Meta-prompts: what a model is asked that shall write an instruction.

``induction_prompt`` shows inputs and outputs and asks for the instruction between them (APE: Zhou et al., 2022, arXiv 2211.01910).
``improvement_prompt`` shows instructions and scores, worst first, and asks for a better one (OPRO: Yang et al., 2023, arXiv
2309.03409).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hasten.prompts.task import PromptItem
from hasten.prompts.template import PromptTemplate
from hasten.prompts.template_file import read_templates

FOLDER = Path(__file__).parent / "meta_prompts"  # a file per language


@dataclass(frozen=True, slots=True)
class KnownInstruction:
    text: str
    score: float  # mean over items; finite


def induction_prompt(language: str, items: Sequence[PromptItem]) -> str:
    """Return the question for an instruction that leads from the inputs of these items to their outputs."""
    return _template(language, "induce").render({"examples": _examples(items)}).rstrip("\n")


def improvement_prompt(
    language: str, known: Sequence[KnownInstruction], items: Sequence[PromptItem], *, as_percent: bool = False
) -> str:
    """Return the question for a better instruction.

    ``as_percent``: scores from 0 to 1 appear as integers up to 100.
    """
    entries = [
        {"text": one.text, "score": f"{100 * one.score:.0f}" if as_percent else f"{one.score:.4g}"}
        for one in sorted(known, key=lambda one: one.score)
    ]
    return _template(language, "improve").render({"known": entries, "examples": _examples(items)}).rstrip("\n")


def _examples(items: Sequence[PromptItem]) -> list[dict[str, str]]:
    return [{"input": item.input_text, "output": item.references[0]} for item in items]


@functools.cache
def _template(language: str, name: str) -> PromptTemplate:
    return next(template for template in read_templates(FOLDER / f"{language}.yaml") if template.name == name)
