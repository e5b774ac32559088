"""The program that tries grammars, so that one that takes too long can be killed.

It imports llguidance and the standard library only. The messages (``hasten.core.program``)::

    -> the fields of ``StructuredOutputs``
    <- {"grammar": "..."} or {"fault": "..."}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from hasten.core.program import Limits, answer_messages
from hasten.sampling.guides.grammar_text import LIMITS, grammar_fault, grammar_text

PROGRAM_LIMITS = Limits(memory=256 << 20, memory_per_input_byte=0, cpu_seconds=4)
_MAX_MESSAGE = 300  # characters of an error


class GrammarProgram:
    """Compiles grammars for a vocabulary of single bytes and computes the first mask."""

    def __init__(self) -> None:
        self._tokenizer = LLTokenizer("byte")

    def answer(self, form: Mapping[str, Any]) -> dict[str, Any]:
        """Return the grammar of a form, or its fault."""
        try:
            grammar = grammar_text(form)
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
            if not matcher.is_error():
                matcher.compute_ff_tokens()
                matcher.compute_bitmask()
            fault = grammar_fault(matcher)
        except MemoryError:
            fault = "it takes too much memory"
        except BaseException as error:  # also the panics of a library in Rust
            fault = str(error) or type(error).__name__
        return {"fault": fault[:_MAX_MESSAGE]} if fault else {"grammar": grammar}


if __name__ == "__main__":
    answer_messages(GrammarProgram().answer, PROGRAM_LIMITS)
