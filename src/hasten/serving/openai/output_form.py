"""``output_form``: the form of outputs that ``response_format`` or ``structured_outputs`` demands."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from hasten.core.errors import InvalidRequest
from hasten.core.structured_outputs import StructuredOutputs
from hasten.serving.api_error import invalid
from hasten.serving.openai.request_body import BodyPart


class JsonSchemaFormat(BodyPart):
    name: str
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    description: str | None = None  # for models that are told the schema; this one is bound by it
    strict: bool | None = None  # outputs always keep to the schema


class ResponseFormat(BodyPart):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputsFields(BodyPart):
    """The fields of ``hasten.core.structured_outputs``, which are vLLM's."""

    json_: str | bool | dict[str, Any] | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    disable_any_whitespace: bool | None = None


def output_form(response_format: ResponseFormat | None, structured: StructuredOutputsFields | None) -> StructuredOutputs | None:
    """Return the form of the outputs; None for any text. Raises ``ApiError`` that names the field."""
    values = None if structured is None else structured.model_dump(by_alias=True, exclude_none=True)
    if response_format is not None and response_format.type != "text":
        if values is not None:
            raise invalid("response_format and structured_outputs are both given; give one", param="response_format")
        return _read(_of_response_format(response_format), "response_format")
    return None if values is None else _read(values, "structured_outputs")


def _of_response_format(response_format: ResponseFormat) -> dict[str, Any]:
    if response_format.type == "json_object":
        return {"json_object": True}
    schema = response_format.json_schema and response_format.json_schema.schema_
    if schema is None:
        message = 'response_format of type json_schema has no schema; allowed: {"name": ..., "schema": {...}} in json_schema'
        raise invalid(message, param="response_format.json_schema")
    return {"json": schema}


def _read(values: dict[str, Any], field: str) -> StructuredOutputs:
    if isinstance(values.get("json"), bool):
        values["json"] = str(values["json"]).lower()  # a schema that allows all values, or none
    try:
        return StructuredOutputs(**values)
    except InvalidRequest as error:
        raise invalid(str(error), param=field) from None
