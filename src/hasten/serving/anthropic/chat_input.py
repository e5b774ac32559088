"""``ChatInput``: a conversation as OpenAI's messages and tools, and variables of the chat template.

Consecutive messages of one role are one turn. A result of a tool that failed begins with "Error: ", because chat templates have no
place for the flag. A thought goes to the template as ``reasoning_content``. ``thinking`` sets ``enable_thinking`` where the
template reads it, and a request without it does not think.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hasten.serving.anthropic.messages_request import (
    Block,
    Conversation,
    Message,
    TextBlock,
    ThinkingBlock,
    Tool,
    ToolChoiceAny,
    ToolChoiceNone,
    ToolChoiceTool,
    ToolResultBlock,
    ToolUseBlock,
)
from hasten.serving.api_error import invalid

CALL_PREFIX = "toolu_"  # of the ids of calls outside; templates of some models take no longer ids than the engine makes
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}


@dataclass(frozen=True, slots=True)
class ChatInput:
    """Arguments of ``AsyncLLM.prepare_chat``."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    tool_choice: str | dict[str, Any]
    template: dict[str, Any] = field(default_factory=dict)


def chat_input(body: Conversation, template_source: str) -> ChatInput:
    """Return the arguments for a conversation. Raises ``ApiError``.

    ``template_source``: the text of the chat template.
    """
    template: dict[str, Any] = {}
    if variables := _template_variables(body, template_source):
        template["chat_template_kwargs"] = variables
    if body.messages[-1].role == "assistant":
        _check_prefill(body.messages[-1])
        template |= {"continue_final_message": True, "add_generation_prompt": False}
    return ChatInput(_messages(body), [_tool(tool) for tool in body.tools] or None, _tool_choice(body), template)


def _template_variables(body: Conversation, source: str) -> dict[str, Any]:
    variables: dict[str, Any] = {}
    if "enable_thinking" in source:
        variables["enable_thinking"] = body.thinking is not None and body.thinking.type != "disabled"
    effort = None if body.output_config is None else body.output_config.effort
    if effort is not None and "reasoning_effort" in source:
        variables["reasoning_effort"] = _EFFORTS[effort]
    elif effort not in (None, "high"):
        message = f"output_config.effort: the chat template of this model reads no effort; got {effort!r}, allowed: 'high'"
        raise invalid(message, param="output_config.effort")
    return variables


def _check_prefill(message: Message) -> None:
    """Raise ``ApiError`` if the answer cannot continue the last message."""
    last = message.content[-1] if message.content else None
    if not isinstance(last, TextBlock):
        raise invalid("the final assistant message does not end in text, so an answer cannot continue it", param="messages")
    if last.text != last.text.rstrip():
        raise invalid("the final assistant content cannot end with trailing whitespace", param="messages")


def _tool_choice(body: Conversation) -> str | dict[str, Any]:
    choice = body.tool_choice
    if isinstance(choice, ToolChoiceTool):
        return {"type": "function", "function": {"name": choice.name}}
    if isinstance(choice, ToolChoiceAny):
        if choice.disable_parallel_tool_use and len(body.tools) == 1:  # the grammar of a named tool ends after one call
            return {"type": "function", "function": {"name": body.tools[0].name}}
        return "required"
    return "none" if isinstance(choice, ToolChoiceNone) else "auto"


def _tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


def _messages(body: Conversation) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if system := [block for block in body.system if block.text]:
        messages.append({"role": "system", "content": _content(system)})
    names: dict[str, str] = {}  # of the called tools, by the calls' ids
    for role, turn in itertools.groupby(body.messages, lambda message: message.role):
        blocks = [block for message in turn for block in message.content]
        if role == "assistant":
            names |= {block.id: block.name for block in blocks if isinstance(block, ToolUseBlock)}
            messages.append(_assistant_message(blocks))
        else:
            messages += _user_messages(blocks, names)
    return messages


def _user_messages(blocks: Sequence[Block], names: dict[str, str]) -> list[dict[str, Any]]:
    """Return results of tools and texts, in their order."""
    messages: list[dict[str, Any]] = []
    for is_text, run in itertools.groupby(blocks, lambda block: isinstance(block, TextBlock)):
        if is_text:
            messages.append({"role": "user", "content": _content([block for block in run if isinstance(block, TextBlock)])})
        else:
            messages += [_tool_message(block, names) for block in run if isinstance(block, ToolResultBlock)]
    return messages


def _tool_message(block: ToolResultBlock, names: dict[str, str]) -> dict[str, Any]:
    text = "\n".join(part.text for part in block.content or ())
    message = {
        "role": "tool",
        "tool_call_id": block.tool_use_id.removeprefix(CALL_PREFIX),
        "content": f"Error: {text}" if block.is_error else text,
    }
    if name := names.get(block.tool_use_id):
        message["name"] = name
    return message


def _assistant_message(blocks: Sequence[Block]) -> dict[str, Any]:
    texts = [block for block in blocks if isinstance(block, TextBlock)]
    message: dict[str, Any] = {"role": "assistant", "content": _content(texts) if texts else ""}
    if thoughts := [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls := [_call(block) for block in blocks if isinstance(block, ToolUseBlock)]:
        message["tool_calls"] = calls
    return message


def _call(block: ToolUseBlock) -> dict[str, Any]:
    arguments = json.dumps(block.input, ensure_ascii=False)
    function = {"name": block.name, "arguments": arguments}
    return {"id": block.id.removeprefix(CALL_PREFIX), "type": "function", "function": function}


def _content(blocks: Sequence[TextBlock]) -> str | list[dict[str, Any]]:
    """Return one text as it is, and several as parts, which the template's form joins."""
    if len(blocks) == 1:
        return blocks[0].text
    return [{"type": "text", "text": block.text} for block in blocks]
