"""``Workload``, and ``measure``, which runs it on an engine and records when each token arrives."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from hasten.core.check_fields import Fault, check_fields
from hasten.core.engine_options import ContextLength, Seed
from hasten.core.errors import CapacityError, InvalidOption
from hasten.core.field_type import Range
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from hasten.entrypoints.llm import LLM

MAX_RUNS = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Prompts of random token ids and outputs of a fixed length, so that every run does the same work.

    Raises ``InvalidOption`` naming every number that is out of range.
    """

    num_prompts: Annotated[int, Range(1, 10**6)]
    input_len: ContextLength  # tokens of each prompt
    output_len: ContextLength  # tokens of each output
    shared_len: Annotated[int, Range(0, 2**24)] = 0  # tokens of the prefix that all prompts share
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self, "workload setting", InvalidOption, self._conflicts)

    def _conflicts(self) -> Iterator[Fault]:
        if self.shared_len >= self.input_len:
            yield Fault("shared_len", f"0 to {self.input_len - 1}, below input_len")

    def prompts(self, vocab_size: int, repeat: int) -> list[tuple[int, ...]]:
        """Return the prompts of one run.

        They differ between runs, so that no run hits the prefix cache of an earlier one.
        """
        rng = random.Random(f"{self.seed}/{repeat}")
        shared = rng.choices(range(vocab_size), k=self.shared_len)
        suffix_len = self.input_len - self.shared_len
        return [(*shared, *rng.choices(range(vocab_size), k=suffix_len)) for _ in range(self.num_prompts)]

    def requests(self, vocab_size: int, repeat: int, arrival: float) -> list[Request]:
        """Return greedy requests that ignore end-of-sequence tokens, so that all outputs have equal lengths."""
        params = SamplingParams(temperature=0.0, max_tokens=self.output_len, ignore_eos=True, seed=self.seed)
        return [
            Request(request_id=f"bench-{repeat}-{number}", prompt_token_ids=prompt, params=params, arrival=arrival)
            for number, prompt in enumerate(self.prompts(vocab_size, repeat))
        ]


@dataclass(frozen=True, slots=True)
class Run:
    """The measurements of one run. Times in seconds; all requests arrive at 0."""

    seconds: float  # until the last token of the last request
    ttft: tuple[float, ...]  # per request
    itl: tuple[float, ...]  # per token after the first, of all requests
    e2e: tuple[float, ...]  # per request
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


def measure(
    llm: LLM, workload: Workload, *, repeats: int, warmup: int = 1, progress: Callable[[int], None] = lambda num_runs: None
) -> list[Run]:
    """Return ``repeats`` runs, after ``warmup`` discarded ones.

    ``progress`` receives the number of completed runs. Raises ``InvalidOption`` for counts out of range and for requests longer
    than the context.
    """
    if not (1 <= repeats <= MAX_RUNS and 0 <= warmup <= MAX_RUNS):
        raise InvalidOption(
            "repeats or warmup is out of range",
            got=f"{repeats}, {warmup}",
            allowed=f"repeats from 1, warmup from 0, up to {MAX_RUNS}",
        )
    max_model_len = llm.describe()["max_model_len"]
    if workload.input_len + workload.output_len > max_model_len:
        raise InvalidOption(
            "the workload is longer than the context",
            got=f"{workload.input_len} + {workload.output_len} tokens",
            allowed=f"up to {max_model_len}",
            remedy="Lower --input-len or --output-len",
        )
    runs = []
    for repeat in range(warmup + repeats):
        runs.append(_run(llm, workload, repeat))
        progress(repeat + 1)
    return runs[warmup:]


def _run(llm: LLM, workload: Workload, repeat: int) -> Run:
    engine = llm.engine
    start = engine.clock()
    requests = workload.requests(llm.describe()["vocab_size"], repeat, start)
    token_times: dict[str, list[float]] = {request.request_id: [] for request in requests}
    cached_tokens = 0
    for request in requests:
        engine.add(request)
    while engine.has_unfinished_requests:
        deltas = engine.step()
        now = engine.clock()
        for delta in deltas:
            token_times[delta.request_id] += [now] * len(delta.token_ids)
            if delta.output is not None:
                cached_tokens += delta.output.metrics.num_cached_tokens
                if delta.output.error is not None:
                    raise CapacityError("a request of the benchmark failed", got=delta.output.error)
    return Run(
        seconds=engine.clock() - start,
        ttft=tuple(times[0] - start for times in token_times.values()),
        itl=tuple(late - early for times in token_times.values() for early, late in itertools.pairwise(times)),
        e2e=tuple(times[-1] - start for times in token_times.values()),
        prompt_tokens=sum(len(request.prompt_token_ids) for request in requests),
        cached_tokens=cached_tokens,
        output_tokens=sum(len(times) for times in token_times.values()),
    )
