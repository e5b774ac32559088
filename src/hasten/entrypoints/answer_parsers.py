"""``answer_parsers``: how a model writes tool calls and thoughts."""

from __future__ import annotations

from hasten.core.engine_options import EngineOptions
from hasten.core.thought_marks import ThoughtMarks
from hasten.text.answers.choose_parsers import ParserChoices, choose_parsers
from hasten.text.answers.families import reasoning_syntax
from hasten.text.tokenizer import TextTokenizer


def answer_parsers(options: EngineOptions, tokenizer: TextTokenizer | None, *, has_tools: bool) -> ParserChoices:
    """Return the parsers that the options name, or those of the chat template.

    Raises ``InvalidOption`` for an unknown name.
    """
    source = None if tokenizer is None else tokenizer.chat_template_source(has_tools=has_tools)
    return choose_parsers(source, options.tool_call_parser, options.reasoning_parser)


def thought_marks(options: EngineOptions, tokenizer: TextTokenizer | None) -> ThoughtMarks | None:
    """Return the marks of a model's thoughts; None for a model without."""
    name = answer_parsers(options, tokenizer, has_tools=False).reasoning.name
    return None if name is None else reasoning_syntax(name).marks
