"""``HarmlessFields``: fields that are accepted and change nothing, each with the reason."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from hasten.serving.openai.request_body import RequestBody


class HarmlessFields(RequestBody):
    """Values that could alter an output are not among the allowed ones."""

    user: str | None = Field(None, description="A name for the client's own statistics. Ignored.")
    safety_identifier: str | None = Field(None, description="As user. Ignored.")
    metadata: dict[str, Any] | None = Field(None, description="Labels of stored answers; answers are not stored. Ignored.")
    store: Literal[False] = Field(False, description="Answers are not stored, so only false is allowed.")
    service_tier: Literal["auto", "default"] | None = Field(None, description="There is one tier.")
    prompt_cache_key: str | None = Field(None, description="A hint for routing between servers; prefixes are cached without it.")
    prompt_cache_retention: Literal["in_memory", "24h"] | None = Field(
        None, description="A hint on how long a prefix stays cached; no output depends on it."
    )
    prompt_cache_options: dict[str, Any] | None = Field(None, description="As prompt_cache_retention.")
    prediction: dict[str, Any] | None = Field(None, description="A hint that speeds decoding up; it changes no output.")
    verbosity: Literal["medium"] | None = Field(None, description="The default only: no template reads it.")
    modalities: list[Literal["text"]] | None = Field(None, description="Answers are text.")
    request_id: str | None = Field(None, description="A name for logs; the server makes its own ids.")
    session_id: str | None = Field(None, description="A hint for routing between servers.")
    stream_interval: int | None = Field(None, description="A hint to send fewer, larger chunks; each token is sent when it comes.")
    spaces_between_special_tokens: Literal[True] | None = Field(None, description="The default of vLLM; tokens decide the spaces.")
    return_mm_kwargs: bool | None = Field(None, description="Of vLLM's render routes only.")
    return_token_offsets: Literal[False] | None = Field(None, description="Of vLLM's render routes only.")
