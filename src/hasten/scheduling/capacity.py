"""``check_capacity``: whether a request fits the context, the running sequences and the KV pool."""

from __future__ import annotations

from hasten.core.errors import PromptTooLong
from hasten.core.request import Request
from hasten.kv.cache_manager import KvCacheManager
from hasten.scheduling.config import SchedulerConfig


def check_capacity(request: Request, config: SchedulerConfig, kv: KvCacheManager) -> None:
    """Raise ``PromptTooLong``, with both numbers, if the request cannot run even alone."""
    num_prompt, params = request.num_initial_tokens, request.params
    assert params.max_tokens is not None, "the input processor sets max_tokens"
    num_tokens, num_sequences = num_prompt + params.max_tokens, params.beam_width or params.n
    requested = f"{num_prompt} prompt + {params.max_tokens} new tokens"
    if num_tokens > config.max_model_len:
        raise PromptTooLong(
            "prompt and output do not fit the context",
            got=f"{requested} = {num_tokens}",
            allowed=f"up to {config.max_model_len} tokens",
            remedy="Shorten the prompt, lower max_tokens, or raise max_model_len",
        )
    if num_sequences > config.max_num_seqs:
        raise PromptTooLong(
            "the request has more sequences than may run at a time",
            got=num_sequences,
            allowed=f"up to max_num_seqs={config.max_num_seqs}",
            remedy="Lower n or beam_width, or raise max_num_seqs",
        )
    size = kv.block_size
    # Sequences share the prompt's blocks, unless a window drops them and preempted sequences compute them again.
    num_shared = num_prompt // size if all(group.window is None for group in kv.groups) else 0
    for group in kv.groups:
        decoding = group.max_blocks(num_tokens, size, 1)
        prefilling = group.max_blocks(num_tokens, size, config.max_num_batched_tokens)
        needed = num_shared + num_sequences * (decoding - num_shared) + prefilling - decoding
        if needed > kv.num_blocks:
            plural = "s" if num_sequences > 1 else ""
            raise PromptTooLong(
                "the request does not fit the KV pool",
                got=f"{requested}, {num_sequences} sequence{plural}: {needed} blocks of {size} tokens",
                allowed=f"up to {kv.num_blocks} blocks",
                remedy="Shorten the prompt, lower max_tokens, n or beam_width, or raise kv_cache_memory",
            )
