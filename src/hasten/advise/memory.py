"""``kv_budget``: how many requests run at once, and how long a context fits, in a given memory.

The block arithmetic is that of the engine's KV cache and scheduler.
"""

from __future__ import annotations

from dataclasses import dataclass

from hasten.advise.model_shape import ModelShape
from hasten.advise.storage import block_bytes
from hasten.advise.work import Lengths
from hasten.engine.kv_cache_sizing import MAX_BLOCKS
from hasten.kv.group import KvGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSizes:
    """Those options of the engine that decide how blocks are used."""

    block_size: int = 16  # tokens
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048


@dataclass(frozen=True, slots=True)
class KvBudget:
    memory: int  # bytes for the KV cache
    num_blocks: int  # per group
    blocks_per_request: int  # of the group that needs most
    requests: int  # that run at once without a preemption
    is_limited_by_memory: bool  # False: by ``max_num_seqs``
    longest_context: int  # tokens of one request that runs alone


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes."""

    weights: int
    kv_per_token: float  # while no window is full
    kv_per_request: int  # at its end, in blocks
    activations: int  # of the largest step


def memory_use(shape: ModelShape, lengths: Lengths, sizes: EngineSizes) -> MemoryUse:
    """Return the memory of the weights, of a request's keys and values, and of a step's activations."""
    groups, kv_bytes = shape.groups, shape.storage.kv_bytes
    per_request = sum(
        _peak_blocks((group,), lengths.prompt + lengths.output - 1, sizes) * block_bytes((group,), sizes.block_size, kv_bytes)
        for group in groups
    )
    return MemoryUse(
        weights=shape.storage.weight_bytes,
        kv_per_token=sum(len(group.layers) * kv_bytes[group.num_kv_heads, group.head_dim] for group in groups),
        kv_per_request=per_request,
        activations=_activation_bytes(shape, lengths, sizes),
    )


def kv_budget(shape: ModelShape, lengths: Lengths, sizes: EngineSizes, memory: int) -> KvBudget:
    """Return how many requests of these lengths fit into ``memory`` bytes of KV cache.

    So many equal requests, sent together, all run at once and none is preempted. The prefix cache helps none of them.
    """
    size = sizes.block_size
    num_blocks = min(memory // block_bytes(shape.groups, size, shape.storage.kv_bytes), MAX_BLOCKS)
    num_tokens = lengths.prompt + lengths.output
    peak = _peak_blocks(shape.groups, num_tokens - 1, sizes)  # the last token of an output is never computed
    fitting = min(num_blocks // peak, _admitted(shape.groups, lengths.prompt, sizes, num_blocks))
    if _peak_blocks(shape.groups, num_tokens, sizes) > num_blocks or num_tokens > shape.spec.max_positions:
        fitting = 0  # refused on arrival
    requests = min(fitting, sizes.max_num_seqs)
    longest = min(_longest_context(shape.groups, sizes, num_blocks), shape.spec.max_positions)
    return KvBudget(memory, num_blocks, peak, requests, fitting <= sizes.max_num_seqs, longest)


def _peak_blocks(groups: tuple[KvGroup, ...], num_tokens: int, sizes: EngineSizes) -> int:
    return max(group.max_blocks(num_tokens, sizes.block_size, sizes.max_num_batched_tokens) for group in groups)


def _admitted(groups: tuple[KvGroup, ...], prompt: int, sizes: EngineSizes, num_blocks: int) -> int:
    """Return how many requests the scheduler admits while all of them hold their prompts.

    It admits one more only if a block remains for every running request.
    """
    held, first = _peak_blocks(groups, prompt, sizes), _peak_blocks(groups, prompt + 1, sizes)
    return 1 + max(0, num_blocks - first) // (held + 1) if num_blocks >= first else 0


def _longest_context(groups: tuple[KvGroup, ...], sizes: EngineSizes, num_blocks: int) -> int:
    """Return the tokens that a request alone may have; a group whose window fits holds any number."""
    bounded = [group for group in groups if group.max_blocks(1 << 40, sizes.block_size, sizes.max_num_batched_tokens) > num_blocks]
    return num_blocks * sizes.block_size if bounded else 1 << 40


def _activation_bytes(shape: ModelShape, lengths: Lengths, sizes: EngineSizes) -> int:
    """Return the hidden state, the widest inner state of a layer, and float32 logits of the largest step."""
    tokens = min(sizes.max_num_batched_tokens, lengths.batch * lengths.prompt)
    attention = max(layer.attention.qkv_size + layer.attention.q_size for layer in shape.spec.layers)
    feed_forward = max(layer.mlp.intermediate_size * (3 if layer.mlp.gated else 2) for layer in shape.spec.layers)
    width = 2 * shape.spec.hidden_size + max(attention, feed_forward)
    return tokens * width * shape.storage.activation_bytes + lengths.batch * shape.spec.vocab_size * 4
