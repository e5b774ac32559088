"""``/score`` and ``/choose``: log-probabilities of continuations, and the most likely one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError
from starlette.requests import Request
from starlette.responses import JSONResponse

from hasten.core.output import ScoreOutput
from hasten.entrypoints.scoring import Continuation
from hasten.serving.api_error import invalid
from hasten.serving.call import open_call
from hasten.serving.event_stream import until_disconnect
from hasten.serving.finite_logprob import finite_logprob
from hasten.serving.json_body import read_body
from hasten.serving.native.request_body import MAX_TOKEN_IDS, ModelRequestBody, Salt, Text, TokenId, as_prompt
from hasten.serving.openapi_body import openapi_body

router = APIRouter()
_Tokens = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_TOKEN_IDS)]
_Texts = Annotated[list[Annotated[str, Field(min_length=1)] | _Tokens], Field(min_length=1)]
_OF_CROSS_ENCODERS = ("text_1", "text_2", "queries", "documents", "items", "data_1", "data_2")  # vLLM's fields of /score


class ScoreRequest(ModelRequestBody):
    prompt: Text
    continuations: _Texts = Field(
        description="Texts or token ids after the prompt, as many as the server option max_prompts permits."
    )
    cache_salt: Salt = ""

    @model_validator(mode="before")
    @classmethod
    def _refuse_pairs(cls, values: Any) -> Any:
        if found := [name for name in _OF_CROSS_ENCODERS if isinstance(values, dict) and name in values]:
            raise PydanticCustomError(
                "cross_encoder",
                "{name} is a field of cross-encoders, which compare two texts; this route returns the log-probabilities of "
                "continuations after a prompt, and takes prompt and continuations",
                {"name": found[0]},
            )
        return values


class ChooseRequest(ModelRequestBody):
    prompt: Text
    choices: _Texts = Field(description="Texts or token ids after the prompt, as many as the server option max_prompts permits.")
    normalize: Literal["mean", "sum"] = Field(default="mean", description="Compare log-probabilities per token, or their sums.")
    cache_salt: Salt = ""


class Score(BaseModel):
    """A log-probability of -9999 stands for minus infinity."""

    text: str | None = Field(description="The continuation; null if token ids were given.")
    token_ids: list[int]
    logprobs: list[float] = Field(description="Natural logarithms, one for each token.")
    total: float
    mean: float


class ScoreResponse(BaseModel):
    model: str
    scores: list[Score] = Field(description="In the order of the continuations.")


class ChooseResponse(BaseModel):
    model: str
    index: int = Field(description="The most likely choice.")
    text: str | None
    probabilities: list[float] = Field(description="Of each choice, relative to the others; they add up to 1.")
    scores: list[Score]


@router.post("/v1/score", response_model=ScoreResponse, openapi_extra=openapi_body(ScoreRequest))
@router.post("/score", response_model=ScoreResponse, openapi_extra=openapi_body(ScoreRequest))
async def score(request: Request) -> JSONResponse:
    """Return the log-probabilities of continuations after a prompt.

    vLLM has a route of this name for cross-encoders, which compare ``text_1`` with ``text_2``. This one is for language models, and
    refuses those fields.
    """
    body = await read_body(request, ScoreRequest)
    async with open_call(request, body.model) as call:
        given = _continuations(body.continuations, "continuations", call.options.max_prompts)
        salt = call.caller.cache_salt(body.cache_salt)
        scores = await until_disconnect(request, call.llm.score(as_prompt(body.prompt), given, cache_salt=salt))
        return JSONResponse({"model": call.model.name, "scores": list(map(_write, scores))})


@router.post("/v1/choose", response_model=ChooseResponse, openapi_extra=openapi_body(ChooseRequest))
@router.post("/choose", response_model=ChooseResponse, openapi_extra=openapi_body(ChooseRequest))
async def choose(request: Request) -> JSONResponse:
    """Return the most likely of some choices after a prompt, with the probabilities of all."""
    body = await read_body(request, ChooseRequest)
    async with open_call(request, body.model) as call:
        given = _continuations(body.choices, "choices", call.options.max_prompts)
        salt = call.caller.cache_salt(body.cache_salt)
        work = call.llm.choose(as_prompt(body.prompt), given, normalize=body.normalize, cache_salt=salt)
        best = await until_disconnect(request, work)
        answer = {
            "model": call.model.name,
            "index": best.index,
            "text": best.text,
            "probabilities": list(best.probabilities),
            "scores": list(map(_write, best.scores)),
        }
        return JSONResponse(answer)


def _continuations(texts: list[str | list[int]], name: str, limit: int) -> list[Continuation]:
    if len(texts) > limit:
        raise invalid(f"there are {len(texts)} {name}; allowed: up to {limit} (the server option max_prompts)", param=name)
    return [text if isinstance(text, str) else {"token_ids": text} for text in texts]


def _write(score: ScoreOutput) -> dict[str, Any]:
    return {
        "text": score.text,
        "token_ids": list(score.token_ids),
        "logprobs": list(map(finite_logprob, score.logprobs)),
        "total": finite_logprob(score.total),
        "mean": finite_logprob(score.mean),
    }
