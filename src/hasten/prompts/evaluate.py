"""``evaluate``: the scores of a variant on items, by one model and one metric."""

from __future__ import annotations

import json
import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hasten.core.errors import HastenError, InvalidRequest, PromptTooLong
from hasten.core.sampling_params import SamplingParams
from hasten.core.soft_prompt import SoftPrompt
from hasten.entrypoints.input_processor import Prompt
from hasten.entrypoints.llm import LLM
from hasten.entrypoints.progress import transfer_bar
from hasten.prompts.base import Variant
from hasten.prompts.evaluation import Evaluation, ItemResult
from hasten.prompts.metric import Attempt, Metric, text_digest
from hasten.prompts.run_file import RunFile
from hasten.prompts.task import PromptItem

CHUNK = 64  # items that are generated together; the results of a killed run are lost for these at most
MAX_TOKENS = 64
TIMED_RUNS = 3
# What ``LLM.describe`` says of an engine that changes numbers.
NUMERIC = ("dtype", "kernels", "quantization", "weights", "activations", "kv_cache_dtype", "exits")


def evaluate(
    llm: LLM,
    variant: Variant,
    items: Sequence[PromptItem],
    metric: Metric,
    params: SamplingParams | None = None,
    *,
    chat: bool = False,
    soft_prompt: SoftPrompt | None = None,
    run_file: RunFile | None = None,
    visible: bool = False,
    num_reserved: int = 0,
) -> Evaluation:
    """Return the scores of a variant, one per item.

    ``params``: how outputs are generated; greedy, up to ``MAX_TOKENS`` and one line, if None. ``chat``: each prompt is a user's
    message, rendered by the chat template. ``soft_prompt`` stands before each prompt; a judge's questions have none. ``run_file``:
    results found there are not computed again. ``visible``: show progress on terminals after two seconds. ``num_reserved``:
    positions of the context that stay free. Raises ``HastenError``; all prompts are rendered and checked before one runs.
    """
    assert items, "there is nothing to evaluate"
    begin = time.perf_counter()
    params = params or default_params()
    _check_tokenizer(llm)
    setting = _Setting(llm, metric, params, variant.name, chat, soft_prompt, num_reserved)
    requests = [setting.request(variant, item) for item in items]
    keys = [setting.key(request) for request in requests] if run_file is not None else []
    results: list[ItemResult | None] = [None] * len(items) if run_file is None else [run_file.get(key) for key in keys]
    missing = [index for index, result in enumerate(results) if result is None]
    with transfer_bar(f"evaluating {variant.name}", " items", visible=visible) as progress:
        progress(len(items) - len(missing), len(items))
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            for index, result in zip(chunk, setting.run([requests[index] for index in chunk]), strict=True):
                results[index] = result
                if run_file is not None:
                    run_file.add(keys[index], result)
                progress(1, len(items))
    return Evaluation(
        variant=variant.name,
        metric=metric.name,
        low=metric.low,
        high=metric.high,
        items=tuple(items),
        results=tuple(result for result in results if result is not None),
        seconds=time.perf_counter() - begin,
    )


def default_params(max_tokens: int = MAX_TOKENS, stop: Sequence[str] = ("\n",)) -> SamplingParams:
    """Return greedy settings."""
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, stop=tuple(stop), seed=0)


