"""``RequestBody``: the base of OpenAI's request schemas, in which some fields are refused."""

from __future__ import annotations

from hasten.serving.api_error import invalid
from hasten.serving.openai.refused_fields import why_refused
from hasten.serving.strict_body import StrictBody


class RequestBody(StrictBody):
    @classmethod
    def check_unknown(cls, name: str) -> None:
        if why := why_refused(name):
            raise invalid(f"{name} is not supported: {why}", param=name)


class BodyPart(StrictBody):
    """An object within a body."""
