"""A model that is a table: the next token's logits follow from the last two tokens. It can be worked out by hand, or by force."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from hasten.core.draft import NO_DRAFT, Draft
from hasten.core.plan import RowPlan, RunnerOutput, SlotMove, StepPlan
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams
from hasten.engine.engine import Engine
from hasten.kv.cache_manager import KvCacheManager
from hasten.kv.group import KvGroup
from hasten.sampling.sampler import Sampler
from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.scheduler import Scheduler
from hasten.speculative.drafters.base import DraftRequest, TargetOutput

SIZE = 4  # tokens of a block


class Table:
    """``logits(prefix)`` of ``vocabulary`` tokens."""

    def __init__(self, vocabulary: int, seed: int) -> None:
        self.vocabulary = vocabulary
        self.logits_PV = np.random.default_rng(seed).normal(0, 1.2, size=(vocabulary, vocabulary, vocabulary))

    def logits(self, prefix: Sequence[int]) -> np.ndarray:
        return self.logits_PV[prefix[-2] if len(prefix) > 1 else 0, prefix[-1]]

    def probabilities(self, prefix: Sequence[int]) -> np.ndarray:
        weights = np.exp(self.logits(prefix))
        return weights / weights.sum()


class TableRunner:
    """Its keys and values are the tokens themselves, so it knows what it has computed from the pool and from nowhere else."""

    def __init__(self, table: Table, num_blocks: int) -> None:
        self.table, self.pool = table, np.full(num_blocks * SIZE, -1)

    def run(self, plan: StepPlan) -> RunnerOutput:
        for copy in plan.copies:
            self.pool[copy.target * SIZE : (copy.target + 1) * SIZE] = self.pool[copy.source * SIZE : (copy.source + 1) * SIZE]
        wanted = []
        for row in plan.rows:
            slots = [block * SIZE + i for block in row.block_tables[0] for i in range(SIZE)]
            for i, token in enumerate(row.token_ids):
                self.pool[slots[row.start + i]] = token
            wanted += [[int(self.pool[slots[i]]) for i in path] for path in _paths(row)[len(row.token_ids) - row.num_logits :]]
        return RunnerOutput(torch.tensor(np.stack([self.table.logits(prefix) for prefix in wanted]), dtype=torch.float32))

    def move(self, moves: Sequence[SlotMove]) -> None:
        for move in moves:
            (source, i), (target, j) = move.source, move.target
            self.pool[target * SIZE + j] = self.pool[source * SIZE + i]


def _paths(row: RowPlan) -> list[list[int]]:
    trunk = len(row.token_ids) - len(row.tree)
    paths = [list(range(row.start + i + 1)) for i in range(trunk)]
    for i, parent in enumerate(row.tree, trunk):
        paths.append([*paths[trunk + parent], row.start + i])
    return paths


class TableDrafter:
    """Chains drawn from another table, with that table's distributions where a rule wants them."""

    aux_layer_indices = ()

    def __init__(self, table: Table, length: int, draws: Callable[[DraftRequest, Sequence[int], np.ndarray], int]) -> None:
        self.table, self.length, self.draws = table, length, draws

    def propose(self, requests: Sequence[DraftRequest], seen: TargetOutput) -> list[Draft]:
        return [self._draft(request) if request.token_ids[-1] < self.table.vocabulary else NO_DRAFT for request in requests]

    def _draft(self, request: DraftRequest) -> Draft:
        tokens, proposals = list(request.token_ids), []
        for _ in range(self.length):
            q_V = self.table.probabilities(tokens)
            tokens.append(self.draws(request, tokens, q_V))
            proposals.append(torch.tensor(q_V))
        judged = request.request.params.acceptance == "rejection"
        return Draft.chain(tokens[len(request.token_ids) :], tuple(proposals) if judged else None)


class TreeDrafter:
    """Trees that depend on the text alone: nothing of them was drawn."""

    aux_layer_indices = ()

    def __init__(self, vocabulary: int, num_nodes: int) -> None:
        self.vocabulary, self.num_nodes = vocabulary, num_nodes

    def propose(self, requests: Sequence[DraftRequest], seen: TargetOutput) -> list[Draft]:
        return [self._draft(list(request.token_ids)) for request in requests]

    def _draft(self, text: list[int]) -> Draft:
        draw = random.Random(str(text[-3:]))
        nodes: list[tuple[int, int]] = []
        while len(nodes) < self.num_nodes:
            node = (draw.randrange(self.vocabulary), draw.randrange(-1, len(nodes)))
            if node not in nodes:
                nodes.append(node)
        return Draft(tuple(token for token, _ in nodes), tuple(parent for _, parent in nodes))


def engine(table: Table, drafter: object, sampler: Sampler) -> Engine:
    config = SchedulerConfig(max_num_seqs=64, max_num_batched_tokens=4096, max_model_len=64, prefix_caching=False)
    space = KvCacheManager((KvGroup((0,), 1, 4),), 1024, SIZE, keep_cached=False)
    return Engine(TableRunner(table, 1024), Scheduler(config, space), lambda request: None, sampler, drafter, clock=lambda: 0.0)


def request(number: int, prompt: Sequence[int], **settings: object) -> Request:
    return Request(request_id=str(number), prompt_token_ids=tuple(prompt), params=SamplingParams.from_dict(settings))


class Branches:
    """Every way that a program's choices can fall, each with its probability."""

    def __init__(self) -> None:
        self._script: list[int] = []  # which option is taken, choice by choice
        self._open: list[int] = []  # how many options each choice had
        self.weight = 1.0

    def select_rows(self, weights: Sequence[float]) -> int:
        options = [i for i, weight in enumerate(weights) if weight > 0]
        place = len(self._open)
        self._open.append(len(options))
        if place == len(self._script):
            self._script.append(0)
        chosen = options[self._script[place]]
        self.weight *= weights[chosen]
        return chosen

    def __iter__(self) -> Iterator[None]:
        """Once per way: whoever iterates runs the program and then reads ``weight``."""
        while True:
            self._open, self.weight = [], 1.0
            yield
            while self._script and self._script[-1] + 1 == self._open[len(self._script) - 1]:
                self._script.pop()
            if not self._script:
                return
            self._script[-1] += 1


def by_formula(table: Table, prefix: Sequence[int], num_prompt: int, params: SamplingParams, allowed: Sequence[int]) -> list[float]:
    """What plain decoding draws from after ``prefix``, in plain floats: mask, penalties, temperature, top-k, top-p."""
    values = [float(np.float32(v)) for v in table.logits(prefix)]
    answer = list(prefix[num_prompt:])
    for token in range(len(values)):
        if token in prefix:
            values[token] *= params.repetition_penalty if values[token] < 0 else 1 / params.repetition_penalty
        values[token] -= params.frequency_penalty * answer.count(token) + params.presence_penalty * (token in answer)
        if token not in allowed:
            values[token] = -math.inf
    values = [value / params.temperature for value in values]
    if params.top_k is not None:
        least = sorted(values)[-params.top_k]
        values = [value if value >= least else -math.inf for value in values]
    weights = [math.exp(value) for value in values]
    order = sorted(range(len(weights)), key=lambda token: -weights[token])
    total, reached = sum(weights), 0.0
    for token in order:
        kept = reached < params.top_p * total
        reached += weights[token]
        weights[token] *= kept
    return [weight / sum(weights) for weight in weights]
