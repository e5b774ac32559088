"""``repaired``: a request without the field that its error names."""

from __future__ import annotations

import re
from typing import Any

# Of the fields that requests must have: values that can run.
PLAIN: dict[str, Any] = {
    "model": "demo",
    "messages": [{"role": "user", "content": "Hi"}],
    "max_tokens": 4,
    "prompt": "def f(a):",
    "inputs": "def f(a):",
    "continuations": ["a"],
    "choices": ["a", "b"],
    "tokens": [5],
    "seconds": 1,
    "name": "qa",
    "variables": {"question": "a", "context": "b"},
}


def repaired(body: Any, answer: dict[str, Any]) -> Any | None:
    """Return the body without a field that the error names, or with a plain value of one that it must have.

    ``answer``: the error in the form of any surface. Returns None if the error names no field of the body.
    """
    if not isinstance(body, dict):
        return None
    error = answer["error"]
    message = error if isinstance(error, str) else error["message"]
    param = "" if isinstance(error, str) else error.get("param") or ""
    words = re.findall(r"[A-Za-z_0-9]+", f"{param} {message}")
    for name in words:
        if name in body and body[name] != PLAIN.get(name):
            if name == "parameters" and isinstance(body[name], dict) and (found := _without(body[name], words)) is not None:
                return {**body, name: found}
            others = {each: value for each, value in body.items() if each != name}
            return others | ({name: PLAIN[name]} if name in PLAIN else {})
    parameters = body.get("parameters")
    if isinstance(parameters, dict) and (found := _without(parameters, words)) is not None:
        return {**body, "parameters": found}
    return None


def _without(parameters: dict[str, Any], words: list[str]) -> dict[str, Any] | None:
    """Return the parameters without the first that a word names."""
    name = next((word for word in words if word in parameters), None)
    return None if name is None else {each: value for each, value in parameters.items() if each != name}
