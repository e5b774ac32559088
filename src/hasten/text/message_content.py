"""``ContentForms``: gives messages' contents the form that a chat template reads, text or parts.

Templates of text models print ``message.content``. Templates of multimodal models loop over ``[{"type": "text", "text": ...}]``.
A list given to the first would reach the model as the text of a Python list; a text given to the second would vanish. What a
template reads is found by rendering probes, once per role.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hasten.core.errors import CheckpointError, InvalidRequest, show
from hasten.text.template_process import TemplateExceedsLimits

Message = Mapping[str, Any]
_PROBE = "needle"
_WORDS_ONLY = ("system", "developer", "user", "assistant")  # other roles may have structured contents: results of tools
_MAX_ROLES = 32  # that are remembered; a client may send any
_MAX_ROLE = 64  # characters of a role that is remembered by its name; longer ones count as one role
_CALL = {"id": "call12345", "type": "function", "function": {"name": "f", "arguments": {}}}


# Renders messages. Raises ``InvalidRequest`` where the template refuses them or exceeds a limit.
Render = Callable[[Sequence[Message]], str]


class ContentForms:
    """Which forms one template reads, by role."""

    def __init__(self) -> None:
        self._reads: dict[tuple[str, bool], bool] = {}  # by role, and whether the content is a list of parts

    def normalize(self, messages: Sequence[Message], render: Render) -> list[dict[str, Any]]:
        """Return the messages with contents that the template reads.

        Texts of several parts are joined by line breaks where the template reads text only, as in vLLM. Raises
        ``InvalidRequest`` for parts that are not text, for contents that are neither text nor parts, and if the template exceeds
        a limit.
        """
        return [self._normalized(message, render) for message in messages]

    def _normalized(self, message: Message, render: Render) -> dict[str, Any]:
        role, content = str(message.get("role"))[:_MAX_ROLE], message.get("content")
        if isinstance(content, str):
            if not self._reads_form(role, render, as_parts=False) and self._reads_form(role, render, as_parts=True):
                return {**message, "content": _parts(content)}
        elif isinstance(content, list) and (role in _WORDS_ONLY or any(_is_part(part) for part in content)):
            texts = [_text(part) for part in content]
            if not self._reads_form(role, render, as_parts=True):
                return {**message, "content": "\n".join(texts)}
        elif content is not None and role in _WORDS_ONLY:
            raise InvalidRequest(
                f"the content of a {role} message is not text", got=type(content).__name__, allowed="text or a list of text parts"
            )
        return dict(message)

    def _reads_form(self, role: str, render: Render, *, as_parts: bool) -> bool:
        found = self._reads.get((role, as_parts))
        if found is None:
            found = self._probe(role, as_parts, render)
            if len(self._reads) >= 2 * _MAX_ROLES:
                self._reads.clear()
            self._reads[role, as_parts] = found
        return found

    def _probe(self, role: str, as_parts: bool, render: Render) -> bool:
        """Return whether a message's text appears in the rendered text, and not as the text of a list."""
        messages: list[dict[str, Any]] = {
            "user": [],
            "system": [],
            "developer": [],
            "assistant": [{"role": "user", "content": "a"}],
        }.get(role, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": [_CALL]}])
        messages.append({"role": role, "content": _PROBE, "name": "f", "tool_call_id": "call12345"})
        if role in ("system", "developer"):
            messages.append({"role": "user", "content": "a"})
        if as_parts:
            messages = [{**message, "content": _parts(message["content"])} for message in messages]
        try:
            text = render(messages)
        except TemplateExceedsLimits:  # says nothing about the template: the machine may be busy
            raise
        except (InvalidRequest, CheckpointError):
            return False
        return _PROBE in text and not any(f"{quote}text{quote}: {quote}{_PROBE}" in text for quote in "'\"")


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _is_part(value: object) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("type"), str)


def _text(part: object) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(text, str):
        raise InvalidRequest(
            "a message has a content part that is not text",
            got=show(kind) if kind != "text" else f"'text' without a text: {show(text)}",
            allowed='{"type": "text", "text": ...}',
        )
    return text
