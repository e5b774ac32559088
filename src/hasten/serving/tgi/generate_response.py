"""What TGI's routes return, as the OpenAPI document describes it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class GenerateError(BaseModel):
    error: str
    error_type: str


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": GenerateError, "description": description}
    for status, description in {
        401: "No API key, or a wrong one",
        404: "No such model",
        413: "The body is too large",
        422: "The request cannot run",
        424: "The model failed on this request",
        429: "The queue is full",
        503: "The model loads, has ended or drains",
    }.items()
}
FinishReason = Literal["length", "eos_token", "stop_sequence"]


class Token(BaseModel):
    """The texts of all tokens that are not special join to the generated text."""

    id: int
    text: str
    logprob: float = Field(description="Natural logarithm, before any setting of sampling; -9999 stands for minus infinity.")
    special: bool


class PrefillToken(BaseModel):
    id: int
    text: str
    logprob: float | None = Field(description="Null for the first token.")


class Details(BaseModel):
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None = Field(description="Null for greedy decoding.")
    prefill: list[PrefillToken] = Field(description="Empty without decoder_input_details.")
    tokens: list[Token]
    top_tokens: list[list[Token]] | None = None


class GenerateResponse(BaseModel):
    generated_text: str
    details: Details | None = None


class StreamDetails(BaseModel):
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    input_length: int


class StreamFrame(BaseModel):
    """``generated_text`` and ``details`` are null until the last token."""

    index: int = Field(description="Number of the token, from 1.")
    token: Token
    top_tokens: list[Token] | None = None
    generated_text: str | None
    details: StreamDetails | None


class Info(BaseModel):
    model_id: str
    model_sha: str | None
    model_pipeline_tag: str
    max_concurrent_requests: int | None
    max_best_of: int
    max_input_tokens: int | None
    max_total_tokens: int | None
    max_client_batch_size: int
    router: str
    version: str
    sha: str | None
    docker_label: str | None
