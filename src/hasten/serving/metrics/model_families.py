"""``model_families``: the metrics of engines, under vLLM's names and hasten's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from prometheus_client import Metric
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)

from hasten.serving.metrics.model_snapshot import ModelSnapshot

LABELS = ("model_name", "engine")
ENGINE = "0"  # each model has one engine


class _Value(NamedTuple):
    """One metric. ``path``: the keys of its value in the statistics.

    A value of None is not measured, and not shown.
    """

    name: str
    help: str
    path: tuple[str, ...]


class _Labelled(NamedTuple):
    """One metric with a label of its own, whose values stand in a mapping or a list."""

    name: str
    help: str
    path: tuple[str, ...]
    label: str
    keys: tuple[str, ...] = ()  # of a mapping, those that are shown; empty: all


GAUGES = (
    _Value("vllm:num_requests_running", "Requests that the engine computes now.", ("requests", "running")),
    _Value("vllm:num_requests_waiting", "Requests that wait for their first step or were preempted.", ("requests", "waiting")),
    _Value("vllm:kv_cache_usage_perc", "Share of the KV blocks that requests and pins hold, 0 to 1.", ("kv", "usage")),
    _Value("hasten_speculation_speed_up", "Speed-up of speculative over plain decoding since the start.", ("engine", "speed_up")),
    _Value("hasten_pinned_blocks", "KV blocks that pins hold.", ("pins", "pinned_blocks")),
    _Value("hasten_result_cache_unwritten", "Results that wait to be stored.", ("result_cache", "unwritten")),
)
COUNTERS = (
    _Value("vllm:prompt_tokens", "Prompt tokens of requests that have their first token.", ("live", "prompt_tokens")),
    _Value("vllm:prompt_tokens_cached", "Those of them that the prefix cache had.", ("live", "cached_tokens")),
    _Value("vllm:generation_tokens", "Output tokens.", ("live", "generated_tokens")),
    _Value("vllm:num_preemptions", "How often running requests were sent back to wait.", ("live", "preempted")),
    _Value("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", ("prefix_cache", "query_tokens")),
    _Value("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", ("prefix_cache", "hit_tokens")),
    _Value(
        "hasten_prefix_cache_shareable_tokens",
        "Prompt tokens that the prefix cache could have had, had the parts that vary stood last.",
        ("prefix_cache", "shareable_tokens"),
    ),
    _Value("hasten_requests_added", "Requests that the engine has taken.", ("requests", "added")),
    _Value("hasten_steps", "Steps of the engine.", ("engine", "steps")),
    _Value("hasten_computed_tokens", "Tokens that steps computed: of prompts, outputs and drafts.", ("engine", "computed_tokens")),
    _Value("hasten_kv_evicted_blocks", "Cached KV blocks that requests took.", ("kv", "evicted_blocks")),
    _Value("hasten_result_cache_hits", "Requests that the result cache answered.", ("result_cache", "hits")),
    _Value("hasten_result_cache_misses", "Requests that the result cache did not have.", ("result_cache", "misses")),
    _Value("hasten_result_cache_shared", "Requests that joined an equal one that ran.", ("result_cache", "shared")),
    _Value("hasten_result_cache_stored", "Results that were stored.", ("result_cache", "stored")),
    _Value("hasten_result_cache_dropped", "Results that were not stored for lack of time or room.", ("result_cache", "dropped")),
    _Value("hasten_result_cache_damaged", "Stored results that were found broken.", ("result_cache", "damaged")),
)
SPECULATION = (  # only of engines that draft
    _Value("vllm:spec_decode_num_drafts", "Verified drafts.", ("engine", "drafts")),
    _Value("vllm:spec_decode_num_draft_tokens", "Draft tokens of verified drafts.", ("engine", "drafted_tokens")),
    _Value("vllm:spec_decode_num_accepted_tokens", "Accepted draft tokens.", ("engine", "accepted_tokens")),
    _Value("hasten_decoding_seconds", "Time of decode-only steps with drafting.", ("engine", "decoding_seconds")),
    _Value("hasten_plain_decoding_seconds", "Time that plain steps would have taken for as much.", ("engine", "plain_seconds")),
)
LABELLED_COUNTERS = (
    _Labelled("vllm:request_success", "Finished requests, each counted once.", ("requests", "finished"), "finished_reason"),
    _Labelled(
        "hasten_pin_events",
        "What has become of pins.",
        ("pins",),
        "event",
        ("set", "refreshed", "hits", "expired", "evicted", "dropped", "removed", "refused"),
    ),
    _Labelled("hasten_result_cache_passed", "Requests that were not looked up.", ("result_cache", "passed"), "reason"),
)
ACCEPTED_BY_POSITION = _Labelled(
    "vllm:spec_decode_num_accepted_tokens_per_pos",
    "Accepted draft tokens by their position in the draft.",
    ("engine", "accepted_by_position"),
    "position",
)
HISTOGRAMS = (
    ("vllm:time_to_first_token_seconds", "Time to the first token, queueing included.", "time_to_first_token"),
    ("vllm:inter_token_latency_seconds", "Time between tokens of an answer.", "inter_token_latency"),
    ("vllm:request_time_per_output_token_seconds", "Mean time per token after a request's first.", "time_per_output_token"),
    ("vllm:e2e_request_latency_seconds", "Time from arrival to the last token.", "e2e_latency"),
    ("vllm:request_queue_time_seconds", "Time until the first step of a request.", "queue_time"),
    ("vllm:request_inference_time_seconds", "Time from the first step to the last token.", "inference_time"),
    ("vllm:request_prefill_time_seconds", "Time from the first step to the first token.", "prefill_time"),
    ("vllm:request_decode_time_seconds", "Time from the first token to the last.", "decode_time"),
    ("vllm:request_prompt_tokens", "Prompt tokens of a request.", "prompt_tokens"),
    ("vllm:request_generation_tokens", "Output tokens of a request, all of its answers together.", "generation_tokens"),
    ("vllm:request_max_num_generation_tokens", "Output tokens of a request's longest answer.", "max_num_generation_tokens"),
    ("vllm:request_prefill_kv_computed_tokens", "Prompt tokens that were not cached.", "prefill_kv_computed_tokens"),
    ("vllm:request_params_n", "Answers that a request asks for.", "params_n"),
    ("vllm:request_params_max_tokens", "The most tokens that a request asks for.", "params_max_tokens"),
    ("vllm:iteration_tokens_total", "Tokens that a step computes.", "iteration_tokens"),
)
SECONDS = frozenset(key for name, _, key in HISTOGRAMS if name.endswith("_seconds"))


def model_families(snapshots: Sequence[ModelSnapshot]) -> Iterator[Metric]:
    """Yield the metric families of all engines.

    Engines that did not answer have ``hasten_engine_up`` alone.
    """
    yield _family(
        GaugeMetricFamily, "hasten_engine_up", "Whether the engine answers.", ((each, each.stats is not None) for each in snapshots)
    )
    answered = [each for each in snapshots if each.stats is not None]
    if not answered:
        return
    drafting = [each for each in answered if each.description.get("speculative_method") not in (None, "off")]
    for group, kind, members in (
        (GAUGES, GaugeMetricFamily, answered),
        (COUNTERS, CounterMetricFamily, answered),
        (SPECULATION, CounterMetricFamily, drafting),
    ):
        for value in group:
            yield _family(kind, value.name, value.help, ((each, _find(each, value.path)) for each in members))
    for labelled in LABELLED_COUNTERS:
        yield _labelled_family(labelled, answered)
    yield _labelled_family(ACCEPTED_BY_POSITION, drafting)
    yield from _derived_families(answered)
    for name, text, key in HISTOGRAMS:
        yield _histogram_family(name, text, key, answered)


def _derived_families(snapshots: Sequence[ModelSnapshot]) -> Iterator[Metric]:
    sources = CounterMetricFamily("vllm:prompt_tokens_by_source", "Prompt tokens by their source.", labels=(*LABELS, "source"))
    reasons = GaugeMetricFamily("vllm:num_requests_waiting_by_reason", "Waiting requests by reason.", labels=(*LABELS, "reason"))
    blocks = GaugeMetricFamily("hasten_kv_blocks", "KV blocks by state.", labels=(*LABELS, "state"))
    pins = GaugeMetricFamily("hasten_pins", "Pinned prefixes.", labels=LABELS)
    cache = InfoMetricFamily("vllm:cache_config", "The KV cache.", labels=LABELS)
    info = InfoMetricFamily("hasten_model", "What the model runs with.", labels=LABELS)
    for each in snapshots:
        live, labels = _find(each, ("live",)), (each.name, ENGINE)
        sources.add_metric((*labels, "local_cache_hit"), live["cached_tokens"])
        sources.add_metric((*labels, "local_compute"), live["prompt_tokens"] - live["cached_tokens"])
        reasons.add_metric((*labels, "capacity"), _find(each, ("requests", "waiting")))
        reasons.add_metric((*labels, "deferred"), 0)  # what vLLM holds back for adapters and transfers; dashboards ask for it
        for block_state in ("held", "cached", "free"):
            blocks.add_metric((*labels, block_state), _find(each, ("kv", f"{block_state}_blocks")))
        pins.add_metric(labels, len(_find(each, ("pins", "pins"))))
        cache.add_metric(labels, _texts(_cache_config(each)))
        info.add_metric(labels, _texts(_model_info(each)))
    yield from (sources, reasons, blocks, pins, cache, info)


def _cache_config(snapshot: ModelSnapshot) -> dict[str, Any]:
    description = snapshot.description
    return {
        "block_size": _find(snapshot, ("kv", "block_size")),
        "num_gpu_blocks": _find(snapshot, ("kv", "blocks")),  # vLLM's name; on a CPU they are in its memory
        "enable_prefix_caching": description.get("prefix_caching"),
        "cache_dtype": description.get("kv_cache_dtype"),
    }


def _model_info(snapshot: ModelSnapshot) -> dict[str, Any]:
    names = ("family", "dtype", "weights", "activations", "kernels", "threads", "kv_cache_dtype", "max_model_len", "batching")
    description, has_results = snapshot.description, _find(snapshot, ("result_cache",)) is not None
    return {name: description.get(name) for name in (*names, "speculative_method", "prefix_caching")} | {
        "result_cache": has_results
    }


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values.items()}


def _find(snapshot: ModelSnapshot, path: Sequence[str]) -> Any:
    """Return a value of the statistics; None if a part of its path is None."""
    found: Any = snapshot.stats
    for key in path:
        if found is None:
            return None
        found = found[key]
    return found


def _family(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily], name: str, text: str, values: Iterable[tuple[ModelSnapshot, Any]]
) -> Metric:
    family = kind(name, text, labels=LABELS)
    for snapshot, value in values:
        if value is not None:
            family.add_metric((snapshot.name, ENGINE), value)
    return family


def _labelled_family(labelled: _Labelled, snapshots: Sequence[ModelSnapshot]) -> Metric:
    family = CounterMetricFamily(labelled.name, labelled.help, labels=(*LABELS, labelled.label))
    for snapshot in snapshots:
        found = _find(snapshot, labelled.path) or {}
        items = found if isinstance(found, Mapping) else dict(enumerate(found))
        for key in labelled.keys or items:
            family.add_metric((snapshot.name, ENGINE, str(key)), items[key])
    return family


def _histogram_family(name: str, text: str, key: str, snapshots: Sequence[ModelSnapshot]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=LABELS)
    for snapshot in snapshots:
        histogram = _find(snapshot, ("histograms", key))
        limit = float("inf") if key in SECONDS else snapshot.description.get("max_model_len", float("inf"))
        family.add_metric((snapshot.name, ENGINE), buckets(histogram, limit), histogram["sum"])
    return family


def buckets(histogram: Mapping[str, Any], limit: float = float("inf")) -> list[tuple[str, float]]:
    """Return the buckets of a histogram as Prometheus writes them: each with all of the ones below.

    Bounds above ``limit``, which no observation exceeds, are left out.
    """
    bounds, totals = histogram["bounds"], list(accumulate(histogram["counts"]))
    shown = [(str(float(bound)), total) for bound, total in zip(bounds, totals, strict=False) if bound <= limit]
    return [*shown, ("+Inf", totals[-1])]
