"""``ChatTemplate``: the text of a conversation, as the checkpoint's chat template writes it.

The text equals that of ``apply_chat_template(tokenize=False)`` in transformers. Two things differ: limits hold
(``template_process``), and what the template would ignore is refused.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from hasten.core.errors import InvalidRequest, nearest, show
from hasten.text.message_content import ContentForms
from hasten.text.template_process import SECONDS, TemplateProcess
from hasten.text.tool_messages import CallForms, check_tool_results, read_tool_calls

MAX_DEPTH = 64  # of nested lists and objects in messages and tools
_FIXED_NAMES = frozenset({"messages", "tools", "chat_template"})
_OWN_NAMES = frozenset({"add_generation_prompt", "continue_final_message", "documents"})
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")  # names that clients use; templates read the first
_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatTemplate:
    """The chat template of a checkpoint, or its chat templates.

    ``templates``: the source, or sources by name, of which ``tool_use`` serves conversations with tools, else ``default``.
    ``special_tokens``: the texts that the template knows as ``bos_token`` and the like.
    """

    def __init__(self, templates: str | Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self._templates = {"default": templates} if isinstance(templates, str) else dict(templates)
        self._special_tokens = dict(special_tokens)
        self._process = TemplateProcess()
        self._names: dict[str, frozenset[str]] = {}  # by source: the variables that the template reads
        self._content_forms: dict[str, ContentForms] = {}  # by source
        self._call_forms: dict[str, CallForms] = {}  # by source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | str = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **variables: Any,
    ) -> str:
        """Return the text of a conversation.

        ``add_generation_prompt``: the text ends in the start of the assistant's turn; the default unless
        ``continue_final_message``, where the text ends inside the last message, or inside its field of that name.
        ``variables``, also as one mapping in ``chat_template_kwargs``, are the template's own.

        Raises ``InvalidRequest``, and ``CheckpointError`` if the checkpoint's template is not a template.
        """
        if chat_template_kwargs is not None:
            return self.render(
                messages,
                **_merged(
                    chat_template_kwargs,
                    variables
                    | {"tools": tools, "documents": documents, "add_generation_prompt": add_generation_prompt}
                    | ({"continue_final_message": continue_final_message} if continue_final_message else {}),
                ),
            )
        for name, value, kinds in (
            ("add_generation_prompt", add_generation_prompt, (bool, type(None))),
            ("continue_final_message", continue_final_message, (bool, str)),
        ):
            if not isinstance(value, kinds):
                allowed = "True or False" if str not in kinds else "True, False, or the name of a field"
                raise InvalidRequest(f"{name} has the wrong type", got=show(value), allowed=allowed)
        if add_generation_prompt is None:
            add_generation_prompt = not continue_final_message
        if continue_final_message and add_generation_prompt:
            raise InvalidRequest("continue_final_message does not go with add_generation_prompt", remedy="Pass one of them")
        source = self._choose(tools is not None)
        schemas, plain_documents = read_tools(tools), _plain(documents)
        self._check_names(source, variables, tools=schemas, documents=plain_documents)
        deadline = time.monotonic() + SECONDS
        chat = self._in_forms(_read_messages(messages), source, deadline)
        field = "content" if continue_final_message is True else continue_final_message
        ending = _tag_final_message(chat, field, source) if field else None
        given = {
            "messages": chat,
            "tools": schemas,
            "documents": plain_documents,
            "add_generation_prompt": bool(add_generation_prompt),
            **{name: _plain(value) for name, value in variables.items()},
        }
        text = self._rendered(source, given, deadline)
        return text if ending is None else _cut_at_tag(text, ending)

    def source(self, *, has_tools: bool) -> str:
        """Return the text of the template for conversations with or without tools. Raises ``InvalidRequest``."""
        return self._choose(has_tools)

    def close(self) -> None:
        """End the process that renders. A later call starts a new one."""
        self._process.close()

    def _in_forms(self, messages: list[dict[str, Any]], source: str, deadline: float) -> list[dict[str, Any]]:
        """Return the messages with contents and tool calls in the forms that the template reads."""
        unset = {"tools": None, "documents": None, "add_generation_prompt": False}

        def render(probes: Sequence[Mapping[str, Any]]) -> str:
            return self._rendered(source, {"messages": list(probes), **unset}, deadline)

        chat = self._content_forms.setdefault(source, ContentForms()).normalize(messages, render)
        return self._call_forms.setdefault(source, CallForms()).normalize(chat, source, render)

    def _rendered(self, source: str, variables: Mapping[str, Any], deadline: float) -> str:
        try:
            written = json.dumps(variables, ensure_ascii=False)
            written.encode()
            text = self._process.render(source, {**self._special_tokens, **variables}, len(source) + len(written), deadline)
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                "the messages are not Unicode text",
                got=show(error.object[error.start : error.end]),
                remedy="Half of a surrogate pair was cut off",
            ) from error
        except ValueError as error:  # a whole number of thousands of digits
            raise InvalidRequest("the messages cannot be written as JSON", got=str(error)) from error
        return text

    def _choose(self, has_tools: bool) -> str:
        name = "tool_use" if has_tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise InvalidRequest(
                "this checkpoint has several chat templates and none is the default",
                got=", ".join(sorted(self._templates)),
                remedy="Name one of them default in tokenizer_config.json",
            )
        return self._templates[name]

    def _check_names(self, source: str, variables: Mapping[str, Any], **listed: Any) -> None:
        """Raise ``InvalidRequest`` for variables that the template does not read or a request must not set."""
        used = [name for name, value in listed.items() if value]
        if not variables and not used:
            return
        if source not in self._names:
            self._names[source] = self._process.variable_names(source)
        names = self._names[source]
        unread = [name for name in used if name not in names]
        if unread:
            raise InvalidRequest(f"this checkpoint's chat template takes no {unread[0]}", remedy=f"Leave {unread[0]} out")
        allowed = (names - _FIXED_NAMES - self._special_tokens.keys()) | _OWN_NAMES
        for name in variables:
            if name not in allowed:
                raise InvalidRequest(
                    "the chat template has no such variable, or a request must not set it",
                    got=show(name),
                    remedy=nearest(name, allowed),
                )


def _merged(kwargs: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables of ``chat_template_kwargs`` with those that were passed beside it."""
    if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
        raise InvalidRequest("chat_template_kwargs is not a mapping from names", got=show(kwargs))
    given = {name: value for name, value in variables.items() if value is not None}
    both = sorted((kwargs.keys() & given.keys()) | (kwargs.keys() & {"tools", "messages", "chat_template_kwargs"}))
    if both:
        raise InvalidRequest(f"chat_template_kwargs cannot set {both[0]} here", remedy="Pass it beside chat_template_kwargs, once")
    return {**kwargs, **given}


