"""``REFUSED``: fields of OpenAI's and vLLM's APIs that could alter an output and are not supported."""

from __future__ import annotations

_MEDIA = "the models are text models"
_TOOLS = "it was replaced by tools and tool_choice; use those"

REFUSED: dict[str, str] = {
    "audio": _MEDIA,
    "function_call": _TOOLS,
    "functions": _TOOLS,
    "kv_transfer_params": "the prompt and the output are computed by one engine",
    "ec_transfer_params": "the prompt and the output are computed by one engine",
    "logits_processors": "a request cannot bring code",
    "logprob_token_ids": "ask for top_logprobs, or score the texts with /score",
    "media_io_kwargs": _MEDIA,
    "mm_processor_kwargs": _MEDIA,
    "moderation": "nothing moderates inputs or outputs",
    "prompt_embeds": "send the prompt as text or token ids",
    "repetition_detection": "use no_repeat_ngram_size or a penalty",
    "suffix": "the text after a completion cannot be given",
    "truncate_prompt_tokens": "prompts are never cut; cut the prompt before you send it",
    "truncation_side": "prompts are never cut; cut the prompt before you send it",
    "vllm_xargs": "no extension reads it",
    "watermarking": "outputs have no watermark",
    "web_search_options": "the server has no search",
}


def why_refused(name: str) -> str | None:
    """Return why a field is refused; None if it is not a field that is known and refused."""
    if name.startswith("guided_"):
        form = name.removeprefix("guided_")
        known = form in ("json", "regex", "choice", "grammar")
        return f'use structured_outputs: {{"{form}": ...}}' if known else "use structured_outputs, which has all of its settings"
    return REFUSED.get(name)
