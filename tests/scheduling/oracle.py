"""A model whose tokens reveal every error in the KV blocks.

A slot of the pool holds a number instead of keys and values. It depends on all tokens up to its position and on the tenant. The
logits depend on every slot that the token attends to, read through the block table. So a stale block, a skipped copy, a lost salt
or a wrong position yields a wrong token. ``ReferenceModel`` computes the same request without a pool, a batch or a scheduler.

The model has two layers, each with a number in every slot. If a token exits after the first layer, its logits depend on the numbers
of that layer alone. Its number in the second layer then tells that it exited early, or is missing if no token attends to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from zlib import crc32

import numpy as np
import torch

from hasten.core.early_exit import REQUEST_CRITERIA, ExitCriterion
from hasten.core.plan import RowPlan, RunnerOutput, SlotMove, StepPlan
from hasten.core.request import Request
from hasten.engine.request_state import beam_search
from hasten.kv.group import KvGroup
from hasten.sampling.row import SamplingRow
from hasten.sampling.sampler import Sampler
from hasten.search.candidates import best_candidates

VOCAB_SIZE = 24
NUM_LAYERS = 2
MASK = (1 << 63) - 1
INJECTED = "injected by the test"
_generator = np.random.default_rng(7)
LOGITS = torch.tensor(_generator.normal(0, 2.0, size=(4099, VOCAB_SIZE)), dtype=torch.float32)
WEIGHTS = _generator.integers(1, 1 << 62, size=4096, dtype=np.int64) | 1


def slot_value(previous: int, token: int, tenant: str, exited: bool = False) -> int:
    """Return the number of a slot. ``previous``: the position before. ``exited``: before the layer."""
    return hash((previous, token, crc32(tenant.encode()), exited)) & MASK


def logits_index(visible: Sequence[tuple[int, np.ndarray]]) -> int:
    """Return the row of ``LOGITS``. ``visible``: per group and layer, the first position and the numbers."""
    with np.errstate(over="ignore"):
        sums = [int((values * WEIGHTS[first : first + len(values)]).sum()) for first, values in visible]
    return hash(tuple(sums)) % len(LOGITS)


def exits(criterion: ExitCriterion, visible: Sequence[tuple[int, np.ndarray]]) -> bool:
    """Whether a token exits after the first layer, by the slots that it attends to there."""
    return logits_index(visible) / len(LOGITS) > criterion.threshold


def block_numbers(token_ids: Sequence[int], tenant: str, block_size: int) -> np.ndarray:
    """Return the numbers of a prefix of whole blocks, of tokens that all layers compute. [block, slot, layer]"""
    values, previous = [], 0
    for token in token_ids:
        previous = slot_value(previous, token, tenant)
        values.append(previous)
    return np.repeat(np.array(values, dtype=np.int64), NUM_LAYERS).reshape(-1, block_size, NUM_LAYERS)


def first_visible(group: KvGroup, position: int) -> int:
    return 0 if group.window is None else max(0, position - group.window + 1)


class OracleRunner:
    """A ``Runner`` that computes the model over a pool."""

    def __init__(self, groups: Sequence[KvGroup], num_blocks: int, block_size: int, tenant_of: Callable[[int], str]) -> None:
        self.groups, self.block_size, self.tenant_of = groups, block_size, tenant_of
        self.pools = [np.full((num_blocks * block_size, NUM_LAYERS), -1, dtype=np.int64) for _ in groups]
        self.fail_next = False

    def run(self, plan: StepPlan) -> RunnerOutput:
        if self.fail_next:
            self.fail_next = False
            raise MemoryError(INJECTED)
        size = self.block_size
        for copy in plan.copies:
            pool = self.pools[copy.group]
            pool[copy.target * size : (copy.target + 1) * size] = pool[copy.source * size : (copy.source + 1) * size]
        # As in a layer of a real model, all rows write before any row reads: this reveals a slot that two rows have.
        rows = [(row, [self._slots(table, row.stop) for table in row.block_tables], _exit_layers(row)) for row in plan.rows]
        for row, slots, layers in rows:
            self._write(row, slots, layers, 0)
        for row, slots, layers in rows:
            criterion = row.exit_plan.criterion if row.exit_plan else None
            if criterion and exits(criterion, self._visible(row, slots, self._paths(row)[-1], 1)):
                layers[:] = [1] * len(layers) if criterion.per_request else [*layers[:-1], 1]
        for row, slots, layers in rows:
            if row.exit_plan is None or row.exit_plan.fill_kv or layers[-1] is None:
                self._write(row, slots, layers, 1)
        indices, exit_layers = [], {}
        for row, slots, layers in rows:
            begin = len(row.token_ids) - row.num_logits
            for path, layer in zip(self._paths(row)[begin:], layers[begin:], strict=True):
                if row.exit_plan:
                    exit_layers[len(indices)] = layer or NUM_LAYERS
                indices.append(logits_index(self._visible(row, slots, path, layer or NUM_LAYERS)))
        return RunnerOutput(LOGITS[indices], exit_layers=exit_layers, num_layers=NUM_LAYERS)

    def _write(self, row: RowPlan, slots: Sequence[np.ndarray], exit_layers: Sequence[int | None], layer: int) -> None:
        tenant = self.tenant_of(row.sequence_id)
        for pool, group_slots in zip(self.pools, slots, strict=True):
            for token, path, exit_layer in zip(row.token_ids, self._paths(row), exit_layers, strict=True):
                parent = path[-2] if len(path) > 1 else row.start - 1
                previous = int(pool[group_slots[parent], layer]) if parent >= 0 else 0
                exited = exit_layer is not None and exit_layer <= layer
                pool[group_slots[path[-1]], layer] = slot_value(previous, token, tenant, exited)

    def _visible(
        self, row: RowPlan, slots: Sequence[np.ndarray], path: Sequence[int], num_layers: int
    ) -> list[tuple[int, np.ndarray]]:
        """Return the visible slots of a token, per group and layer."""
        attended = np.array([*range(row.start), *path])  # but for the window
        visible = []
        for group, pool, group_slots in zip(self.groups, self.pools, slots, strict=True):
            first = first_visible(group, len(attended) - 1)
            assert (group_slots[attended[first:]] >= 0).all(), "a visible position has no block"
            visible += [(first, pool[group_slots[attended[first:]], layer]) for layer in range(num_layers)]
        return visible

    def move(self, moves: Sequence[SlotMove]) -> None:
        size = self.block_size
        for move in moves:
            pool, (source, i), (target, j) = self.pools[move.group], move.source, move.target
            pool[target * size + j] = pool[source * size + i]

    def read_blocks(self, group: int, blocks: Sequence[int]) -> np.ndarray:
        """Return the numbers of whole blocks. [block, slot, layer]"""
        return self.pools[group].reshape(-1, self.block_size, NUM_LAYERS)[blocks]

    def write_blocks(self, group: int, blocks: Sequence[int], numbers: np.ndarray) -> None:
        self.pools[group].reshape(-1, self.block_size, NUM_LAYERS)[blocks] = numbers

    def _paths(self, row: RowPlan) -> list[list[int]]:
        """Return, for each token of the row, the slots of the row that it attends to; its own is the last."""
        tree_start = len(row.token_ids) - len(row.tree)
        paths = [list(range(row.start, row.start + i + 1)) for i in range(tree_start)]
        for i, parent in enumerate(row.tree, tree_start):
            paths.append([*paths[tree_start + parent], row.start + i])
        return paths

    def _slots(self, table: Sequence[int | None], stop: int) -> np.ndarray:
        """Return the slot of every position before ``stop``; negative if the block left the window."""
        blocks = np.array([-1 if block is None else block for block in table], dtype=np.int64)
        slots = blocks[:, None] * self.block_size + np.arange(self.block_size)
        slots[blocks < 0] = -1
        return slots.reshape(-1)[:stop]


def _exit_layers(row: RowPlan) -> list[int | None]:
    planned = row.exit_plan.exit_layers if row.exit_plan else ()
    return list(planned or (None,) * len(row.token_ids))


class ReferenceModel:
    """The same model without a pool: one token at a time. It caches its outputs by request id."""

    def __init__(self, groups: Sequence[KvGroup]) -> None:
        self.groups, self.sampler = groups, Sampler()
        self._beams: dict[str, list[tuple[int, ...]]] = {}
        self._sampled: dict[tuple[str, int], tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def logits(self, token_ids: Sequence[int], tenant: str) -> torch.Tensor:
        return LOGITS[logits_index(self._visible(token_ids, tenant, set(), NUM_LAYERS))][None]

    def _visible(self, token_ids: Sequence[int], tenant: str, exited: set[int], num_layers: int) -> list[tuple[int, np.ndarray]]:
        """Return the visible slots of the last token. ``exited``: positions of tokens that exited early."""
        layers: list[np.ndarray] = []
        for layer in range(num_layers):
            if layer and not exited:  # both layers hold the same numbers
                layers *= 2
                break
            values, previous = [], 0
            for position, token in enumerate(token_ids):
                previous = slot_value(previous, token, tenant, layer > 0 and position in exited)
                values.append(previous)
            layers.append(np.array(values, dtype=np.int64))
        starts = [first_visible(group, len(token_ids) - 1) for group in self.groups]
        return [(first, values[first:]) for first in starts for values in layers]

    def outputs(self, request: Request) -> list[tuple[int, ...]]:
        """Return the output tokens of every answer."""
        if request.params.beam_width is None:
            return [self.layers_and_tokens(request, index)[1] for index in range(request.params.n)]
        if request.request_id not in self._beams:
            self._beams[request.request_id] = self._search(request)
        return self._beams[request.request_id]

    def layers_and_tokens(self, request: Request, index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the exit layer of each output token, and the tokens, of a request without beam search."""
        if (request.request_id, index) not in self._sampled:
            self._sampled[request.request_id, index] = self._sample(request, index)
        return self._sampled[request.request_id, index]

    def _sample(self, request: Request, index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        tokens, num_prompt, params = list(request.prompt_token_ids), len(request.prompt_token_ids), request.params
        layers: list[int] = []
        exited: set[int] = set()
        fixed_layer = request.exit_layer
        stops = {*params.stop_token_ids, *(() if params.ignore_eos else request.eos_token_ids)}
        while True:
            layer = fixed_layer or self._exit_layer(tokens, request, exited)
            if layer < NUM_LAYERS:
                exited.add(len(tokens) - 1)
                fixed_layer = layer if params.exit_rule in REQUEST_CRITERIA else fixed_layer
            logits = LOGITS[logits_index(self._visible(tokens, request.cache_salt, exited, layer))][None]
            (sampled,) = self.sampler.sample(logits, [_row(request, tokens, index)])
            assert sampled is not None
            tokens.append(sampled.token_id)
            layers.append(layer)
            if sampled.token_id in stops or len(tokens) - num_prompt == params.max_tokens:
                return tuple(layers), tuple(tokens[num_prompt:])

    def _exit_layer(self, tokens: Sequence[int], request: Request, exited: set[int]) -> int:
        """Return how many layers compute the last token, by the criterion of the request."""
        criterion = request.params.exit_criterion(len(tokens) - len(request.prompt_token_ids))
        if criterion is not None and exits(criterion, self._visible(tokens, request.cache_salt, exited, 1)):
            return 1
        return NUM_LAYERS

    def _search(self, request: Request) -> list[tuple[int, ...]]:
        search = beam_search(request)
        beams = [list(request.prompt_token_ids)]
        while True:
            logits = torch.cat([self.logits(beam, request.cache_salt) for beam in beams])
            scores = self.sampler.beam_logprobs(logits, [_row(request, beam, i) for i, beam in enumerate(beams)])
            step = search.advance(best_candidates(scores, search.beam_scores, search.num_candidates))
            if step.done:
                return [tuple(best.token_ids) for best in search.best(request.params.n)]
            beams = [[*beams[beam.parent], beam.token_id] for beam in step.beams]


def _row(request: Request, tokens: Sequence[int], index: int) -> SamplingRow:
    return SamplingRow(request.params, tokens, len(request.prompt_token_ids), request.eos_token_ids, index)
