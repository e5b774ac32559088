"""``ContinuationScorer``: log-probabilities of token sequences after one prompt, by the path that serves.

The prompt is computed once, and every continuation is a fork of it. A token gives the log-probability of the one after it, so the
first needs no step of its own, and nobody computes the last::

    prompt  p p p P ──┬─ a a a (a)       P gives the first token of each
                      ├─ (b)
                      └─ c c (c)         as many as the budget of a step holds are computed together

It knows no text, and of the settings of a request only when its tokens leave the model early (FastBERT, Liu et al., 2020, arXiv
2004.02178: the whole request at one layer). Shape suffixes: R rows whose logits are wanted · V vocabulary.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hasten.core.early_exit import ExitPlan
from hasten.core.errors import CapacityError, HastenError
from hasten.core.plan import BlockCopy, RowPlan, Runner, StepPlan
from hasten.core.request import Request
from hasten.kv.cache_manager import KvCacheManager
from hasten.sampling.sampler import rows_are_finite

# Logits in memory at a time, tokens times vocabulary: 128 MiB of float32. With 151,936 words a step scores 220 tokens.
MOST_LOGITS = 1 << 25


@dataclass(slots=True, eq=False)
class _Trunk:
    """The prompt in the pool."""

    sequence_id: int
    request: Request
    exit_layer: int | None  # how many layers compute its last row and all that follows; None: not known yet, or no exit rule
    num_cacheable_tokens: int  # its tokens that others may find

    def exits(self, count: int, *, last: bool = False) -> ExitPlan | None:
        """Of a row of ``count`` tokens. ``last``: it ends the prompt, and its last token may say how deep the request goes."""
        params = self.request.params
        if params.exit_rule == "none":
            return None
        if self.exit_layer is not None:
            return ExitPlan((self.exit_layer,) * count, fill=False)
        return ExitPlan(test=params.exit_criterion(0) if last else None, fill=False)


@dataclass(slots=True, eq=False)
class _Line:
    """One continuation on its way."""

    token_ids: tuple[int, ...]
    logprobs: list[float] = field(default_factory=list)  # of its first tokens, as far as they are known
    sequence_id: int | None = None  # None: it has no blocks yet

    @property
    def num_computed(self) -> int:
        """Each of them gave one log-probability, and the prompt the first."""
        return len(self.logprobs) - 1

    @property
    def num_left(self) -> int:
        """Tokens to compute. Nothing follows the last one."""
        return len(self.token_ids) - len(self.logprobs)


class ContinuationScorer:
    """Takes its blocks from the engine's own space, and may be used between steps: whoever runs does not notice."""

    def __init__(self, runner: Runner, kv: KvCacheManager, max_num_batched_tokens: int) -> None:
        """``max_num_batched_tokens``: the most tokens that one step may compute."""
        self._runner, self._kv, self._max_num_batched_tokens = runner, kv, max_num_batched_tokens
        self._ids = itertools.count(-1, -1)  # the scheduler numbers its sequences from 0 up

    def score(self, request: Request, continuations: Sequence[Sequence[int]]) -> tuple[list[tuple[float, ...]], int | None]:
        """The log-probabilities of each continuation's tokens, and how many layers computed all of it, None without an exit rule.

        The rule of the request is one that holds for all of its tokens, and no continuation is empty. Raises ``CapacityError`` if a
        continuation does not fit the KV pool, and ``HastenError`` if logits are not finite. Nothing is held after it, but for the
        prompt's blocks in the prefix cache.
        """
        trunk = _Trunk(self._new_id(), request, request.exit_layer, len(request.prompt_token_ids))
        lines = [_Line(tuple(token_ids)) for token_ids in continuations]
        try:
            after_V = self._read(trunk)
            for line in lines:
                line.logprobs.append(float(after_V[line.token_ids[0]]))
            self._follow(trunk, lines, min(self._max_num_batched_tokens, max(1, MOST_LOGITS // len(after_V))))
        finally:
            for sequence_id in [trunk.sequence_id, *(line.sequence_id for line in lines)]:
                if sequence_id is not None and self._kv.is_open(sequence_id):
                    self._kv.close(sequence_id)
        return [tuple(line.logprobs) for line in lines], trunk.exit_layer

    def _read(self, trunk: _Trunk) -> Tensor:
        """Compute what the prefix cache has not of the prompt. Log-probabilities of the token after it [V]."""
        kv, sequence_id, token_ids = self._kv, trunk.sequence_id, trunk.request.prompt_token_ids
        salt = _salt(trunk.request)
        start = kv.open(sequence_id, salt, kv.block_hashes(salt, token_ids))
        while True:
            stop = min(start + self._max_num_batched_tokens, len(token_ids))
            last = stop == len(token_ids)
            copies = kv.reserve(sequence_id, start, stop)
            if copies is None:
                raise self._too_small(len(token_ids), "the prompt")
            exits = trunk.exits(stop - start, last=last)
            row = RowPlan(sequence_id, start, token_ids[start:stop], kv.block_tables(sequence_id), int(last), exit_plan=exits)
            output = self._runner.run(StepPlan((row,), tuple(copies)))
            if last:
                if not all(rows_are_finite(output.logits)):
                    kv.discard(sequence_id)  # NaN must never enter the prefix cache
                    raise _unusable()
                if exits is not None and trunk.exit_layer is None:
                    trunk.exit_layer = output.exit_layers[0]
                    if trunk.exit_layer != output.num_layers:
                        trunk.num_cacheable_tokens = start  # the deeper layers have no keys and values of this row
                kv.commit(sequence_id, token_ids, stop, trunk.num_cacheable_tokens)
                return output.logits[0].log_softmax(dim=0)
            kv.commit(sequence_id, token_ids, stop)
            start = stop

    def _follow(self, trunk: _Trunk, lines: Sequence[_Line], budget: int) -> None:
        """Compute all but the last token of every line, at most ``budget`` tokens a step."""
        waiting = deque(line for line in lines if line.num_left)
        while waiting:
            rows: list[RowPlan] = []
            copies: list[BlockCopy] = []
            left, taken = budget, list[_Line]()
            while waiting and left:
                planned = self._plan(trunk, waiting[0], min(left, waiting[0].num_left))
                if planned is None:
                    break  # it waits for the blocks of those before it
                rows.append(planned[0])
                copies += planned[1]
                left -= len(rows[-1].token_ids)
                taken.append(waiting.popleft())
            if not rows:
                num_prompt = len(trunk.request.prompt_token_ids)
                raise self._too_small(num_prompt + len(waiting[0].token_ids), "the prompt with one continuation")
            self._run(trunk, taken, StepPlan(tuple(rows), tuple(copies)))
            waiting.extendleft(line for line in taken if line.num_left)  # the last one at most: its step had no room for more

    def _plan(self, trunk: _Trunk, line: _Line, count: int) -> tuple[RowPlan, list[BlockCopy]] | None:
        """The next ``count`` tokens of the line; None if there are no blocks for them."""
        if line.sequence_id is None:
            line.sequence_id = self._new_id()
            self._kv.fork(trunk.sequence_id, line.sequence_id)
        begin = line.num_computed
        start = len(trunk.request.prompt_token_ids) + begin
        copies = self._kv.reserve(line.sequence_id, start, start + count)
        if copies is None:
            return None
        now, tables = line.token_ids[begin : begin + count], self._kv.block_tables(line.sequence_id)
        return RowPlan(line.sequence_id, start, now, tables, count, exit_plan=trunk.exits(count)), copies

    def _run(self, trunk: _Trunk, lines: Sequence[_Line], plan: StepPlan) -> None:
        """One step, a row for each line: each learns the log-probabilities of the tokens after those of its row."""
        logits_RV = self._runner.run(plan).logits
        if not all(rows_are_finite(logits_RV)):
            raise _unusable()
        counts = [len(row.token_ids) for row in plan.rows]
        begins = [line.num_computed + 1 for line in lines]
        asked = [line.token_ids[begin : begin + count] for line, begin, count in zip(lines, begins, counts, strict=True)]
        asked_R1 = torch.tensor([[token] for tokens in asked for token in tokens], device=logits_RV.device)
        found = iter(logits_RV.log_softmax(dim=1).gather(1, asked_R1)[:, 0].tolist())
        for line, row, count in zip(lines, plan.rows, counts, strict=True):
            line.logprobs += itertools.islice(found, count)
            if line.num_left:
                # Its own blocks are published for nobody: they would drive what is asked for again out of the cache.
                self._kv.commit(row.sequence_id, trunk.request.prompt_token_ids, row.stop, trunk.num_cacheable_tokens)
            else:
                self._kv.close(row.sequence_id)

    def _new_id(self) -> int:
        return next(number for number in self._ids if not self._kv.is_open(number))

    def _too_small(self, num_tokens: int, what: str) -> CapacityError:
        return CapacityError(
            f"{what} does not fit the KV pool",
            got=f"{num_tokens} tokens",
            allowed=f"{self._kv.num_blocks} blocks of {self._kv.block_size} tokens, less what running requests hold",
            remedy="Shorten it, wait for running requests, or raise kv_cache_memory",
        )


def _salt(request: Request) -> str:
    """As the scheduler has it: prompts that were scored and prompts that were answered share their blocks.

    Without a prefix cache nobody finds them: requests have salts of their own, and what is given back is forgotten.
    """
    salt = f"tenant:{request.cache_salt}"
    return salt if request.exit_layer is None else f"depth:{request.exit_layer}/{salt}"


def _unusable() -> HastenError:
    return HastenError("the model's logits for these texts are not finite numbers (NaN or infinity)")
