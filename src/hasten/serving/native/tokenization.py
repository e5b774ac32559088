"""``/tokenize``, ``/detokenize`` and ``/tokenizer_info``, with vLLM's fields."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema
from starlette.requests import Request
from starlette.responses import JSONResponse

from hasten.entrypoints.async_llm import AsyncLLM
from hasten.serving.api_error import invalid
from hasten.serving.call import Call, open_call
from hasten.serving.event_stream import until_disconnect
from hasten.serving.json_body import read_body
from hasten.serving.native.request_body import ModelName, ModelRequestBody, TokenIds
from hasten.serving.openai.messages import MESSAGES_SCHEMA, read_messages, with_known_roles
from hasten.serving.openapi_body import openapi_body
from hasten.text.tokenizer import TextTokenizer

router = APIRouter()
_TEMPLATE_FIELDS = ("add_generation_prompt", "continue_final_message", "chat_template_kwargs")
_CHAT_FIELDS = ("tools", "chat_template", *_TEMPLATE_FIELDS)
Messages = Annotated[list[dict[str, Any]], PlainValidator(read_messages), WithJsonSchema(MESSAGES_SCHEMA)]  # as chat reads them


class TokenizeRequest(ModelRequestBody):
    """A text in ``prompt``, or a conversation in ``messages``."""

    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = Field(
        default=None, description="Add the special tokens of a prompt, such as BOS. True for a prompt; false for messages."
    )
    return_token_strs: bool = Field(default=False, description="Return the tokens as the vocabulary writes them, too.")
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = Field(
        default=None, description="End with the start of the assistant's turn. True by default."
    )
    continue_final_message: bool | None = Field(default=None, description="Leave the last message open. False by default.")
    chat_template: str | None = Field(default=None, description="Refused: the model's own template is used.")
    chat_template_kwargs: dict[str, Any] | None = None


class TokenizeResponse(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class TokenizerInfoResponse(BaseModel):
    tokenizer_class: str
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None


class DetokenizeRequest(ModelRequestBody):
    tokens: TokenIds


class DetokenizeResponse(BaseModel):
    prompt: str


@router.post("/tokenize", response_model=TokenizeResponse, openapi_extra=openapi_body(TokenizeRequest))
async def tokenize(request: Request) -> JSONResponse:
    """Return the token ids of a prompt, as a completion would read it, or of a conversation.

    A prompt may be longer than the context.
    """
    body = await read_body(request, TokenizeRequest)
    async with open_call(request, body.model) as call:
        _check(body, call)
        tokens = await until_disconnect(request, _token_ids(body, call.llm))
        answer = {"count": len(tokens), "max_model_len": call.llm.max_model_len, "tokens": tokens}
        if body.return_token_strs:
            answer["token_strs"] = await asyncio.to_thread(tokenizer_of(call.llm).ids_to_tokens, tokens)
        return JSONResponse(answer)


@router.post("/detokenize", response_model=DetokenizeResponse, openapi_extra=openapi_body(DetokenizeRequest))
async def detokenize(request: Request) -> JSONResponse:
    """Return the text of up to ``max_model_len`` token ids. Special tokens are part of it."""
    body = await read_body(request, DetokenizeRequest)
    async with open_call(request, body.model) as call:
        facts, tokenizer = call.llm.describe(), tokenizer_of(call.llm)
        if len(body.tokens) > facts["max_model_len"]:  # decoding holds up the server's other requests
            raise invalid(f"tokens has {len(body.tokens)} token ids; allowed: up to {facts['max_model_len']}", param="tokens")
        if body.tokens and max(body.tokens) >= facts["vocab_size"]:
            message = f"tokens has {max(body.tokens)}, which is outside the vocabulary; allowed: 0 to {facts['vocab_size'] - 1}"
            raise invalid(message, param="tokens")
        return JSONResponse({"prompt": tokenizer.decode(body.tokens, skip_special_tokens=False)})


@router.get("/tokenizer_info", response_model=TokenizerInfoResponse)
async def tokenizer_info(request: Request, model: ModelName = None) -> JSONResponse:
    """Return the special tokens and the chat template of a model, as ``tokenizer_config.json`` does."""
    async with open_call(request, model) as call:
        tokenizer = tokenizer_of(call.llm)
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        answer = {"tokenizer_class": "PreTrainedTokenizerFast", **{name: tokenizer.special_tokens.get(name) for name in names}}
        return JSONResponse(answer | {"chat_template": tokenizer.chat_template_source(has_tools=False)})


def tokenizer_of(llm: AsyncLLM) -> TextTokenizer:
    """Return the model's tokenizer. Raises ``ApiError`` if it has none."""
    if llm.tokenizer is None:
        raise invalid("this model has no tokenizer, so it knows no texts; send token ids", code="no_tokenizer")
    return llm.tokenizer


def _check(body: TokenizeRequest, call: Call) -> None:
    if (body.prompt is None) == (body.messages is None):
        raise invalid("exactly one of prompt and messages is needed", param="prompt" if body.messages is None else "messages")
    if body.messages is None:
        if given := [name for name in _CHAT_FIELDS if getattr(body, name) is not None]:
            raise invalid(f"{given[0]} belongs to messages, and the request has a prompt", param=given[0])
        return
    if body.add_special_tokens:
        raise invalid("add_special_tokens does not go with messages: chat adds none to its template", param="add_special_tokens")
    if len(body.messages) > call.options.max_messages:
        raise invalid(f"there are {len(body.messages)} messages; allowed: up to {call.options.max_messages}", param="messages")
    if body.chat_template is not None:
        raise invalid("chat_template is not supported: the model's own template is used", param="chat_template")


async def _token_ids(body: TokenizeRequest, llm: AsyncLLM) -> list[int]:
    tokenizer = tokenizer_of(llm)
    if body.messages is None:
        assert body.prompt is not None
        with_special = body.add_special_tokens is not False
        return await asyncio.to_thread(tokenizer.encode, body.prompt, add_special_tokens=with_special)
    template = {name: value for name in _TEMPLATE_FIELDS if (value := getattr(body, name)) is not None}
    messages = with_known_roles(body.messages, tokenizer.chat_template_source(has_tools=bool(body.tools)))
    prepared = await llm.prepare_chat(messages, tools=body.tools, **template)
    return list(prepared.token_ids)
