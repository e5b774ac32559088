"""``read_body``: the body of a request as an object of its schema."""

from __future__ import annotations

import json
import math
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from hasten.serving.api_error import ApiError, invalid
from hasten.serving.server_state import state_of

T = TypeVar("T", bound=BaseModel)


async def read_body(request: Request, schema: type[T]) -> T:
    """Return the checked body.

    Null fields count as absent. Raises ``ApiError`` that names the field at fault.
    """
    found = parse_json(await request.body(), state_of(request).options.max_json_depth)
    if not isinstance(found, dict):
        raise invalid(f"the body is not a JSON object but {type(found).__name__}")
    try:
        return schema.model_validate({name: value for name, value in found.items() if value is not None})
    except ValidationError as error:
        raise _as_api_error(error) from None


def parse_json(text: bytes, max_depth: int) -> Any:
    """Return the value of a JSON text.

    Raises ``ApiError`` for other texts, deep nesting, NaN and infinity.
    """
    if (depth := json_depth(text)) > max_depth:
        raise invalid(f"the JSON is nested {depth} levels deep; allowed: up to {max_depth}")
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite_float, parse_int=_bounded_int)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not JSON: {error}") from None


def json_depth(text: bytes) -> int:
    """Return how deep arrays and objects are nested, from their brackets outside of strings."""
    depth = deepest = 0
    in_string = is_escaped = False
    for byte in text:
        if in_string:
            if is_escaped:
                is_escaped = False
            elif byte == 0x5C:
                is_escaped = True
            elif byte == 0x22:
                in_string = False
        elif byte == 0x22:
            in_string = True
        elif byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _bounded_int(text: str) -> int:
    if len(text) > 40:
        raise ValueError("a number is too large")
    return int(text)


def _as_api_error(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = ".".join(map(str, first["loc"]))
    return invalid(f"{path or 'the body'}: {first['msg']}", param=path or None)
