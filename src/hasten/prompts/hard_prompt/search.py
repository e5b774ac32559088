"""``HardPromptSearch``: what methods that search by gradients share.

It reads the model a second time, in float32, because the engine computes no gradients. A method proposes one hard prompt per step.
The best ones by the loss on train items are the finalists. The metric on the validation items chooses among them and the initial
prompt.

Shape suffixes: L tokens of the hard prompt · E hidden size · V vocabulary.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from hasten.core.errors import InvalidOption, show
from hasten.layers.formats.dense import Dense
from hasten.prompts.evaluation import Evaluation
from hasten.prompts.hard_prompt.item_loss import ItemLoss
from hasten.prompts.hard_prompt.printable_tokens import printable_tokens
from hasten.prompts.hard_prompt.prompt_layout import PromptLayout
from hasten.prompts.hard_prompt.search_state import Finalist, SearchState, StateFolder
from hasten.prompts.load_variant import TemplateVariant
from hasten.prompts.metric import text_digest
from hasten.prompts.optimizer import Candidate, Workbench
from hasten.prompts.task import PromptItem
from hasten.training.corpus import derived_seed
from hasten.training.target_model import TargetModel, trainable_spec

SAVE_SECONDS = 5.0  # between saves of the state
COMPARED_BATCHES = 4  # finalists are compared on the train items of so many batches, at most
_DRAWS = 256  # random tokens that are tried for a position of the initial hard prompt


class SearchOptions(Protocol):
    """The options that all methods have."""

    @property
    def length(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def batch(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Proposal:
    """The result of a step."""

    tensors: Mapping[str, Tensor]  # the method's state after it
    ids: tuple[int, ...] | None  # a hard prompt that reads back, or None


class Method(Protocol):
    """A way to search.

    ``advance`` depends on its arguments only, so that a resumed search goes on as before.
    """

    def start(self, ids: Sequence[int]) -> Mapping[str, Tensor]:
        """Return the state before the first step, which begins with these tokens."""
        ...

    def advance(self, step: int, tensors: Mapping[str, Tensor]) -> Proposal:
        """Run one step; ``step`` counts from 0. It changes no tensor in place."""
        ...


class HardPromptSearch:
    """``loss`` and ``batch`` know the train items by their index."""

    def __init__(self, name: str, bench: Workbench, initial: TemplateVariant, options: SearchOptions) -> None:
        """Raise ``HastenError``, before any step, for a task, a model or a length that cannot work."""
        if not bench.train or not bench.validation:
            raise InvalidOption("a hard prompt needs train items and validation items", remedy="Change the fractions of the split")
        self.name, self._bench, self._initial, self._options = name, bench, initial, options
        folder = Path(bench.llm.describe()["folder"])
        trainable_spec(folder)  # before anything is computed
        self._before = bench.evaluate(initial, bench.validation)
        items = (*bench.train, *bench.validation)
        self.layout = PromptLayout(bench.llm.tokenizer, initial, items, bench.options)
        self._check_length()
        target = TargetModel.load(folder)
        self.loss = ItemLoss(target, self.layout.head_ids, self.layout.rows[: len(bench.train)])
        table = target.decoder.embedding.format
        assert isinstance(table, Dense)
        self.table_VE = table.weight.detach()
        tokens = torch.tensor(printable_tokens(bench.llm.tokenizer, len(self.table_VE)), dtype=torch.int64, device="cpu")
        self.is_printable_V = torch.zeros(len(self.table_VE), dtype=torch.bool, device="cpu").index_fill(0, tokens, True)
        self._compared = self._shuffled(0)[: COMPARED_BATCHES * options.batch]

    def generator(self, step: int) -> torch.Generator:
        """Return the generator of the random numbers of a step."""
        return torch.Generator().manual_seed(derived_seed(self._bench.seed, f"hard prompt {self.name}", step))

    def batch(self, step: int) -> list[int]:
        """Return the train items of a step. Each epoch shuffles them."""
        num_items = len(self._bench.train)
        size = min(self._options.batch, num_items)
        places = [divmod(place, num_items) for place in range(step * size, (step + 1) * size)]
        orders = {epoch: self._shuffled(epoch) for epoch in {epoch for epoch, _ in places}}
        return [orders[epoch][index] for epoch, index in places]

    def run(self, method: Method) -> Candidate:
        """Return the best prompt by the validation items.

        A ``KeyboardInterrupt`` leaves the state of the last step. Raises ``HastenError``.
        """
        folder = StateFolder(self._bench.folder / f"{self.name}-{self._digest()[:16]}", self._digest())
        ids = self._initial_ids()
        state = SearchState(0, method.start(ids), (self._finalist(ids),), 0)
        saved = folder.load(state, self._options.steps, len(self.table_VE))
        if saved is not None:
            self._bench.on_log(f"{self.name}: resuming after step {saved.step} of {self._options.steps}")
        state = saved or dataclasses.replace(state, num_tokens=self.loss.num_tokens)
        saved_at = time.monotonic()
        try:
            while state.step < self._options.steps:
                state = self._next(method, state)
                self._bench.on_progress(state.step, self._options.steps)
                if time.monotonic() - saved_at >= SAVE_SECONDS:
                    folder.save(state)
                    saved_at = time.monotonic()
        finally:
            folder.save(state)
        self._bench.num_tokens += state.num_tokens
        return self._choose(state.finalists)

    def _next(self, method: Method, state: SearchState) -> SearchState:
        num_before = self.loss.num_tokens
        proposal = method.advance(state.step, state.tensors)
        finalists = state.finalists
        if proposal.ids is not None and all(proposal.ids != one.ids for one in finalists):
            finalists = state.best_with(self._finalist(proposal.ids))
        return SearchState(state.step + 1, proposal.tensors, finalists, state.num_tokens + self.loss.num_tokens - num_before)

    def _finalist(self, ids: Sequence[int]) -> Finalist:
        prompt_LE = self.table_VE[list(ids)]
        return Finalist(tuple(ids), float(self.loss.losses(prompt_LE[None], self._compared).mean()))

    def _choose(self, finalists: Sequence[Finalist]) -> Candidate:
        best, score = Candidate(self._initial), self._before.mean
        for finalist in finalists:
            variant = self.layout.variant(finalist.ids, f"{self._initial.name}+{self.name}")
            if self.layout.is_exact(finalist.ids, variant):
                found = self._bench.evaluate(variant, self._bench.validation)
                self._log(finalist, found)
                if found.mean > score:
                    best, score = Candidate(variant), found.mean
        return best

    def _log(self, finalist: Finalist, found: Evaluation) -> None:
        text = show(self.layout.text(finalist.ids))
        scores = f"{self._before.mean:.4g} before, {found.mean:.4g} with it"
        self._bench.on_log(f"{self.name}: {text}, loss {finalist.loss:.3f} on train items; validation {scores}")

    def _shuffled(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(derived_seed(self._bench.seed, "hard prompt items", epoch))
        order: list[int] = torch.randperm(len(self._bench.train), generator=generator).tolist()
        return order

    def _initial_ids(self) -> list[int]:
        """Return random tokens that read back. Raises ``InvalidOption`` if none are found."""
        generator = torch.Generator().manual_seed(derived_seed(self._bench.seed, "hard prompt start", 0))
        tokens = self.is_printable_V.nonzero()[:, 0]
        ids: list[int] = []
        for place in range(self._options.length):
            reads_back = self.layout.reads_back if place == self._options.length - 1 else self.layout.is_stable
            drawn = tokens[torch.randint(len(tokens), (_DRAWS,), generator=generator, device="cpu", dtype=torch.int64)].tolist()
            token = next((token for token in drawn if reads_back([*ids, token])), None)
            if token is None:
                raise InvalidOption(
                    f"no {self._options.length} tokens were found whose text is tokenised to the same tokens",
                    remedy="Choose another length or seed",
                )
            ids.append(token)
        return ids

    def _check_length(self) -> None:
        described, length = self._bench.llm.describe(), self._options.length
        alone, joint = self.layout.longest()
        longest = max(joint, alone + (self._bench.options.max_tokens if self._bench.metric.needs_output else 0))
        longest += self._bench.num_reserved
        if length + longest > described["max_model_len"]:
            raise InvalidOption(
                "the hard prompt and the longest item exceed the context",
                got=f"{length} + {longest} = {length + longest} tokens",
                allowed=f"up to {described['max_model_len']}",
                remedy="Choose fewer tokens with length, or shorten the items",
            )

    def _digest(self) -> str:
        """Return the digest of all that the search depends on."""
        bench = self._bench
        model = bench.llm.digest()

        def plain(items: Sequence[PromptItem]) -> list[Any]:
            return [[sorted(item.variables.items()), item.references] for item in items]

        parts = [
            [model.weights, model.text, self._initial.digest, bench.seed],
            [repr(bench.options), repr(self._options)],
            [plain(bench.train), plain(bench.validation)],
        ]
        return text_digest(f"hasten/hard-prompt/{self.name}/1", json.dumps(parts))