def prompt_seconds(
    llm: LLM,
    texts: Sequence[str],
    *,
    chat: bool = False,
    soft_prompt: SoftPrompt | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the seconds until the first token of a prompt of median length, with nothing cached.

    It is the median of ``TIMED_RUNS`` requests, each alone.
    """
    prompts = [prompt_token_ids(llm, text, chat=chat) for text in texts]
    lengths = [len(prompt) for prompt in prompts]
    prompt = {"prompt_token_ids": prompts[lengths.index(statistics.median_low(lengths))]}
    params = SamplingParams(temperature=0.0, max_tokens=1, seed=0)
    seconds = []
    for _ in range(TIMED_RUNS):
        begin = clock()
        llm.generate(prompt, params, use_tqdm=False, cache_salt=uuid.uuid4().hex, soft_prompt=soft_prompt)
        seconds.append(clock() - begin)
    return statistics.median(seconds)


def prompt_lengths(
    llm: LLM, variant: Variant, items: Sequence[PromptItem], metric: Metric, params: SamplingParams, *, chat: bool = False
) -> list[int]:
    """Return the number of tokens of each prompt.

    Raises ``HastenError`` if one cannot be rendered or does not fit the context.
    """
    _check_tokenizer(llm)
    setting = _Setting(llm, metric, params, variant.name, chat, None)
    return [setting.request(variant, item).num_tokens for item in items]


def prompt_token_ids(llm: LLM, text: str, *, chat: bool) -> tuple[int, ...]:
    """Return the token ids of a rendered variant, without those of a soft prompt."""
    tokenizer = llm.tokenizer
    return tuple(tokenizer.apply_chat_template([{"role": "user", "content": text}]) if chat else tokenizer.encode(text))


def _check_tokenizer(llm: LLM) -> None:
    if llm.tokenizer is None:
        raise InvalidRequest("this checkpoint has no tokenizer, so it cannot run a task of texts")


@contextmanager
def item_named(item: PromptItem, variant: str) -> Iterator[None]:
    """Name the item's line and the variant in an error."""
    try:
        yield
    except HastenError as error:
        message = f"line {item.line} of the task, variant {variant}: {error.what}"
        raise type(error)(message, got=error.got, allowed=error.allowed, remedy=error.remedy) from error


def check_context(llm: LLM, num_tokens: int, num_more: int, soft_prompt_tokens: int = 0) -> None:
    """Raise ``PromptTooLong`` if a prompt and ``num_more`` tokens after it do not fit the context."""
    max_model_len = llm.describe()["max_model_len"]
    if soft_prompt_tokens + num_tokens + num_more > max_model_len:
        virtual = f"{soft_prompt_tokens} of the soft prompt + " if soft_prompt_tokens else ""
        raise PromptTooLong(
            "prompt and output do not fit the context",
            got=f"{virtual}{num_tokens} + {num_more} tokens",
            allowed=f"up to {max_model_len} tokens",
            remedy="Shorten the prompt, lower max_tokens or raise max_model_len",
        )


@dataclass(frozen=True, slots=True)
class _Request:
    item: PromptItem
    prompt: Prompt
    num_tokens: int  # of the prompt, virtual ones included


@dataclass(frozen=True, slots=True)
class _Setting:
    """One variant with one model, metric and way to generate."""

    llm: LLM
    metric: Metric
    params: SamplingParams
    variant: str
    chat: bool
    soft_prompt: SoftPrompt | None
    num_reserved: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    def request(self, variant: Variant, item: PromptItem) -> _Request:
        """Return the prompt of an item. Raises ``InvalidRequest`` if it does not fit the context."""
        num_virtual = 0 if self.soft_prompt is None else self.soft_prompt.num_tokens
        with item_named(item, self.variant):
            text = variant.render(item.variables)
            token_ids = prompt_token_ids(self.llm, text, chat=self.chat)
            num_more = (self.params.max_tokens or 1) if self.metric.needs_output else 0
            check_context(self.llm, len(token_ids), num_more + self.num_reserved, num_virtual)
        # Prompt and reference are tokenised as one text, except after a chat template.
        return _Request(item, {"prompt_token_ids": token_ids} if self.chat else text, num_virtual + len(token_ids))

    def key(self, request: _Request) -> str:
        """Return the digest of all that a result depends on."""
        if not self.facts:
            digest, described = self.llm.digest(), self.llm.describe()
            self.facts.update(
                model=[digest.weights, digest.text, *(described[name] for name in NUMERIC)],
                metric=self.metric.identity,
                params=repr(self.params) if self.metric.needs_output else None,
                soft_prompt=None if self.soft_prompt is None else self.soft_prompt.digest,
            )
        item = request.item
        parts = (self.facts, request.prompt, sorted(item.variables.items()), item.references)
        return text_digest("hasten/prompt-run/1", json.dumps(parts, default=list))

    def run(self, requests: Sequence[_Request]) -> Iterator[ItemResult]:
        """Yield one result per request, in order. The texts of all are generated together."""
        outputs: Sequence[Any] = [None] * len(requests)
        if self.metric.needs_output:
            prompts = [request.prompt for request in requests]
            outputs = self.llm.generate(prompts, self.params, use_tqdm=False, soft_prompt=self.soft_prompt)
        for request, output in zip(requests, outputs, strict=True):
            with item_named(request.item, self.variant):
                if output is not None and output.error is not None:
                    raise HastenError(f"the request failed: {output.error}")
                text = None if output is None else output.outputs[0].text
                scored = self.metric.score(Attempt(request.item, request.prompt, text, self.soft_prompt), self.llm)
            yield ItemResult(
                score=scored.score,
                output=text,
                prompt_tokens=request.num_tokens,
                output_tokens=0 if output is None else output.metrics.num_output_tokens,
                metric_tokens=scored.num_tokens,
            )
