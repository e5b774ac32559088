"""``read_sampling``: the ``SamplingParams`` of a request."""

from __future__ import annotations

from typing import Any

from hasten.core.errors import InvalidRequest
from hasten.core.sampling_params import MAX_LOGPROBS, SamplingParams
from hasten.serving.api_error import ApiError, invalid
from hasten.serving.call import Call
from hasten.serving.openai.output_form import output_form
from hasten.serving.openai.sampling_fields import SamplingFields
from hasten.serving.server_options import ServerOptions

# Fields with the name and the meaning that they have in ``SamplingParams``.
SAME = (
    *("temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("no_repeat_ngram_size", "logit_bias", "bad_words", "bad_words_ids", "allowed_token_ids", "n", "min_tokens", "stop"),
    *("ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "acceptance", "posterior_threshold", "posterior_alpha"),
    *("exit_rule", "exit_layer", "exit_threshold", "exit_tolerance", "exit_decay", "length_penalty", "early_stopping"),
)
_NO_SAMPLING: dict[str, Any] = {"temperature": 0.0, "top_k": None, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}


def check_sampling(body: SamplingFields, options: ServerOptions) -> int:
    """Return how many sequences each prompt takes. Raises ``ApiError``."""
    if not 1 <= body.n <= options.max_n:
        raise invalid(f"n={body.n} is out of range; allowed: 1 to {options.max_n}", param="n")
    if body.beam_width is not None:
        if not body.use_beam_search:
            raise invalid("beam_width needs use_beam_search: true", param="beam_width")
        if not body.n <= body.beam_width <= options.max_n:
            raise invalid(f"beam_width={body.beam_width} is out of range; allowed: n to {options.max_n}", param="beam_width")
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options needs stream: true", param="stream_options")
    if body.prompt_logprobs is not None:
        check_num_logprobs(body.prompt_logprobs, "prompt_logprobs")
        if body.stream:
            raise invalid("a stream has no prompt_logprobs; leave stream out", param="prompt_logprobs")
    return body.beam_width or body.n


def check_num_logprobs(number: int, field: str) -> None:
    """Raise ``ApiError`` for a number of top tokens that is out of range."""
    if not 0 <= number <= MAX_LOGPROBS:
        raise invalid(f"{field}={number} is out of range; allowed: 0 to {MAX_LOGPROBS}", param=field)


def read_sampling(
    body: SamplingFields, defaults: SamplingParams, *, max_tokens: int, logprobs: int | None, renamed: dict[str, str]
) -> SamplingParams:
    """Return the settings of a request, with ``defaults`` for absent ones.

    ``renamed``: the request's name of a setting, where it is another. Raises ``ApiError`` that names the field at fault.
    """
    changes: dict[str, Any] = {name: value for name in SAME if (value := getattr(body, name)) is not None}
    if body.top_k is not None:
        changes["top_k"] = None if body.top_k in (-1, 0) else body.top_k
    if body.seed is not None:
        changes["seed"] = None if body.seed == -1 else body.seed
    if body.thinking_token_budget is not None:
        changes["thinking_token_budget"] = None if body.thinking_token_budget == -1 else body.thinking_token_budget
    if body.stop_token_ids is not None:
        changes["stop_token_ids"] = tuple(dict.fromkeys((*defaults.stop_token_ids, *body.stop_token_ids)))
    if (form := output_form(body.response_format, body.structured_outputs)) is not None:
        changes["structured_outputs"] = form
    if body.use_beam_search:
        changes = _NO_SAMPLING | changes | {"beam_width": body.beam_width or body.n}
    changes |= {"max_tokens": max_tokens, "logprobs": logprobs}
    try:
        return defaults.replace(**changes)
    except InvalidRequest as error:
        raise _named(error, changes, renamed) from None


def read_max_tokens(
    given: int | None, field: str, body: SamplingFields, num_prompt_tokens: int, defaults: SamplingParams, room: int, default: int
) -> int:
    """Return the ``max_tokens`` of a request whose prompt leaves ``room`` tokens in the context.

    ``given``: what the field ``field`` says; None: ``default`` at most. Raises ``ApiError`` if it exceeds the room.
    """
    context = num_prompt_tokens + room
    if given is None:
        wanted = max(default if defaults.max_tokens is None else defaults.max_tokens, body.min_tokens or 1)
        return max(1, min(wanted, room))
    if given > room:
        message = (
            f"the prompt has {num_prompt_tokens} tokens and {field} is {given}, together {num_prompt_tokens + given}; "
            f"allowed: up to {context}, the context of this model. Shorten the prompt or lower {field}."
        )
        raise invalid(message, param=field, code="context_length_exceeded")
    return given


def engine_options(body: SamplingFields, call: Call) -> dict[str, Any]:
    """Return what ``AsyncLLM`` takes beside the prompt and its settings.

    Cached prefixes and results are per API key.
    """
    return {
        "priority": body.priority,
        "cache_salt": call.caller.cache_salt(body.cache_salt or ""),
        "use_result_cache": body.result_cache,
    }


def _named(error: InvalidRequest, changes: dict[str, Any], renamed: dict[str, str]) -> ApiError:
    """Return the error with the field that it names first: messages write ``name=value``."""
    text = str(error)
    found = {name: text.find(f" {name}=") for name in changes}
    names = sorted((place, name) for name, place in found.items() if place >= 0)
    name = names[0][1] if names else None
    return invalid(text, param=None if name is None else renamed.get(name, name))
