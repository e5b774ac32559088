"""``read_body``: the body of a request as an object of its schema."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from hasten.core.errors import clip, printable
from hasten.serving.api_error import ApiError, invalid
from hasten.serving.json_text import parse_json
from hasten.serving.server_state import state_of

T = TypeVar("T", bound=BaseModel)

MAX_FIELDS = 1000  # of a body; each unknown one is a fault of its own
MAX_INLINE = 64 << 10  # bytes of a body that is parsed in the event loop, in a few milliseconds at most


async def read_body(request: Request, schema: type[T]) -> T:
    """Return the checked body.

    Null fields count as absent. Raises ``ApiError`` that names the field at fault.
    """
    text, state = await request.body(), state_of(request)
    if len(text) <= MAX_INLINE:
        return parse_body(text, schema, state.options.max_json_depth)
    run = asyncio.get_running_loop().run_in_executor
    return await run(state.parser_thread, parse_body, text, schema, state.options.max_json_depth)


def parse_body(text: bytes, schema: type[T], max_depth: int) -> T:
    """Return the object that a text describes. Raises ``ApiError`` as ``read_body``."""
    found = parse_json(text, max_depth)
    if not isinstance(found, dict):
        raise invalid(f"the body is not a JSON object but {type(found).__name__}")
    if len(found) > MAX_FIELDS:
        raise invalid(f"the body has {len(found)} fields; allowed: up to {MAX_FIELDS}")
    try:
        return schema.model_validate({name: value for name, value in found.items() if value is not None})
    except ValidationError as error:
        raise _as_api_error(error, found) from None


def _as_api_error(error: ValidationError, body: Any) -> ApiError:
    """Return the error of the first field at fault.

    Where it has several types, the one that fits best tells the fault.
    """
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    paths = [_path(fault["loc"], body, is_missing=fault["type"] == "missing") for fault in faults]
    same = [number for number, path in enumerate(paths) if path[:1] == paths[0][:1]]
    best = max(same, key=lambda number: len(paths[number]))
    path = clip(printable(".".join(paths[best])), 200)
    return invalid(f"{path or 'the body'}: {clip(printable(faults[best]['msg']), 500)}", param=path or None)


def _path(location: tuple[int | str, ...], body: Any, *, is_missing: bool) -> list[str]:
    """Return the names and numbers on the way to a fault, without pydantic's names of types."""
    path: list[str] = []
    value = body
    for number, part in enumerate(location):
        is_kind = isinstance(value, dict) and part == value.get("type")  # of an object; Anthropic's errors name it, too
        is_within = (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int))
        if is_within and not is_kind:
            value = value[part]
        elif not is_kind and not (is_missing and number == len(location) - 1):
            continue
        path.append(str(part))
    return path
