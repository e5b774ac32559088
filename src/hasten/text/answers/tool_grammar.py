"""``tool_grammar``: a grammar of tool calls in a family's syntax, as Lark text for llguidance.

The grammar is of the answer after the thought. Texts that are special tokens of the tokenizer stand in it by their ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from hasten.core.errors import InvalidRequest, nearest
from hasten.core.tool_definition import ToolDefinition
from hasten.text.answers.call_shape import CallShape
from hasten.text.answers.families import tool_syntax
from hasten.text.answers.grammar_rules import GrammarRules
from hasten.text.answers.parameter_grammar import ParameterGrammar
from hasten.text.answers.tools import openai

# As Python's json module and chat templates write JSON; without it a model may write white space for ever.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def tool_grammar(
    family: str,
    tools: Sequence[ToolDefinition],
    choice: str,
    *,
    special_token_ids: Mapping[str, int] | None = None,
    template: str = "",
) -> str:
    """Return a Lark grammar of answers.

    ``choice``: ``required``, one call or several; ``auto``, text that may go on to calls; or a tool's name, one call of it.
    ``special_token_ids``: the tokenizer's, by text. ``template``: the chat template, where a family has had several syntaxes.

    Raises ``InvalidRequest`` for a name that is none of the tools.
    """
    names = [tool.name for tool in tools]
    if choice not in ("auto", "required"):
        if choice not in names:
            raise InvalidRequest("tool_choice names none of the tools", got=choice, remedy=nearest(choice, names))
        tools = [tool for tool in tools if tool.name == choice]
    syntax = tool_syntax(family)
    shape = syntax.shape_for(template)
    rules = GrammarRules(special_token_ids or {})
    calls = _Calls(shape, tools, rules)
    if syntax.read_answer is not None:
        start = _channels(calls, rules, choice)
    elif choice == "auto":
        start = calls.after_text(syntax.starts)
    else:
        start = calls.sequence("", has_many=choice == "required")
    return rules.text(start)


class _Calls:
    """The rules of calls in one shape."""

    def __init__(self, shape: CallShape, tools: Sequence[ToolDefinition], rules: GrammarRules) -> None:
        self._shape, self._tools, self._rules = shape, tools, rules
        self._arguments = [self._add_arguments(tool, number) for number, tool in enumerate(tools)]

    def sequence(self, skipped: str, *, has_many: bool) -> str:
        """Return the expression of a call, or several, without the literal ``skipped`` at its start."""
        shape, literal = self._shape, self._rules.literal
        first = shape.first.removeprefix(skipped)
        before = shape.before if shape.first else shape.before.removeprefix(skipped)
        parts = [literal(first), self._one_of("call", before)]
        if has_many:
            parts.append(f"({literal(shape.separator)} {self._one_of('next_call', shape.before)})*")
        return " ".join([*parts, literal(shape.last)])

    def after_text(self, starts: tuple[str, ...]) -> str:
        """Return the expression of text, or of text and calls."""
        trigger = self._shape.trigger
        if trigger:
            head = self._rules.text_until(trigger)
            return f"{self._rules.free_text()} | {head} {self.sequence(trigger, has_many=True)}"
        # Nothing marks the calls, so text must not begin as they do.
        classes = "".join(re.escape(start) for start in starts)
        return f"/[^{classes}](.|\\n)*/? | {self.sequence('', has_many=True)}"

    def _one_of(self, name: str, before: str) -> str:
        calls = [
            f"{self._expand(before, tool.name)} {arguments} {self._rules.literal(self._shape.after)}"
            for tool, arguments in zip(self._tools, self._arguments, strict=True)
        ]
        return self._rules.add(name, " | ".join(calls))

    def _expand(self, text: str, tool_name: str) -> str:
        """Return the expression of a text with the places of names and numbers."""
        parts = text.replace("{name}", tool_name).split("{number}")
        return " /[0-9]{1,4}/ ".join(map(self._rules.literal, parts))

    def _add_arguments(self, tool: ToolDefinition, number: int) -> str:
        if self._shape.parameters is not None:
            return ParameterGrammar(tool, self._shape.parameters, self._rules, number).add()
        schema = {"type": "object", **tool.parameters, "x-guidance": _SPACING}
        return self._rules.add(f"arguments_{number}", "%json " + json.dumps(schema, ensure_ascii=False))


def _channels(calls: _Calls, rules: GrammarRules, choice: str) -> str:
    """Return the expression of gpt-oss' messages: thoughts, then calls or the final message."""
    literal = rules.literal
    kinds = [rules.literal(f"{openai.CHANNEL}{name}{openai.MESSAGE}") for name in ("analysis", "commentary")]
    next_message = literal(f"{openai.START}assistant")
    thought = rules.add("thought", f"({' | '.join(kinds)}) {rules.text_until(openai.END)} {next_message}")
    answer = calls.sequence("", has_many=False)
    if choice == "auto":
        answer = f"({answer} | {literal(f'{openai.CHANNEL}final{openai.MESSAGE}')} {rules.free_text()})"
    return f"{thought}* {answer}"
