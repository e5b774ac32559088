"""``RequestBody``: the base of all request schemas: names are checked, and nothing is converted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from hasten.core.errors import nearest, printable, show
from hasten.serving.api_error import invalid
from hasten.serving.bounded_faults import BoundedFaults
from hasten.serving.openai.refused_fields import why_refused
from hasten.serving.openapi_body import with_null_fields


class RequestBody(BoundedFaults, BaseModel):
    """A schema whose unknown fields are errors that name the nearest known one.

    Null fields count as absent.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    names_refused: ClassVar[bool] = True  # whether ``REFUSED`` applies: it does not to objects within a body

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, found: Any) -> Any:
        if not isinstance(found, Mapping):
            return found
        given = {name: value for name, value in found.items() if value is not None}
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for name in given.keys() - known:
            if cls.names_refused and (why := why_refused(name)):
                raise invalid(f"{name} is not supported: {why}", param=name)
            raise invalid(f"unknown field {show(name)}. {nearest(name, known)}.", param=printable(name)[:80])
        return given

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return with_null_fields(handler.resolve_ref_schema(handler(schema)))


class BodyPart(RequestBody):
    """An object within a body."""

    names_refused: ClassVar[bool] = False
