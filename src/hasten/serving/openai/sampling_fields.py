"""``SamplingFields``: the fields of both bodies that decide how tokens are chosen."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema

from hasten.serving.openai.harmless_fields import HarmlessFields
from hasten.serving.openai.output_form import ResponseFormat, StructuredOutputsFields
from hasten.serving.openai.request_body import BodyPart
from hasten.serving.openai.setting_limits import add_limits


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stop = Annotated[
    list[str],
    BeforeValidator(_listed),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]

# A token id as a name of JSON. Others that ``int`` reads would let one id stand twice in an object.
TokenKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]


class StreamOptions(BodyPart):
    include_usage: bool = False  # a last chunk without choices has the usage
    continuous_usage_stats: bool = False  # each chunk has the usage so far
    include_obfuscation: bool = False  # accepted: padding that hides the sizes of tokens; none is added


class SamplingFields(HarmlessFields):
    """An absent field has the default of ``generation_config.json``, else of ``SamplingParams``."""

    model_config = ConfigDict(json_schema_extra=add_limits)

    model: str | None = Field(None, description="One of /v1/models; absent: the first.")
    stream: bool = False
    stream_options: StreamOptions | None = None

    n: int = Field(1, description="Answers of a prompt.")
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[TokenKey, float] | None = None
    seed: int | None = Field(None, description="-1: none.")
    stop: Stop | None = None
    max_tokens: int | None = None
    response_format: ResponseFormat | None = None

    # vLLM's
    top_k: int | None = Field(None, description="-1 and 0: all tokens.")
    min_p: float | None = None
    repetition_penalty: float | None = None
    length_penalty: float | None = Field(None, description="Of beam search only.")
    use_beam_search: bool = Field(False, description="n beams, or beam_width.")
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    structured_outputs: StructuredOutputsFields | None = None
    thinking_token_budget: int | None = Field(None, description="-1: no limit.")
    prompt_logprobs: int | None = Field(None, description="Number of top tokens to report per prompt token.")
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = Field(False, description='Tokens of logprobs are texts like "token_id:42".')
    priority: int = Field(0, description="Smaller values go first, where the engine orders requests by priority.")
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = Field(
        None, description="Requests share cached prefixes and results with those of the same salt and key only."
    )

    # hasten's own
    result_cache: bool = Field(True, description="false: the answer is neither looked up in the result cache nor stored there.")
    typical_p: float | None = None
    no_repeat_ngram_size: int | None = None
    bad_words_ids: list[list[int]] | None = None
    beam_width: int | None = Field(None, description="With use_beam_search: beams, from n.")
    early_stopping: bool | Literal["never"] | None = Field(None, description="Of beam search only.")
    acceptance: str | None = Field(None, description="Rule for draft tokens: exact, rejection or typical, which is lossy.")
    posterior_threshold: float | None = None
    posterior_alpha: float | None = None
    exit_rule: str | None = Field(None, description="Early exit, which is lossy.")
    exit_layer: int | None = None
    exit_threshold: float | None = None
    exit_tolerance: float | None = None
    exit_decay: float | None = None
