"""Arguments between tags, as one JSON object that grows while they are read.

The tags are like ``<parameter=NAME>text</parameter>``.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from hasten.core.errors import show
from hasten.text.answers.syntax import CallSink
from hasten.text.answers.text_reader import MalformedCall, Markers, Reading, TextReader
from hasten.text.answers.typed_value import argument_types, is_text, typed_json


class ParameterWriter:
    """Writes arguments to the open call, one after the other."""

    def __init__(self, sink: CallSink, tool_name: str) -> None:
        self._sink, self._tool = sink, sink.writer.tools.get(tool_name)
        self._names: set[str] = set()

    def read(
        self, reader: TextReader, name: str, closer: Markers, trim: Callable[[], TextTrim], is_json: bool | None = None
    ) -> Reading[str | None]:
        """Take the text of an argument and the marker after it, which is returned; None if the text ended.

        Text goes to the call while it is read; other types go when they are complete. ``is_json``: what the model says of the
        argument; None leaves it to the schema.
        """
        if name in self._names:
            raise MalformedCall(f"it has the argument {show(name)} twice")
        self._sink.arguments(("{" if not self._names else ", ") + json.dumps(name, ensure_ascii=False) + ": ")
        self._names.add(name)
        types, trimmed = argument_types(self._tool, name), trim()
        if is_json is not None:
            types = ("null", "boolean", "number", "object", "array") if is_json else ()
        if is_text(types):
            self._sink.arguments('"')
            marker = yield from reader.until(closer, lambda text: self._sink.arguments(escaped(trimmed.add(text))))
            self._sink.arguments('"')
            return marker
        parts: list[str] = []
        marker = yield from reader.until(closer, lambda text: parts.append(trimmed.add(text)))
        self._sink.arguments(typed_json("".join(parts), types))
        return marker

    def end(self) -> None:
        self._sink.arguments("}" if self._names else "{}")


class TextTrim:
    """Leaves out one line break at the start of a text and one at its end."""

    def __init__(self) -> None:
        self._is_start, self._waits = True, False

    def add(self, text: str) -> str:
        """Return the next part of the text, without a line break that may be its last character."""
        if self._is_start and text:
            self._is_start = False
            text = text.removeprefix("\n")
        if not text:
            return ""
        text = ("\n" if self._waits else "") + text
        self._waits = text.endswith("\n")
        return text.removesuffix("\n")


class NoTrim(TextTrim):
    """Leaves a text as it is."""

    def add(self, text: str) -> str:
        return text


def escaped(text: str) -> str:
    """Return a text as it stands between the quotes of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
