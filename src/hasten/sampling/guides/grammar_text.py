"""The grammars of ``StructuredOutputs`` in the words of llguidance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLParserLimits
from llguidance.gbnf_to_lark import any_to_lark

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# Lower than the defaults of llguidance. A state of the lexer takes 1 to 2 kB; a string of up to 2,000 characters takes 15,000.
# A mask of 5,000 items of the parser takes 15 ms, and so does a token after a row of 1,000; the defaults, 50,000 and 2,000, take
# seconds and 90 ms. An object of 240 optional properties fits. A tenth of the default fuel bounds the expressions of a lexer, so
# that forced tokens take 60 ms at most; an ``enum`` of 7,000 texts fits.
LIMITS = LLParserLimits(
    max_lexer_states=50_000,
    step_max_items=5_000,
    max_items_in_row=1_000,
    initial_lexer_fuel=100_000,
    step_lexer_fuel=50_000,
    verbose_errors=False,
)
# One space, or a line break with an indentation. The default, any white space, lets a model write blanks without end.
_SPACED: JsonCompileOptions = {"whitespace_pattern": r" |\n[ \t]{0,40}"}
_COMPACT: JsonCompileOptions = {"whitespace_flexible": False}


def grammar_text(form: Mapping[str, Any]) -> str:
    """Return the grammar of the fields of ``StructuredOutputs``.

    Raises any exception for one that cannot be read.
    """
    options = _COMPACT if form["disable_any_whitespace"] else _SPACED
    if form["json"] is not None:
        schema = "{}" if form["json"].strip() == "true" else form["json"]  # only objects can have options
        return LLMatcher.grammar_from_json_schema(schema, overrides=options)
    if form["json_object"]:
        return LLMatcher.grammar_from_json_schema('{"type": "object"}', overrides=options)
    if form["regex"] is not None:
        return LLMatcher.grammar_from_regex(form["regex"])
    if form["grammar"] is not None:
        return LLMatcher.grammar_from_lark(any_to_lark(form["grammar"]))
    texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in form["choice"])
    return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {texts}")  # one terminal: a rule of each would exceed the limits


def grammar_fault(matcher: LLMatcher) -> str:
    """Return the first line of what is wrong with a grammar; empty if nothing is."""
    return matcher.get_error().strip().split("\n")[0] if matcher.is_error() else ""
