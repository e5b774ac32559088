"""gpt-oss: thoughts stand in the channel ``analysis``.

The tool parser ``openai`` reads them with the calls.
"""

from __future__ import annotations

from hasten.text.answers.syntax import ReasoningSyntax

SYNTAX = ReasoningSyntax(
    "<|channel|>analysis<|message|>",
    "<|end|>",
    tool_syntax="openai",
    # Commentary is text to the user, or a call. An answer may follow the first two at once.
    headers=("<|channel|>final<|message|>", "<|channel|>commentary<|message|>", "<|channel|>commentary to"),
    before_header="<|start|>assistant",
)
