"""``event_json``: the data of a server-sent event, as one line of JSON."""

from __future__ import annotations

import json
from typing import Any

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def event_json(value: Any) -> str:
    """Return a value as JSON that is one line for every client.

    Lines of events end in CR or LF. Clients that read them with ``str.splitlines``, as ``httpx.iter_lines`` does, end them at three
    more characters, which JSON need not escape: a model that writes one could end its event and begin another.
    """
    text = _encode(value)
    if text.isascii():
        return text
    return text.replace("\x85", "\\u0085").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
