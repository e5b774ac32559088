"""``MessagesRequest``: the body of ``POST /v1/messages``; ``Conversation``: that of ``count_tokens``.

Fields that this server does not know are refused with their name. Accepted without effect, because no output depends on them:
``metadata``, ``service_tier``, ``inference_geo``, ``user_profile_id``, ``workspace_id``, ``diagnostics`` and ``speed`` "standard".
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from hasten.serving.bounded_faults import BoundedFaults

_UNREAD = {
    "image": "images are not supported: the models of this server read text",
    "document": "documents are not supported: put their text into a text block",
    "search_result": "search results are not supported: put their text into a text block",
    "redacted_thinking": "redacted thoughts cannot be read by this server: leave them out",
}
_ROLE_OF = {"tool_result": "user", "tool_use": "assistant", "thinking": "assistant"}


def _refuse_unread(block: object) -> object:
    """Return the block. Raises an error with a reason for known blocks that no model of this server reads."""
    kind = block.get("type") if isinstance(block, dict) else None
    if isinstance(kind, str) and kind in _UNREAD:
        raise PydanticCustomError("unsupported_block", "{reason}", {"reason": _UNREAD[kind]})
    return block


def _refuse_server_tool(tool: object) -> object:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if kind not in (None, "custom"):
        raise PydanticCustomError("server_tool", "tools that run on the server are not supported; allowed: type custom")
    return tool


def _as_blocks(content: object) -> object:
    """Return a text as a list of one text block."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _text_or(blocks: Any) -> BeforeValidator:
    return BeforeValidator(_as_blocks, json_schema_input_type=str | blocks)


class _Part(BoundedFaults, BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class CacheControl(_Part):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None  # None: five minutes


class TextBlock(_Part):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: Annotated[list[Any], Field(max_length=0)] | None = None


ResultBlock = Annotated[TextBlock, BeforeValidator(_refuse_unread)]


class ToolResultBlock(_Part):
    type: Literal["tool_result"]
    tool_use_id: str
    content: Annotated[list[ResultBlock], _text_or(list[ResultBlock])] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


class DirectCaller(_Part):
    type: Literal["direct"]


class ToolUseBlock(_Part):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: DirectCaller | None = None
    toolset_name: None = None
    cache_control: CacheControl | None = None


class ThinkingBlock(_Part):
    """A thought of an earlier answer.

    Any signature is taken, so that conversations outlive a restart of the server.
    """

    type: Literal["thinking"]
    thinking: str
    signature: Annotated[str, Field(min_length=1)]


Block = Annotated[
    Annotated[TextBlock | ToolResultBlock | ToolUseBlock | ThinkingBlock, Field(discriminator="type")],
    BeforeValidator(_refuse_unread),
]


class Message(_Part):
    role: Literal["user", "assistant"]
    content: Annotated[list[Block], _text_or(list[Block])]

    @model_validator(mode="after")
    def _check_blocks(self) -> Message:
        for number, block in enumerate(self.content):
            role = _ROLE_OF.get(block.type, self.role)
            if role != self.role:
                place = {"number": number, "kind": block.type, "role": role}
                raise PydanticCustomError("role", "content.{number}: {kind} blocks stand in {role} messages only", place)
        if self.role == "user" and not any(not isinstance(block, TextBlock) or block.text for block in self.content):
            raise PydanticCustomError("empty", "content: user messages must have non-empty content")
        return self


class Tool(_Part):
    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    eager_input_streaming: bool | None = None
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    cache_control: CacheControl | None = None


class ToolChoiceAuto(_Part):
    type: Literal["auto"]
    disable_parallel_tool_use: bool = False


class ToolChoiceAny(_Part):
    type: Literal["any"]
    disable_parallel_tool_use: bool = False


class ToolChoiceTool(_Part):
    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool = False


class ToolChoiceNone(_Part):
    type: Literal["none"]


ToolChoice = Annotated[ToolChoiceAuto | ToolChoiceAny | ToolChoiceTool | ToolChoiceNone, Field(discriminator="type")]
Display = Literal["summarized", "omitted"]


class ThinkingEnabled(_Part):
    type: Literal["enabled"]
    budget_tokens: Annotated[int, Field(ge=1024, le=2**24)]
    display: Display | None = None


class ThinkingAdaptive(_Part):
    type: Literal["adaptive"]
    display: Display | None = None


class ThinkingDisabled(_Part):
    type: Literal["disabled"]


Thinking = Annotated[ThinkingEnabled | ThinkingAdaptive | ThinkingDisabled, Field(discriminator="type")]


class JsonFormat(_Part):
    type: Literal["json_schema"]
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(_Part):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class KeptThoughts(_Part):
    """An edit that changes nothing: thoughts go to the chat template, which keeps or drops them."""

    type: Literal["clear_thinking_20251015"]
    keep: Literal["all"]


class ContextManagement(_Part):
    edits: list[KeptThoughts] = []


class Metadata(_Part):
    user_id: str | None = None


class Conversation(_Part):
    """What decides the tokens of a prompt."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    system: Annotated[list[TextBlock], _text_or(list[TextBlock])] = []
    tools: list[Annotated[Tool, BeforeValidator(_refuse_server_tool)]] = []
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None  # of the last block that may be marked
    context_management: ContextManagement | None = None
    speed: Literal["standard"] | None = None
    user_profile_id: str | None = None
    workspace_id: str | None = None

    @property
    def takes_one_call(self) -> bool:
        """Whether an answer may call one tool at most."""
        return self.tool_choice is not None and getattr(self.tool_choice, "disable_parallel_tool_use", False)


class MessagesRequest(Conversation):
    """``max_tokens`` 0 computes the prompt, and pins its marked prefixes, without an answer."""

    max_tokens: Annotated[int, Field(ge=0, le=2**24)]
    stream: bool = False
    stop_sequences: list[str] = []
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**24)] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    inference_geo: str | None = None
    diagnostics: dict[str, Any] | None = None
