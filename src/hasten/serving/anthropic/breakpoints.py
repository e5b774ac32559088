"""``Breakpoint``: a block that ``cache_control`` marks, and the tokens of the prompt up to its end.

The end of a block is where the prompt first differs from that of the same conversation with a mark after the block. So it stands
where the chat template writes the block, whatever the template's order is. A block that the template leaves out has no end, and
marks nothing.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hasten.core.request import PrefixPin
from hasten.serving.anthropic.messages_request import (
    Block,
    CacheControl,
    Conversation,
    TextBlock,
    ThinkingBlock,
    Tool,
    ToolResultBlock,
    ToolUseBlock,
)
from hasten.serving.api_error import invalid

MAX_BREAKPOINTS = 4
SECONDS = {"5m": 300.0, "1h": 3600.0}
_MARK = "\uf8ff"  # a character of no language
_PROBE_TOOL = "probe_tool"
Marked = Tool | TextBlock | ToolUseBlock | ToolResultBlock
TokenIds = Sequence[int]
BlockT = TypeVar("BlockT", bound=Block)


@dataclass(frozen=True, slots=True)
class Breakpoint:
    number: int  # of its block, among all blocks of the conversation
    seconds: float


def read_breakpoints(body: Conversation) -> list[Breakpoint]:
    """Return the breakpoints in the order of tools, system and messages. Raises ``ApiError``."""
    found: dict[int, str] = {}
    last: int | None = None
    for number, block in enumerate(_blocks(body)):
        is_empty = isinstance(block, TextBlock) and not block.text
        if block.cache_control is not None:
            if is_empty:
                raise invalid("cache_control cannot be set for empty text blocks", param="cache_control")
            found[number] = _ttl(block.cache_control)
        last = last if is_empty else number
    if body.cache_control is not None and last is not None:
        ttl = _ttl(body.cache_control)
        if found.get(last, ttl) != ttl:
            message = f"cache_control: the last block is marked with ttl {found[last]!r}, and the request with {ttl!r}"
            raise invalid(message, param="cache_control")
        found[last] = ttl
    if len(found) > MAX_BREAKPOINTS:
        message = f"a maximum of {MAX_BREAKPOINTS} blocks with cache_control may be provided; got {len(found)}"
        raise invalid(message, param="cache_control")
    if any(before == "5m" and after == "1h" for before, after in itertools.pairwise(found.values())):
        message = "a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block, in the order of tools, "
        raise invalid(f"{message}system and messages", param="cache_control")
    return [Breakpoint(number, SECONDS[ttl]) for number, ttl in found.items()]


async def prefix_pins(
    body: Conversation,
    breakpoints: Sequence[Breakpoint],
    token_ids: TokenIds,
    encode: Callable[[Conversation], Awaitable[TokenIds]],
) -> list[PrefixPin]:
    """Return a pin for each breakpoint. ``token_ids``: the prompt, as ``encode`` gives it for ``body``."""
    marked = await asyncio.gather(*(encode(_with_mark(body, each.number)) for each in breakpoints))
    pins = []
    for each, others in zip(breakpoints, marked, strict=True):
        num_tokens = _common(token_ids, others)
        if num_tokens and list(others) != list(token_ids):
            pins.append(PrefixPin(num_tokens=num_tokens, seconds=each.seconds))
    return pins


def _blocks(body: Conversation) -> Iterator[Marked]:
    """Yield all blocks that may be marked: of tools, system and messages.

    The result of a tool follows its contents.
    """
    yield from body.tools
    yield from body.system
    for message in body.messages:
        for block in message.content:
            if isinstance(block, ToolResultBlock):
                yield from block.content or ()
            if not isinstance(block, ThinkingBlock):
                yield block


def _with_mark(body: Conversation, number: int) -> Conversation:
    """Return a copy that differs after the block of this number."""
    if number < len(body.tools) - 1:
        return body.model_copy(update={"tools": body.tools[: number + 1]})
    if number == len(body.tools) - 1:
        names = {tool.name for tool in body.tools}
        name = next(name for count in itertools.count() if (name := f"{_PROBE_TOOL}{count}") not in names)
        return body.model_copy(update={"tools": [*body.tools, Tool(name=name, input_schema={"type": "object"})]})
    marked = next(itertools.islice(_blocks(body), number, None))

    def copy(block: BlockT) -> BlockT:  # of what differs alone: a conversation may have tens of thousands of blocks
        if block is marked:
            return _marked(block)
        if isinstance(block, ToolResultBlock) and any(each is marked for each in block.content or ()):
            return block.model_copy(update={"content": list(map(copy, block.content or ()))})
        return block

    messages = [message.model_copy(update={"content": list(map(copy, message.content))}) for message in body.messages]
    return body.model_copy(update={"system": list(map(copy, body.system)), "messages": messages})


def _marked(block: BlockT) -> BlockT:
    """Return a copy with the mark at its end."""
    if isinstance(block, TextBlock):
        return block.model_copy(update={"text": block.text + _MARK})
    if isinstance(block, ToolUseBlock):
        return block.model_copy(update={"input": {**block.input, _MARK: _MARK}})
    assert isinstance(block, ToolResultBlock), "tools and thoughts are not marked here"
    *contents, last = block.content or [TextBlock(type="text", text="")]
    return block.model_copy(update={"content": [*contents, _marked(last)]})


def _ttl(cache_control: CacheControl) -> str:
    return cache_control.ttl or "5m"


def _common(first: TokenIds, second: TokenIds) -> int:
    """Return how many tokens both begin with."""
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
