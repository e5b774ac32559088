"""``ChatRequest``: the body of ``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PlainValidator, WithJsonSchema

from hasten.serving.api_error import invalid
from hasten.serving.openai.messages import MESSAGES_SCHEMA, read_messages, with_known_roles
from hasten.serving.openai.named_template import DESCRIPTION, NamedTemplate, check_one_of, one_of
from hasten.serving.openai.sampling import check_num_logprobs, check_sampling
from hasten.serving.openai.sampling_fields import SamplingFields
from hasten.serving.openai.tools import CHOICE_SCHEMA, TOOLS_SCHEMA, Tools, read_tools
from hasten.serving.server_options import ServerOptions


def _unchecked(value: Any) -> Any:
    return value


class ChatRequest(SamplingFields):
    model_config = ConfigDict(json_schema_extra=one_of("messages"))

    messages: Annotated[list[dict[str, Any]], PlainValidator(read_messages), WithJsonSchema(MESSAGES_SCHEMA)] = Field(
        default_factory=list
    )
    prompt_template: NamedTemplate | None = Field(None, description=f"{DESCRIPTION} messages.")
    max_completion_tokens: int | None = Field(None, description="Takes precedence over max_tokens.")
    logprobs: bool = Field(False, description="Report the log-probability of each token.")
    top_logprobs: int | None = Field(None, description="With logprobs: number of top tokens to report per token.")

    tools: Annotated[Any, PlainValidator(_unchecked), WithJsonSchema(TOOLS_SCHEMA)] = None
    tool_choice: Annotated[Any, PlainValidator(_unchecked), WithJsonSchema(CHOICE_SCHEMA)] = None
    parallel_tool_calls: bool = Field(True, description="false: calls after the first are left out, as in vLLM.")

    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None,
        description=(
            "For chat templates that read reasoning_effort, or enable_thinking, which is false for none. Other templates: medium "
            "only, the default."
        ),
    )
    include_reasoning: bool = Field(True, description="false: the thought is left out of the answer.")
    add_generation_prompt: bool | None = None
    continue_final_message: bool = Field(False, description="The answer goes on in the last message.")
    chat_template: str | None = Field(None, description="Refused: the model's own template is used.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables of the chat template.")
    documents: list[dict[str, Any]] | None = Field(None, description="For chat templates that read documents.")
    return_prompt_text: bool = False
    echo: Literal[False] = Field(False, description="Of completions only.")
    add_special_tokens: Literal[False] = Field(False, description="The chat template writes the special tokens.")

    def check(self, options: ServerOptions) -> int:
        """Return how many sequences it takes. Raises ``ApiError``."""
        check_one_of("messages", bool(self.messages), self.prompt_template)
        if len(self.messages) > options.max_messages:
            message = f"the request has {len(self.messages)} messages; allowed: up to {options.max_messages}"
            raise invalid(message, param="messages")
        if self.top_logprobs is not None:
            check_num_logprobs(self.top_logprobs, "top_logprobs")
            if not self.logprobs and self.top_logprobs:
                raise invalid("top_logprobs needs logprobs: true", param="top_logprobs")
        if self.chat_template is not None:
            raise invalid("chat_template is not supported: the model's own template is used", param="chat_template")
        return check_sampling(self, options)

    def read_tools(self) -> Tools:
        """Raises ``ApiError``."""
        return read_tools(self.tools, self.tool_choice)

    @property
    def num_logprobs(self) -> int | None:
        """Top tokens to report per token; None: no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def output_limit(self) -> tuple[int | None, str]:
        """The most tokens of the answer, and the field that says so."""
        if self.max_completion_tokens is not None:
            return self.max_completion_tokens, "max_completion_tokens"
        return self.max_tokens, "max_tokens"

    async def messages_for(self, template: str | None) -> list[dict[str, Any]]:
        """Return the messages with roles that the chat template knows, or those of the prompt template.

        Raises ``ApiError``.
        """
        named = self.prompt_template
        return with_known_roles(self.messages if named is None else await named.messages(), template)

    def template_kwargs(self, template: str | None) -> dict[str, Any]:
        """Return what is passed to the chat template whose source is ``template``. Raises ``ApiError``."""
        variables = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is not None:
            variables = _of_effort(self.reasoning_effort, template or "", variables) | variables
        found: dict[str, Any] = {"chat_template_kwargs": variables} if variables else {}
        if self.add_generation_prompt is not None:
            found["add_generation_prompt"] = self.add_generation_prompt
        if self.continue_final_message:
            found["continue_final_message"] = True
        if self.documents:
            found["documents"] = self.documents
        return found


def _of_effort(effort: str, template: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables that a reasoning effort sets, as vLLM sets them.

    A template that reads neither has one effort, so only "medium", the default, is what the client asks for.
    """
    found: dict[str, Any] = {"reasoning_effort": effort} if "reasoning_effort" in template else {}
    if "enable_thinking" in template:
        found["enable_thinking"] = effort != "none"
    if not found and effort != "medium" and not given:
        message = f"reasoning_effort={effort!r} has no effect on this model: its chat template does not read it; allowed: medium"
        raise invalid(message, param="reasoning_effort")
    return found
