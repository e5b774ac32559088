"""``StrictBody``: the base of request schemas: names are checked, and nothing is converted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from hasten.core.errors import nearest, printable, show
from hasten.serving.api_error import invalid
from hasten.serving.bounded_faults import BoundedFaults
from hasten.serving.openapi_body import with_null_fields


class StrictBody(BoundedFaults, BaseModel):
    """A schema whose unknown fields are errors that name the nearest known one.

    A field that is ignored could alter the answer. Null fields count as absent.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    @classmethod
    def check_unknown(cls, name: str) -> None:
        """Raise ``ApiError`` for a field that has an error of its own, and return for any other."""

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, found: Any) -> Any:
        if not isinstance(found, Mapping):
            return found
        given = {name: value for name, value in found.items() if value is not None}
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for name in given.keys() - known:
            cls.check_unknown(name)
            raise invalid(f"unknown field {show(name)}. {nearest(name, known)}.", param=printable(name)[:80])
        return given

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return with_null_fields(handler.resolve_ref_schema(handler(schema)))
