"""``engine_statistics``: the counters of an engine and its caches, as ``LLM.stats`` returns them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hasten.core.process_usage import process_usage
from hasten.engine.request_totals import RequestTotals
from hasten.engine.stats import EngineStats
from hasten.kv.cache_manager import KvCacheManager

if TYPE_CHECKING:
    from hasten.engine.engine import Engine

MIN_GAIN = 0.01  # share of the prompt tokens; less is not worth another order of a prompt's parts


def engine_statistics(engine: Engine) -> dict[str, Any]:
    """Return the statistics of an engine between two steps; ``LLM.stats`` lists the keys.

    It ends pins that have expired.
    """
    scheduler, stats, pins = engine.scheduler, engine.stats, engine.scheduler.kv.pins
    pinned = pins.describe(engine.clock())  # first: it frees the blocks of expired pins
    num_evicted = sum(allocator.num_evicted for allocator in scheduler.kv.allocators)
    return {
        "engine": _describe_steps(stats),
        "requests": {
            "added": stats.requests.num_added,
            "waiting": scheduler.num_waiting,
            "running": scheduler.num_running,
            "finished": {str(reason): count for reason, count in stats.requests.finished.items()},
            "output_tokens": stats.requests.num_output_tokens,
            "preemptions": stats.requests.num_preemptions,
        },
        "live": _describe_live(stats),
        "histograms": stats.open_requests.histograms.as_dict(),
        "kv": _describe_blocks(scheduler.kv) | {"evicted_blocks": num_evicted},
        "prefix_cache": _describe_prefix_cache(stats.requests, num_evicted),
        "pins": {"pins": pinned, "pinned_blocks": pins.num_blocks, **pins.counts},
        "process": process_usage(),
    }


def advice(totals: RequestTotals, num_evicted: int) -> str | None:
    """Return a sentence that says how much more prompts could share; None if that is little or nothing."""
    num_prompt, num_cached, num_shareable = totals.num_prompt_tokens, totals.num_cached_tokens, totals.num_shareable_tokens
    if num_shareable - num_cached < max(1, MIN_GAIN * num_prompt):
        return None
    larger = f" and the KV cache been larger ({num_evicted:,} cached blocks were evicted)" if num_evicted else ""
    return (
        f"{num_cached:,} of {num_prompt:,} prompt tokens came from the prefix cache; "
        f"{num_shareable:,} could have, had the part that varies stood last{larger}"
    )


def _describe_steps(stats: EngineStats) -> dict[str, Any]:
    return {
        "steps": stats.num_steps,
        "computed_tokens": stats.num_computed_tokens,
        "sampled_rows": stats.num_sampled_rows,
        "drafts": stats.num_drafts,
        "drafted_tokens": stats.num_drafted_tokens,
        "accepted_tokens": stats.num_accepted_tokens,
        "drafts_by_position": list(stats.drafts_by_position),
        "accepted_by_position": list(stats.accepted_by_position),
        "acceptance_by_position": list(stats.acceptance_by_position),
        "mean_accepted_length": stats.mean_accepted_length,
        "speed_up": stats.speed_up,
        "decoding_seconds": stats.decoding_seconds,
        "plain_seconds": stats.plain_seconds,
    }


def _describe_live(stats: EngineStats) -> dict[str, int]:
    requests = stats.open_requests
    return {
        "prompt_tokens": requests.num_prompt_tokens,
        "cached_tokens": requests.num_cached_tokens,
        "generated_tokens": requests.num_output_tokens,
        "preempted": stats.requests.num_preemptions + requests.num_preemptions,
    }


def _describe_blocks(kv: KvCacheManager) -> dict[str, Any]:
    fullest = max(kv.allocators, key=lambda allocator: allocator.num_held)
    return {
        "block_size": kv.block_size,
        "blocks": kv.num_blocks,
        "held_blocks": fullest.num_held,
        "cached_blocks": fullest.num_cached,
        "free_blocks": kv.num_blocks - fullest.num_held - fullest.num_cached,
        "usage": fullest.num_held / kv.num_blocks,
    }


def _describe_prefix_cache(totals: RequestTotals, num_evicted: int) -> dict[str, Any]:
    num_prompt, num_cached = totals.num_prompt_tokens, totals.num_cached_tokens
    return {
        "query_tokens": num_prompt,
        "hit_tokens": num_cached,
        "hit_rate": num_cached / num_prompt if num_prompt else None,
        "shareable_tokens": totals.num_shareable_tokens,
        "advice": advice(totals, num_evicted),
    }
