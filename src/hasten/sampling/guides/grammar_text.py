"""The grammars of ``StructuredOutputs`` in the words of llguidance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLParserLimits
from llguidance.gbnf_to_lark import any_to_lark

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# The defaults of llguidance, except for the memory: a state of the lexer takes 1 to 2 kB.
LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
# One space, or a line break with an indentation. The default, any white space, lets a model write blanks without end.
_SPACED: JsonCompileOptions = {"whitespace_pattern": r" |\n[ \t]{0,40}"}
_COMPACT: JsonCompileOptions = {"whitespace_flexible": False}


def grammar_text(form: Mapping[str, Any]) -> str:
    """Return the grammar of the fields of ``StructuredOutputs``.

    Raises any exception for one that cannot be read.
    """
    options = _COMPACT if form["disable_any_whitespace"] else _SPACED
    if form["json"] is not None:
        return LLMatcher.grammar_from_json_schema(form["json"], overrides=options)
    if form["json_object"]:
        return LLMatcher.grammar_from_json_schema('{"type": "object"}', overrides=options)
    if form["regex"] is not None:
        return LLMatcher.grammar_from_regex(form["regex"])
    if form["grammar"] is not None:
        return LLMatcher.grammar_from_lark(any_to_lark(form["grammar"]))
    texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in form["choice"])
    return LLMatcher.grammar_from_lark(f"start: {texts}")


def grammar_fault(matcher: LLMatcher) -> str:
    """Return the first line of what is wrong with a grammar; empty if nothing is."""
    return matcher.get_error().strip().split("\n")[0] if matcher.is_error() else ""
