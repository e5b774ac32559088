"""A table model for exhaustive tests: the last two tokens determine the next token's logits."""

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
from hasten.sampling.guides.base import GuideFactory, no_guide
from hasten.sampling.sampler import Sampler
from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.scheduler import Scheduler
from hasten.speculative.drafters.base import DraftRequest, TargetOutput

BLOCK_SIZE = 4


class TableModel:
    """A random model of ``vocab_size`` tokens."""

    def __init__(self, vocab_size: int, seed: int) -> None:
        self.vocab_size = vocab_size
        self.logits_PV = np.random.default_rng(seed).normal(0, 1.2, size=(vocab_size, vocab_size, vocab_size))

    def logits(self, prefix: Sequence[int]) -> np.ndarray:
        return self.logits_PV[prefix[-2] if len(prefix) > 1 else 0, prefix[-1]]

    def probabilities(self, prefix: Sequence[int]) -> np.ndarray:
        weights = np.exp(self.logits(prefix))
        return weights / weights.sum()


class TableRunner:
    """A runner of a table model.

    Its KV cache holds the token ids, and the logits depend on nothing but the cache.
    """

    def __init__(self, model: TableModel, num_blocks: int) -> None:
        self.model, self.pool = model, np.full((num_blocks, BLOCK_SIZE), -1)

    def run(self, plan: StepPlan) -> RunnerOutput:
        for copy in plan.copies:
            self.pool[copy.target] = self.pool[copy.source]
        prefixes = []
        for row in plan.rows:
            slots = [(block, i) for block in row.block_tables[0] for i in range(BLOCK_SIZE)]
            for i, token in enumerate(row.token_ids):
                self.pool[slots[row.start + i]] = token
            prefixes += [[int(self.pool[slots[i]]) for i in path] for path in _paths(row)[len(row.token_ids) - row.num_logits :]]
        return RunnerOutput(torch.tensor(np.stack([self.model.logits(prefix) for prefix in prefixes]), dtype=torch.float32))

    def move(self, moves: Sequence[SlotMove]) -> None:
        for move in moves:
            self.pool[move.target] = self.pool[move.source]


def _paths(row: RowPlan) -> list[list[int]]:
    """Return the slots that each token of the row attends to."""
    trunk = len(row.token_ids) - len(row.tree)
    paths = [list(range(row.start + i + 1)) for i in range(trunk)]
    for i, parent in enumerate(row.tree, trunk):
        paths.append([*paths[trunk + parent], row.start + i])
    return paths


class TableDrafter:
    """A drafter of chains, sampled from another table model.

    Its drafts carry their distributions if the acceptance rule is rejection sampling.
    """

    aux_layer_indices = ()

    def __init__(self, model: TableModel, length: int, sample: Callable[[DraftRequest, Sequence[int], np.ndarray], int]) -> None:
        self.model, self.length, self.sample = model, length, sample

    def propose(self, requests: Sequence[DraftRequest], output: TargetOutput) -> list[Draft]:
        return [self._draft(request) if request.token_ids[-1] < self.model.vocab_size else NO_DRAFT for request in requests]

    def _draft(self, request: DraftRequest) -> Draft:
        tokens, distributions = list(request.token_ids), []
        for _ in range(self.length):
            q_V = self.model.probabilities(tokens)
            tokens.append(self.sample(request, tokens, q_V))
            distributions.append(torch.tensor(q_V))
        needs_distributions = request.request.params.acceptance == "rejection"
        return Draft.chain(tokens[len(request.token_ids) :], tuple(distributions) if needs_distributions else None)


class TreeDrafter:
    """A drafter of trees that are a function of the last three tokens; no draft token is sampled."""

    aux_layer_indices = ()

    def __init__(self, vocab_size: int, num_nodes: int) -> None:
        self.vocab_size, self.num_nodes = vocab_size, num_nodes

    def propose(self, requests: Sequence[DraftRequest], output: TargetOutput) -> list[Draft]:
        return [self._draft(list(request.token_ids)) for request in requests]

    def _draft(self, text: list[int]) -> Draft:
        draw = random.Random(str(text[-3:]))
        nodes: list[tuple[int, int]] = []
        while len(nodes) < self.num_nodes:
            node = (draw.randrange(self.vocab_size), draw.randrange(-1, len(nodes)))
            if node not in nodes:
                nodes.append(node)
        return Draft(tuple(token for token, _ in nodes), tuple(parent for _, parent in nodes))


def make_engine(model: TableModel, drafter: object, sampler: Sampler, guide: GuideFactory = no_guide) -> Engine:
    config = SchedulerConfig(max_num_seqs=64, max_num_batched_tokens=4096, max_model_len=64, prefix_caching=False)
    kv = KvCacheManager((KvGroup((0,), 1, 4),), 1024, BLOCK_SIZE, keep_cached=False)
    scheduler = Scheduler(config, kv)
    return Engine(TableRunner(model, 1024), scheduler, lambda request: None, sampler, drafter, guide=guide, clock=lambda: 0.0)


def make_request(request_id: int, prompt: Sequence[int], **settings: object) -> Request:
    return Request(request_id=str(request_id), prompt_token_ids=tuple(prompt), params=SamplingParams.from_dict(settings))


class Branches:
    """Enumerates all outcomes of a program's random choices, each with its probability."""

    def __init__(self) -> None:
        self._script: list[int] = []  # the option taken by each choice
        self._num_options: list[int] = []  # the number of options of each choice
        self.weight = 1.0

    def choose(self, weights: Sequence[float]) -> int:
        options = [i for i, weight in enumerate(weights) if weight > 0]
        index = len(self._num_options)
        self._num_options.append(len(options))
        if index == len(self._script):
            self._script.append(0)
        chosen = options[self._script[index]]
        self.weight *= weights[chosen]
        return chosen

    def __iter__(self) -> Iterator[None]:
        """Yield once per outcome: run the program in the loop body, then read ``weight``."""
        while True:
            self._num_options, self.weight = [], 1.0
            yield
            while self._script and self._script[-1] + 1 == self._num_options[len(self._script) - 1]:
                self._script.pop()
            if not self._script:
                return
            self._script[-1] += 1


def expected_probs(
    model: TableModel, prefix: Sequence[int], num_prompt_tokens: int, params: SamplingParams, allowed: Sequence[int]
) -> list[float]:
    """Return the sampling distribution after ``prefix``: mask, penalties, temperature, top-k, top-p."""
    values = [float(np.float32(v)) for v in model.logits(prefix)]
    output = list(prefix[num_prompt_tokens:])
    for token in range(len(values)):
        if token in prefix:
            values[token] *= params.repetition_penalty if values[token] < 0 else 1 / params.repetition_penalty
        values[token] -= params.frequency_penalty * output.count(token) + params.presence_penalty * (token in output)
        if token not in allowed:
            values[token] = -math.inf
    values = [value / params.temperature for value in values]
    if params.top_k is not None:
        least = sorted(values)[-params.top_k]
        values = [value if value >= least else -math.inf for value in values]
    weights = [math.exp(value) for value in values]
    order = sorted(range(len(weights)), key=lambda token: -weights[token])
    total, cumulative = sum(weights), 0.0
    for token in order:
        kept = cumulative < params.top_p * total
        cumulative += weights[token]
        weights[token] *= kept
    return [weight / sum(weights) for weight in weights]
