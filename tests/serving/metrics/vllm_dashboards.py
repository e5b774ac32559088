"""What the panels of vLLM's Grafana dashboards ask Prometheus for, by the names of their series.

From ``examples/observability`` of vLLM 0.33: ``prometheus_grafana/grafana.json``, and of ``dashboards/grafana`` the files
``performance_statistics.json`` and ``query_statistics.json``; and the first rows of ``vllm_overview.json``,
``vllm_kv_cache.json`` and ``vllm_speculative_decoding.json``. Many panels differ in the metric alone, so they are put together from
it.
"""

from __future__ import annotations

from collections.abc import Iterator

LATENCIES = ("vllm:e2e_request_latency_seconds", "vllm:inter_token_latency_seconds", "vllm:time_to_first_token_seconds")


def quantile(q: str, name: str, selector: str, window: str, by: str = "le") -> str:
    return f"histogram_quantile({q}, sum by({by}) (rate({name}_bucket{selector}[{window}])))"


def mean(name: str, selector: str, window: str) -> str:
    return f"rate({name}_sum{selector}[{window}]) / rate({name}_count{selector}[{window}])"


def main_dashboard() -> Iterator[str]:
    selector, window = '{model_name="$model_name"}', "$__rate_interval"
    for name in LATENCIES:
        yield from (quantile(q, name, selector, window) for q in ("0.99", "0.95", "0.9", "0.5"))
        yield mean(name, selector, window)
    for name in ("prompt_tokens_total", "generation_tokens_total"):
        yield f"rate(vllm:{name}{selector}[{window}])"
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        yield f"vllm:{name}{selector}"
    for name in ("request_prompt_tokens", "request_generation_tokens"):
        yield f"sum by(le) (increase(vllm:{name}_bucket{selector}[{window}]))"
    yield f"sum by(finished_reason) (increase(vllm:request_success_total{selector}[{window}]))"
    for name in ("queue_time_seconds", "prefill_time_seconds", "decode_time_seconds", "max_num_generation_tokens"):
        yield f"rate(vllm:request_{name}_sum{selector}[{window}])"


def performance_statistics() -> Iterator[str]:
    for name in LATENCIES:
        yield mean(name, "", "$__rate_interval")
        yield from (quantile(q, name, "", "$__range") for q in ("0.99", "0.90", "0.50"))
        yield f"(sum(increase({name}_sum[$__range])) / sum(increase({name}_count[$__range])))"
    for name in ("generation_tokens_total", "prompt_tokens_total", "iteration_tokens_total_count"):
        yield f"rate(vllm:{name}[$__rate_interval])"


def query_statistics() -> Iterator[str]:
    selector, window = '{model_name=~"$Deployment_id"}', "$__rate_interval"
    for name in ("request_success_total", "prompt_tokens_total", "generation_tokens_total"):
        yield f"sum by (model_name) (\n  rate(vllm:{name}{selector}[{window}])\n)"
        yield f"sum(rate(vllm:{name}{selector}[{window}]))"
    for name in ("vllm:e2e_request_latency_seconds", "vllm:request_prompt_tokens"):
        yield from (quantile(q, name, selector, window, "le, model_name") for q in ("0.50", "0.90", "0.99"))
    yield f"sum by (le, model_name) (rate(vllm:request_prompt_tokens_bucket{selector}[{window}]))"
    tokens, requests = (f"sum(rate(vllm:{name}_total{selector}[{window}]))" for name in ("prompt_tokens", "request_success"))
    yield f"{tokens}\n/\n{requests}"


def overview() -> Iterator[str]:
    server = 'job=~"$job", instance=~"$instance"'
    selector, window = f'{{{server}, model_name=~"$model_name"}}', "$__rate_interval"
    for name in ("request_success_total", "prompt_tokens_total", "generation_tokens_total"):
        yield f"sum(rate(vllm:{name}{selector}[{window}]))"
    errors = f'sum(rate(http_requests_total{{{server}, status="5xx"}}[{window}])) or vector(0)'
    yield f"({errors}) / (sum(rate(http_requests_total{{{server}}}[{window}])) > 0)"
    yield from (quantile("0.95", name, selector, window) for name in LATENCIES)
    yield 'count(up{job=~"$job"} == 0) or vector(0)'
    yield f"count(vllm:num_requests_running{selector})"
    yield from (f"sum(vllm:num_requests_{state}{selector})" for state in ("running", "waiting"))
    yield f"max(vllm:kv_cache_usage_perc{selector})"
    yield f"sum(rate(vllm:num_preemptions_total{selector}[{window}]))"
    yield share("prefix_cache_hits_total", "prefix_cache_queries_total", selector)
    for name, variable in (("time_to_first_token", "$ttft_slo"), ("request_time_per_output_token", "$tpot_slo")):
        within = f'{{{server}, model_name=~"$model_name", le="{variable}"}}'
        total = f"sum(rate(vllm:{name}_seconds_count{selector}[{window}]))"
        yield f"sum(rate(vllm:{name}_seconds_bucket{within}[{window}])) / ({total} > 0)"


def share(part: str, total: str, selector: str, by: str = "") -> str:
    """Return the expression of a share; without traffic it has no sample."""
    part, total = (f"sum{by}(rate(vllm:{name}{selector}[$__rate_interval]))" for name in (part, total))
    return f"{part} / ({total} > 0)"


ENGINES = '{job=~"$job", model_name=~"$model_name", instance=~"$instance", engine=~"$engine"}'


def kv_cache() -> Iterator[str]:
    yield from (f"{function}(vllm:kv_cache_usage_perc{ENGINES})" for function in ("max", "avg", "max by (instance, engine) "))
    yield share("prefix_cache_hits_total", "prefix_cache_queries_total", ENGINES)
    yield share("prompt_tokens_cached_total", "prompt_tokens_total", ENGINES)
    yield f"sum(rate(vllm:num_preemptions_total{ENGINES}[$__rate_interval]))"
    yield f"sum(vllm:num_requests_running{ENGINES})"
    for reason in ("capacity", "deferred"):
        selector = ENGINES.replace("}", f', reason="{reason}"}}')
        yield f"sum(vllm:num_requests_waiting_by_reason{selector})"


def speculative_decoding() -> Iterator[str]:
    accepted, drafted, drafts = (f"spec_decode_num_{name}_total" for name in ("accepted_tokens", "draft_tokens", "drafts"))
    for by in ("", " by (model_name) "):
        yield share(accepted, drafted, ENGINES, by)
        yield f"1 + {share(accepted, drafts, ENGINES, by)}"
    yield from (f"sum(rate(vllm:{name}{ENGINES}[$__rate_interval]))" for name in (accepted, drafted, drafts))
    yield share(accepted, "generation_tokens_total", ENGINES)
    by_position = f"sum by (position) (rate(vllm:spec_decode_num_accepted_tokens_per_pos_total{ENGINES}[$__rate_interval]))"
    yield f"{by_position} / on () group_left () (sum(rate(vllm:{drafts}{ENGINES}[$__rate_interval])) > 0)"


DASHBOARDS = {
    "grafana": tuple(main_dashboard()),
    "performance_statistics": tuple(performance_statistics()),
    "query_statistics": tuple(query_statistics()),
    "overview": tuple(overview()),
    "kv_cache": tuple(kv_cache()),
    "speculative_decoding": tuple(speculative_decoding()),
}
