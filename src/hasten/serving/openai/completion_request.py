"""``CompletionRequest``: the body of ``POST /v1/completions``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, PlainValidator, WithJsonSchema

from hasten.serving.api_error import invalid
from hasten.serving.openai.named_template import DESCRIPTION, NamedTemplate, check_one_of, one_of
from hasten.serving.openai.sampling import check_num_logprobs, check_sampling
from hasten.serving.openai.sampling_fields import SamplingFields
from hasten.serving.server_options import ServerOptions

Prompt = str | list[int]
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_TEXT = {"type": "string"}
_SCHEMA = {"anyOf": [_TEXT, _IDS, *({"type": "array", "items": each, "minItems": 1} for each in (_TEXT, _IDS))]}


def _read_prompts(value: Any) -> list[Prompt]:
    """Return the prompts of one, or of a list of them. Raises ``ApiError``."""
    if isinstance(value, str):
        return [value]
    kinds = set(map(type, value)) if isinstance(value, list) else set()
    if kinds == {int}:
        return [value]
    if kinds == {str} or (kinds == {list} and all(set(map(type, each)) == {int} for each in value)):
        return list(value)
    raise invalid("prompt is neither a text, a list of token ids, nor a list of texts or of such lists", param="prompt")


class CompletionRequest(SamplingFields):
    model_config = ConfigDict(json_schema_extra=one_of("prompt"))

    prompt: Annotated[list[Prompt], PlainValidator(_read_prompts), WithJsonSchema(_SCHEMA)] = Field(default_factory=list)
    prompt_template: NamedTemplate | None = Field(None, description=f"{DESCRIPTION} prompt.")
    echo: bool = Field(False, description="The text begins with the prompt, and logprobs with those of the prompt.")
    logprobs: int | None = Field(None, description="Number of top tokens to report per token.")
    best_of: int | None = Field(None, description="1 or n: all answers are returned.")
    add_special_tokens: bool = Field(True, description="Texts are encoded with the tokens that the tokenizer puts around them.")

    def check(self, options: ServerOptions) -> int:
        """Return how many sequences it takes. Raises ``ApiError``."""
        num_per_prompt = check_sampling(self, options)
        check_one_of("prompt", bool(self.prompt), self.prompt_template)
        if len(self.prompt) > options.max_prompts:
            message = f"the request has {len(self.prompt)} prompts; allowed: up to {options.max_prompts}"
            raise invalid(message, param="prompt")
        if self.best_of not in (None, 1, self.n):
            raise invalid(f"best_of={self.best_of} is not supported; allowed: 1 or n={self.n}", param="best_of")
        if self.logprobs is not None:
            check_num_logprobs(self.logprobs, "logprobs")
        if self.max_tokens == 0 and not self.echo:
            raise invalid("max_tokens=0 needs echo: true, because there is no other text to return", param="max_tokens")
        return num_per_prompt * max(1, len(self.prompt))

    async def prompts(self) -> list[Prompt]:
        """Return the prompts, or the one that the template gives. Raises ``ApiError``."""
        return self.prompt if self.prompt_template is None else [await self.prompt_template.prompt()]

    @property
    def is_score_only(self) -> bool:
        return self.max_tokens == 0

    @property
    def num_prompt_logprobs(self) -> int | None:
        """Top tokens to report per prompt token; None: no log-probabilities of prompts."""
        return self.logprobs if self.prompt_logprobs is None and self.echo else self.prompt_logprobs
