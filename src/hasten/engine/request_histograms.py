"""``RequestHistograms``: latencies and lengths of requests, in the buckets that dashboards expect.

First tokens and later ones count when they come, everything else when its request ends. A request counts once, however often it was
preempted. One that was aborted or failed has its end in none of them: its times and lengths say nothing about the engine.
"""

from __future__ import annotations

from typing import Any

from hasten.core.output import RequestOutput
from hasten.core.request import Request
from hasten.engine.histogram import Histogram

FIRST_TOKEN_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
# vLLM's begin at 10 ms; small models on a CPU are faster.
TOKEN_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST_SECONDS = (
    *(0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
TOKENS = tuple(digit * 10**power for power in range(7) for digit in (1, 2, 5))  # up to 5 million
ANSWERS = (1, 2, 5, 10, 20)
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

BOUNDS: dict[str, tuple[float, ...]] = {
    "time_to_first_token": FIRST_TOKEN_SECONDS,  # queueing included
    "inter_token_latency": TOKEN_SECONDS,  # of each output token after the first of its answer
    "time_per_output_token": TOKEN_SECONDS,  # of a request, the mean after the first token, in its longest answer
    "e2e_latency": REQUEST_SECONDS,
    "queue_time": REQUEST_SECONDS,  # until the first step
    "inference_time": REQUEST_SECONDS,  # from the first step to the last token: prefill and decode
    "prefill_time": REQUEST_SECONDS,  # from the first step to the first token
    "decode_time": REQUEST_SECONDS,  # from the first token to the last
    "prompt_tokens": TOKENS,
    "generation_tokens": TOKENS,  # of all answers
    "max_num_generation_tokens": TOKENS,  # of the longest answer
    "prefill_kv_computed_tokens": TOKENS,  # of the prompt, those that the prefix cache did not have
    "params_n": ANSWERS,
    "params_max_tokens": TOKENS,
    "iteration_tokens": STEP_TOKENS,  # that a step computed
}


class RequestHistograms:
    """Histograms by name: the ``bounds`` of their buckets, one more ``counts``, and the ``sum``.

    Of first tokens ``time_to_first_token``; of later ones ``inter_token_latency``; of steps ``iteration_tokens``. Of complete
    requests ``e2e_latency``, ``queue_time``, ``inference_time`` and its parts ``prefill_time`` and ``decode_time``,
    ``time_per_output_token``, ``prompt_tokens``, ``prefill_kv_computed_tokens``, ``generation_tokens``,
    ``max_num_generation_tokens``, ``params_n`` and ``params_max_tokens``; ``BOUNDS`` says what each is.
    """

    def __init__(self) -> None:
        self._histograms = {name: Histogram(bounds) for name, bounds in BOUNDS.items()}
        self.first_token = self._histograms["time_to_first_token"]
        self.token = self._histograms["inter_token_latency"]
        self.step = self._histograms["iteration_tokens"]

    def end(self, request: Request, output: RequestOutput) -> None:
        """Count a request whose answers are complete."""
        metrics = output.metrics
        if metrics.first_scheduled is None or metrics.first_token is None or metrics.finished is None:
            return
        longest = max(len(completion.token_ids) for completion in output.outputs)
        decode_time = metrics.finished - metrics.first_token
        values = {
            "e2e_latency": metrics.finished - metrics.arrival,
            "queue_time": metrics.first_scheduled - metrics.arrival,
            "inference_time": metrics.finished - metrics.first_scheduled,
            "prefill_time": metrics.first_token - metrics.first_scheduled,
            "decode_time": decode_time,
            "prompt_tokens": metrics.num_prompt_tokens,
            "generation_tokens": metrics.num_output_tokens,
            "max_num_generation_tokens": longest,
            "prefill_kv_computed_tokens": metrics.num_prompt_tokens - metrics.num_cached_tokens,
            "params_n": request.params.n,
        }
        if request.params.max_tokens is not None:
            values["params_max_tokens"] = request.params.max_tokens
        if longest > 1:
            values["time_per_output_token"] = decode_time / (longest - 1)
        for name, value in values.items():
            self._histograms[name].add(value)

    def as_dict(self) -> dict[str, Any]:
        """Return each histogram by name; see ``Histogram.as_dict``."""
        return {name: histogram.as_dict() for name, histogram in self._histograms.items()}