def _read_messages(messages: object) -> list[dict[str, Any]]:
    """Return plain messages without empty fields, and with reasoning under the name that templates read."""
    remedy = 'Pass a list of {"role": ..., "content": ...}'
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InvalidRequest("these are no messages", got=show(messages), remedy=remedy)
    plain: list[dict[str, Any]] = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise InvalidRequest("a message is not a mapping", got=type(message).__name__, remedy=remedy)
        if message.get("tool_calls"):
            message = {**message, "tool_calls": read_tool_calls(message)}
        # Clients send null for what they leave out; templates would print it as None.
        fields = {name: value for name, value in _plain(message).items() if value is not None}
        reasoning = next((fields[name] for name in _REASONING_FIELDS if name in fields), None)
        if reasoning is not None:
            fields = {"thinking": reasoning, **fields, "reasoning_content": reasoning}
        plain.append(fields)
    check_tool_results(plain)
    return plain


def read_tools(tools: object) -> list[Any] | None:
    """Return the JSON schemas of tools, which are schemas or Python functions."""
    if tools is None:
        return None
    allowed = "a list of JSON schemas, or of functions with type hints and a docstring"
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise InvalidRequest("tools are not a list", got=type(tools).__name__, allowed=allowed)
    schemas = []
    for tool in tools:
        if isinstance(tool, Mapping):
            schemas.append(_plain(tool))
            continue
        if not callable(tool):
            raise InvalidRequest("a tool is neither a schema nor a function", got=show(tool), allowed=allowed)
        from transformers.utils.chat_template_utils import get_json_schema

        try:
            schemas.append(_plain(get_json_schema(tool)))
        except Exception as error:  # it has errors of its own
            raise InvalidRequest("no schema can be made of a function", got=str(error), allowed=allowed) from error
    return schemas


def _plain(value: object, depth: int = 0) -> Any:
    """Return a copy of JSON values alone. Raises ``InvalidRequest``."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if depth == MAX_DEPTH:
        raise InvalidRequest("messages or tools are nested too deeply", allowed=f"up to {MAX_DEPTH} levels")
    for kind in (str, int, float):  # enumerations and the like: a template must not see their methods
        if isinstance(value, kind):
            return getattr(kind, f"__{kind.__name__}__")(value)
    if isinstance(value, Mapping):
        unnamed = [name for name in value if not isinstance(name, str)]
        if unnamed:
            raise InvalidRequest("messages and tools have names that are not text", got=show(unnamed[0]))
        return {str.__str__(name): _plain(item, depth + 1) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    raise InvalidRequest(
        "messages and tools hold a value that is not JSON",
        got=type(value).__name__,
        allowed="texts, numbers, booleans, None, lists and mappings",
    )


def _tag_final_message(chat: list[dict[str, Any]], field: str, source: str) -> str:
    """Put the tag at the end of the last message's field; return that text without the tag."""
    final = chat[-1].get(field) if isinstance(field, str) else None
    if final is None:
        raise InvalidRequest("the last message has nothing to continue", got=f"continue_final_message={show(field)}")
    copies = [name for name in _REASONING_FIELDS if chat[-1].get(name) == final] if field in _REASONING_FIELDS else [field]
    if not any(name in source for name in copies):
        raise InvalidRequest("the chat template does not read the field to continue", got=f"continue_final_message={show(field)}")
    if isinstance(final, list):
        parts = [part for part in final if isinstance(part, dict) and isinstance(part.get("text"), str)]
        if not parts:
            raise InvalidRequest("the last message has no text to continue")
        text: str = parts[-1]["text"]
        chat[-1][field] = [{**part, "text": text + _CONTINUE_TAG} if part is parts[-1] else part for part in final]
        return text
    if not isinstance(final, str):
        raise InvalidRequest("the last message has no text to continue", got=type(final).__name__)
    chat[-1] |= dict.fromkeys(copies, final + _CONTINUE_TAG)
    return final


def _cut_at_tag(text: str, ending: str) -> str:
    """Return the text up to the tag. Spaces before it go if the template has removed those after it."""
    tag = _CONTINUE_TAG.strip()
    if ending.strip() not in text or tag not in text:
        raise InvalidRequest("the chat template leaves out parts of the last message, which cannot be continued then")
    start = text.rindex(tag)
    return text[:start] if text.startswith(_CONTINUE_TAG, start) else text[:start].rstrip()
