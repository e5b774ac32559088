"""An instruction of a prompt: from the text that a model wrote to a variant with it.

An instruction is a value of a variable, never part of the template's text, so that Jinja in it stays text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace

from hasten.core.unicode_text import is_unicode
from hasten.prompts.leading_text import with_leading_text
from hasten.prompts.load_variant import TemplateVariant
from hasten.prompts.proposer import END_MARK
from hasten.prompts.template import PromptTemplate

VARIABLE = "instruction"
MAX_CHARACTERS = 20_000  # of an instruction; its tokens have a limit of their own
_BEGIN_MARK = END_MARK.replace("/", "")
_REASONING_END = "</think>"


def instruction_of(template: PromptTemplate) -> str:
    """Return the instruction that a template has as a default; empty without one."""
    return template.defaults.get(VARIABLE, "")


def with_instruction(initial: TemplateVariant, text: str, name: str, item_variables: Collection[str]) -> TemplateVariant:
    """Return the variant with another instruction.

    It takes the place of the variable ``instruction`` where the template reads one that the items do not give. Otherwise it stands
    before the template's text, with a blank line between them.
    """
    template = initial.template
    if VARIABLE in {*template.variables, *template.defaults} and VARIABLE not in item_variables:
        return TemplateVariant(name, replace(template, defaults={**template.defaults, VARIABLE: text}))
    return TemplateVariant(name, with_leading_text(template, VARIABLE, text, "\n\n", item_variables))


def read_answer(answer: str) -> str:
    """Return the instruction of a proposer's answer.

    It is what stands between the marks, else the first paragraph. Reasoning before it is left out. The meta-prompt ends with the
    first mark, so an answer may lack it.
    """
    text = answer.rpartition(_REASONING_END)[2]
    before, end, _ = text.rpartition(END_MARK)
    _, begin, body = (before if end else text).rpartition(_BEGIN_MARK)
    if end or begin:
        return (body if begin else text).partition(END_MARK)[0].strip()
    return re.split(r"\n[^\S\n]*\n", text.strip(), maxsplit=1)[0].strip()


class InstructionFilter:
    """Drops the answers that are no new instruction, and counts why.

    ``count_tokens``: of a text. ``answers``: the references of validation items; an instruction with one of them as a line of its
    own would give an answer away.
    """

    def __init__(self, count_tokens: Callable[[str], int], max_tokens: int, answers: Iterable[str], known: Iterable[str]) -> None:
        self._count_tokens, self._max_tokens = count_tokens, max_tokens
        self._answers = {answer.strip() for answer in answers}
        self._known = {_normal(text) for text in known}
        self.dropped: Counter[str] = Counter()

    def instructions(self, answers: Iterable[str]) -> Iterator[str]:
        """Yield the instructions of answers that are kept, in order."""
        for answer in answers:
            text = read_answer(answer)
            reason = self._fault(text)
            if reason is None:
                self._known.add(_normal(text))
                yield text
            else:
                self.dropped[reason] += 1

    def _fault(self, text: str) -> str | None:
        if not text or not is_unicode(text):
            return "empty"
        if _normal(text) in self._known:
            return "known"
        if len(text) > MAX_CHARACTERS or self._count_tokens(text) > self._max_tokens:
            return "too long"
        if any(line.strip() in self._answers for line in text.splitlines()):
            return "with an answer"
        return None


def _normal(text: str) -> str:
    return " ".join(text.split())
