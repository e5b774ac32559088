"""Running a workload through an engine and noting when each token came. It knows no report and no command line."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hasten.bench.workload import Workload
from hasten.core.errors import CapacityError, InvalidOption

if TYPE_CHECKING:
    from hasten.entrypoints.llm import LLM


@dataclass(frozen=True, slots=True)
class Run:
    """One repeat. Times in seconds; all requests arrive at 0."""

    seconds: float  # until the last token of the last request
    ttft: tuple[float, ...]  # per request
    itl: tuple[float, ...]  # per token after the first, of all requests
    e2e: tuple[float, ...]  # per request
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


def measure(
    llm: LLM, workload: Workload, *, repeats: int, warmup: int = 1, progress: Callable[[int], None] = lambda done: None
) -> list[Run]:
    """``repeats`` runs after ``warmup`` runs that do not count. ``progress`` hears how many runs are done."""
    if repeats < 1 or warmup < 0:
        raise InvalidOption(
            "repeats or warmup is out of range", got=f"{repeats}, {warmup}", allowed="repeats from 1, warmup from 0"
        )
    room = llm.describe()["max_model_len"]
    if workload.input_len + workload.output_len > room:
        raise InvalidOption(
            "the workload is longer than the context",
            got=f"{workload.input_len} + {workload.output_len} tokens",
            allowed=f"up to {room}",
            remedy="Lower --input-len or --output-len",
        )
    runs = []
    for repeat in range(warmup + repeats):
        runs.append(_run(llm, workload, repeat))
        progress(repeat + 1)
    return runs[warmup:]


def _run(llm: LLM, workload: Workload, repeat: int) -> Run:
    engine = llm.engine
    begin = engine.clock()
    requests = workload.requests(llm.describe()["vocab_size"], repeat, begin)
    came: dict[str, list[float]] = {request.request_id: [] for request in requests}
    cached = 0
    for request in requests:
        engine.add(request)
    while engine.unfinished:
        deltas = engine.step()
        now = engine.clock()
        for delta in deltas:
            came[delta.request_id] += [now] * len(delta.token_ids)
            if delta.output is not None:
                cached += delta.output.metrics.num_cached_tokens
                if delta.output.error is not None:
                    raise CapacityError("a request of the benchmark failed", got=delta.output.error)
    gaps = [late - early for times in came.values() for early, late in itertools.pairwise(times)]
    return Run(
        seconds=engine.clock() - begin,
        ttft=tuple(times[0] - begin for times in came.values()),
        itl=tuple(gaps),
        e2e=tuple(times[-1] - begin for times in came.values()),
        prompt_tokens=sum(len(request.prompt_token_ids) for request in requests),
        cached_tokens=cached,
        output_tokens=sum(len(times) for times in came.values()),
    )
