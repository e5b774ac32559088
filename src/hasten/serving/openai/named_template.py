"""``NamedTemplate``: a prompt template of hasten that a request names instead of a prompt or messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import Field

from hasten.serving.api_error import ApiError, invalid
from hasten.serving.native.templates import Variables, render_messages, render_template
from hasten.serving.openai.request_body import BodyPart
from hasten.serving.openai.setting_limits import add_limits

DESCRIPTION = "A prompt template of GET /v1/templates with its variables, instead of"


class NamedTemplate(BodyPart):
    name: str
    variables: Variables = Field(default_factory=dict)

    async def prompt(self) -> str:
        """Return the rendered prompt. Raises ``ApiError`` that names the field."""
        try:
            return await render_template(self.name, self.variables)
        except ApiError as error:
            raise _named(error) from None

    async def messages(self) -> list[dict[str, Any]]:
        """Return the rendered conversation. Raises ``ApiError`` that names the field."""
        try:
            return list(await render_messages(self.name, self.variables))
        except ApiError as error:
            raise _named(error) from None


def check_one_of(name: str, has_own: bool, template: NamedTemplate | None) -> None:
    """Raise ``ApiError`` unless the request has either its own ``name`` or a template."""
    if has_own == (template is not None):
        raise invalid(f"the request needs {name} or prompt_template, and not both", param=name)


def one_of(name: str) -> Callable[[dict[str, Any]], None]:
    """Return what adds ``check_one_of`` and the limits of settings to the request's JSON schema."""

    def complete(schema: dict[str, Any]) -> None:
        add_limits(schema)
        schema["oneOf"] = [{"required": [name]}, {"required": ["prompt_template"]}]

    return complete


def _named(error: ApiError) -> ApiError:
    return ApiError(error.kind, error.message, param=f"prompt_template.{error.param}", code=error.code)
