"""Scorers: logits and log-probabilities of given tokens, from the engine's runner and KV pool.

So chunked prefill, block tables and the pool's dtype are part of what they measure. A scorer works between two steps of the engine
and does not affect running requests. Shape suffixes: R rows with logits · V vocabulary.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hasten.core.early_exit import ExitPlan
from hasten.core.plan import BlockCopy, RowPlan, Runner, StepPlan
from hasten.core.request import Request
from hasten.core.result import TokenLogprob
from hasten.engine.direct_steps import DirectSteps, not_finite
from hasten.kv.cache_manager import KvCacheManager
from hasten.kv.prefix_hash import cache_salt
from hasten.sampling.sampler import rows_are_finite
from hasten.sampling.token_logprobs import token_logprobs

# Logits in memory at a time, tokens times vocabulary: 128 MiB of float32, or 220 tokens of a vocabulary of 151,936.
MAX_LOGITS = 1 << 25
MAX_PROMPT_CHUNK = 128  # tokens of a prompt whose logits are in memory at a time


class LogitsScorer(DirectSteps):
    """The ``Scorer`` of an engine. Its blocks never enter the prefix cache."""

    def logits(
        self, token_ids: Sequence[int], chunk_size: int, before_step: Callable[[], None] = lambda: None
    ) -> Generator[Tensor, None, None]:
        """See ``Scorer``; ``chunk_size`` is at most ``max_num_batched_tokens``.

        ``before_step`` is called before each step is planned; it may run other requests, and may raise. Raises ``CapacityError``
        if the KV pool is too small.
        """
        assert 1 <= chunk_size <= self.max_num_batched_tokens, (chunk_size, self.max_num_batched_tokens)
        kv, sequence_id = self.kv, self.new_sequence_id()
        kv.open(sequence_id, "", ())
        try:
            for start in range(0, len(token_ids), chunk_size):
                chunk = token_ids[start : start + chunk_size]
                before_step()
                self.check_open(sequence_id)
                planned = self.plan_row(sequence_id, start, chunk, len(chunk))
                if planned is None:
                    raise self.capacity_error("the text", len(token_ids), "Use a shorter window")
                yield self.runner.run(StepPlan((planned[0],))).logits
                kv.commit(sequence_id, token_ids, start + len(chunk), num_cacheable_tokens=0)
        finally:
            if kv.is_open(sequence_id):
                kv.close(sequence_id)

    def prompt_logprobs(
        self, token_ids: Sequence[int], top: int, before_step: Callable[[], None] = lambda: None
    ) -> tuple[TokenLogprob | None, ...]:
        """Return the log-probability of each token after those before it; None for the first.

        ``top``: how many of the most likely tokens to report beside each. Raises as ``logits`` does, and ``HastenError`` if logits
        are not finite.
        """
        found: list[TokenLogprob | None] = [None]
        chunk_size = min(self.max_num_batched_tokens, MAX_PROMPT_CHUNK)
        with closing(self.logits(token_ids[:-1], chunk_size, before_step)) as chunks:
            for logits_TV in chunks:
                if not all(rows_are_finite(logits_TV)):
                    raise not_finite()
                targets = token_ids[len(found) : len(found) + len(logits_TV)]
                found += token_logprobs(logits_TV, targets, [top] * len(targets))
        return tuple(found)


@dataclass(slots=True, eq=False)
class _Prompt:
    sequence_id: int
    request: Request
    exit_layer: int | None  # layers that compute its last chunk and the continuations; None: not known yet, or no exit rule
    num_cacheable_tokens: int  # the prefix cache may hold this many leading tokens, virtual ones included

    def exit_plan(self, num_tokens: int, *, is_last: bool = False) -> ExitPlan | None:
        """Return the exit plan of a row. ``is_last``: the row ends the prompt, which the criterion tests."""
        params = self.request.params
        if params.exit_rule == "none":
            return None
        if self.exit_layer is not None:
            return ExitPlan((self.exit_layer,) * num_tokens, fill_kv=False)
        return ExitPlan(criterion=params.exit_criterion(0) if is_last else None, fill_kv=False)


@dataclass(slots=True, eq=False)
class _Continuation:
    token_ids: tuple[int, ...]
    sequence_id: int | None = None  # None: it has no blocks yet
    logprobs: list[float] = field(default_factory=list)  # of its leading tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """The prompt scores the first token and each computed token the next, so the last is not computed."""
        return len(self.token_ids) - len(self.logprobs)


class ContinuationScorer(DirectSteps):
    """Log-probabilities of token sequences after one prompt.

    The prompt is computed once, and every continuation is a fork of it. A token's logits score the token after it. So the prompt
    scores all first tokens, and no step computes a last token::

        prompt  p p p P ──┬─ a a a (a)       P scores the first token of each
                          ├─ (b)
                          └─ c c (c)         a step computes as many as its token budget holds

    An exit rule chooses one layer for prompt and continuations (FastBERT, Liu et al., 2020, arXiv 2004.02178).
    """

    def __init__(
        self, runner: Runner, kv: KvCacheManager, max_num_batched_tokens: int, before_step: Callable[[], None] = lambda: None
    ) -> None:
        """``before_step`` is called before each step is planned.

        It may run other requests, and may raise; the scorer then releases its blocks.
        """
        super().__init__(runner, kv, max_num_batched_tokens)
        self._before_step = before_step

    def score(self, request: Request, continuations: Sequence[Sequence[int]]) -> tuple[list[tuple[float, ...]], int | None]:
        """Return the log-probabilities of each continuation's tokens, and the exit layer.

        The exit layer is None without an exit rule, and a rule must choose one layer per request. No continuation may be empty.
        Afterwards the prefix cache holds the prompt's blocks only. Raises ``CapacityError`` if the KV pool is too small, and
        ``HastenError`` if logits are not finite.
        """
        prompt = _Prompt(self.new_sequence_id(), request, request.exit_layer, request.num_initial_tokens)
        scored = [_Continuation(tuple(token_ids)) for token_ids in continuations]
        try:
            logprobs_V = self._prefill(prompt)
            for continuation in scored:
                continuation.logprobs.append(float(logprobs_V[continuation.token_ids[0]]))
            self._score(prompt, scored, min(self.max_num_batched_tokens, max(1, MAX_LOGITS // len(logprobs_V))))
        finally:
            for sequence_id in [prompt.sequence_id, *(continuation.sequence_id for continuation in scored)]:
                if sequence_id is not None and self.kv.is_open(sequence_id):
                    self.kv.close(sequence_id)
        return [tuple(continuation.logprobs) for continuation in scored], prompt.exit_layer

    def _prefill(self, prompt: _Prompt) -> Tensor:
        """Compute the prompt after its cached prefix; return the next token's log-probabilities [V]."""
        kv, request, sequence_id = self.kv, prompt.request, prompt.sequence_id
        token_ids = request.initial_token_ids
        salt = cache_salt(request.cache_salt, request.exit_layer)  # requests that generate share these blocks
        hashes = kv.block_hashes(salt, token_ids)
        kv.use_pins(salt, hashes, token_ids)
        start = kv.open(sequence_id, salt, hashes)
        while True:
            chunk = token_ids[start : start + self.max_num_batched_tokens]
            stop = start + len(chunk)
            is_last = stop == len(token_ids)
            exit_plan = prompt.exit_plan(len(chunk), is_last=is_last)
            self._before_step()
            self.check_open(sequence_id)
            planned = self.plan_row(sequence_id, start, chunk, int(is_last), exit_plan)
            if planned is None:
                raise self.capacity_error("the prompt", len(token_ids))
            output = self.runner.run(StepPlan((planned[0],), tuple(planned[1])))
            if is_last and not all(rows_are_finite(output.logits)):
                kv.discard(sequence_id)  # NaN must not enter the prefix cache
                raise not_finite()
            if is_last and exit_plan is not None and prompt.exit_layer is None:
                prompt.exit_layer = output.exit_layers[0]
                if prompt.exit_layer != output.num_layers:
                    prompt.num_cacheable_tokens = start  # later layers have no keys and values of this chunk
            kv.commit(sequence_id, token_ids, stop, prompt.num_cacheable_tokens)
            if is_last:
                return output.logits[0].log_softmax(dim=0)
            start = stop

    def _score(self, prompt: _Prompt, continuations: Sequence[_Continuation], token_budget: int) -> None:
        """Score all tokens after the first ones, with at most ``token_budget`` tokens per step."""
        waiting = deque(continuation for continuation in continuations if continuation.num_uncomputed_tokens)
        while waiting:
            self._before_step()
            self.check_open(prompt.sequence_id)
            rows: list[RowPlan] = []
            copies: list[BlockCopy] = []
            batch: list[_Continuation] = []
            remaining = token_budget
            while waiting and remaining:
                planned = self._plan_continuation(prompt, waiting[0], remaining, may_drop_pins=not rows)
                if planned is None:
                    break  # it waits for the blocks of this batch
                rows.append(planned[0])
                copies += planned[1]
                remaining -= len(planned[0].token_ids)
                batch.append(waiting.popleft())
            if not rows:
                num_tokens = prompt.request.num_initial_tokens + len(waiting[0].token_ids)
                raise self.capacity_error("the prompt with one continuation", num_tokens)
            self._run(prompt, batch, StepPlan(tuple(rows), tuple(copies)))
            waiting.extendleft(c for c in batch if c.num_uncomputed_tokens)  # at most the last one, which the budget cut

    def _plan_continuation(
        self, prompt: _Prompt, continuation: _Continuation, max_tokens: int, *, may_drop_pins: bool
    ) -> tuple[RowPlan, list[BlockCopy]] | None:
        if continuation.sequence_id is None:
            continuation.sequence_id = self.new_sequence_id()
            self.kv.fork(prompt.sequence_id, continuation.sequence_id)
        begin, count = len(continuation.logprobs) - 1, min(max_tokens, continuation.num_uncomputed_tokens)
        token_ids, start = continuation.token_ids[begin : begin + count], prompt.request.num_initial_tokens + begin
        plan = prompt.exit_plan(count)
        return self.plan_row(continuation.sequence_id, start, token_ids, count, plan, may_drop_pins=may_drop_pins)

    def _run(self, prompt: _Prompt, batch: Sequence[_Continuation], plan: StepPlan) -> None:
        """Run a step with a row per continuation; append the log-probabilities of the tokens it scores."""
        logits_RV = self.runner.run(plan).logits
        if not all(rows_are_finite(logits_RV)):
            raise not_finite()
        targets: list[int] = []
        for continuation, row in zip(batch, plan.rows, strict=True):
            begin = len(continuation.logprobs)
            targets += continuation.token_ids[begin : begin + len(row.token_ids)]
        targets_R1 = torch.tensor(targets, dtype=torch.int64, device=logits_RV.device)[:, None]
        logprobs = iter(logits_RV.log_softmax(dim=1).gather(1, targets_R1)[:, 0].tolist())
        for continuation, row in zip(batch, plan.rows, strict=True):
            continuation.logprobs += itertools.islice(logprobs, len(row.token_ids))
            if continuation.num_uncomputed_tokens:
                # Only the prompt's blocks are published: continuations would evict blocks of more use.
                self.kv.commit(row.sequence_id, prompt.request.initial_token_ids, row.stop, prompt.num_cacheable_tokens)
            else:
                self.kv.close(row.sequence_id)
