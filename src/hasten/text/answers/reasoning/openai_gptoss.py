"""gpt-oss: thoughts stand in the channel ``analysis``.

The tool parser ``openai`` reads them with the calls.
"""

from __future__ import annotations

from hasten.text.answers.syntax import ReasoningSyntax

SYNTAX = ReasoningSyntax(
    "<|channel|>analysis<|message|>",
    "<|end|>",
    tool_syntax="openai",
    headers=("<|channel|>final<|message|>", "<|channel|>commentary"),
    before_header="<|start|>assistant",
)
