"""``GenerateRequest``: the body of a request to TGI's routes, and its settings as ``SamplingParams``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from hasten.core.sampling_params import MAX_LOGPROBS, MAX_TOKENS, SamplingParams
from hasten.core.structured_outputs import StructuredOutputs
from hasten.serving.api_error import invalid
from hasten.serving.strict_body import StrictBody

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1, le=MAX_TOKENS)]


class Grammar(StrictBody):
    type: Literal["json", "regex", "json_schema"]
    value: Any = Field(description='A JSON schema, a regular expression, or {"name": ..., "schema": a JSON schema}.')

    def structured_outputs(self) -> StructuredOutputs:
        """Return the form of the output. Raises ``ApiError`` or ``InvalidRequest``."""
        value = self.value
        if self.type == "json_schema":
            if not isinstance(value, dict) or "schema" not in value or value.keys() - {"schema", "name"}:
                raise invalid(
                    "grammar of type json_schema needs a value with schema, and name if at all", param="parameters.grammar"
                )
            value = value["schema"]
        if self.type == "regex":
            if not isinstance(value, str):
                raise invalid("grammar of type regex needs a text as its value", param="parameters.grammar")
            return StructuredOutputs(regex=value)
        if not isinstance(value, str | dict):
            raise invalid(f"grammar of type {self.type} needs a JSON schema as its value", param="parameters.grammar")
        return StructuredOutputs(json=value)


class GenerateParameters(StrictBody):
    best_of: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Only 1 is supported.")
    temperature: Positive | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=1e9)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    top_k: Count | None = None
    top_p: Share | None = None
    typical_p: Share | None = None
    do_sample: bool | None = Field(default=None, description="Without it and without a setting of sampling, decoding is greedy.")
    max_new_tokens: Count | None = None
    return_full_text: bool | None = Field(default=None, description="Put the prompt before the generated text.")
    stop: list[Annotated[str, Field(min_length=1)]] | None = Field(
        default=None, description="The text that ends it stays in the output."
    )
    truncate: Count | None = Field(default=None, description="Read only so many tokens, the last ones of the prompt.")
    watermark: bool | None = Field(default=None, description="Not supported.")
    details: bool | None = None
    decoder_input_details: bool | None = Field(default=None, description="Return the prompt's tokens. Not supported in streams.")
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    top_n_tokens: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    grammar: Grammar | None = None
    adapter_id: str | None = Field(default=None, description="Not supported.")
    ignore_eos_token: bool | None = Field(default=None, description="Go on after the end token, for benchmarks.")

    def check(self) -> None:
        """Raise ``ApiError`` for a setting that is not supported and would alter the output."""
        if self.best_of not in (None, 1):
            raise invalid("best_of is not supported", param="parameters.best_of")
        if self.watermark:
            raise invalid("watermark is not supported", param="parameters.watermark")
        if self.adapter_id:
            raise invalid("adapter_id is not supported: this server loads no adapters", param="parameters.adapter_id")

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn; otherwise the most likely ones are taken."""
        return bool(self.do_sample) or any(
            value is not None for value in (self.temperature, self.top_k, self.top_p, self.typical_p)
        )

    def sampling_params(self, max_new_tokens: int, *, has_logprobs: bool) -> SamplingParams:
        """Return the settings of the engine. Those of the checkpoint do not count, as in TGI.

        Raises ``InvalidRequest``.
        """
        return SamplingParams(
            temperature=(self.temperature or 1.0) if self.samples else 0.0,
            top_k=self.top_k,
            top_p=self.top_p or 1.0,
            typical_p=self.typical_p or 1.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            seed=self.seed,
            max_tokens=max_new_tokens,
            stop=tuple(self.stop or ()),
            include_stop_str_in_output=True,
            ignore_eos=bool(self.ignore_eos_token),
            logprobs=(self.top_n_tokens or 0) if has_logprobs else None,
            structured_outputs=None if self.grammar is None else self.grammar.structured_outputs(),
        )


class GenerateRequest(StrictBody):
    inputs: Annotated[str, Field(min_length=1)]
    parameters: GenerateParameters = Field(default_factory=GenerateParameters)
    model: str | None = Field(default=None, description="Name of a model of this server; the default one if it is left out.")


class CompatGenerateRequest(GenerateRequest):
    stream: bool = False
