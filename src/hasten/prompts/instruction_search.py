"""``search_instructions``: the best instruction that a proposer writes for a task.

The first round asks for instructions that lead from inputs to outputs of train items (APE). Each later round shows the best ones
with their scores and asks for a better one (OPRO). In a round, successive halving on the train items compares the new instructions
with the best ones so far. At the end, the best few and the initial prompt are scored on the validation items, which no instruction
was chosen by before. The highest mean wins, and the initial prompt wins a tie.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from hasten.core.check_fields import Fault, check_fields
from hasten.core.engine_options import Name
from hasten.core.errors import InvalidOption, PromptTooLong, clip, show
from hasten.core.field_type import Range
from hasten.prompts.evaluation import Evaluation, ItemResult
from hasten.prompts.instruction import InstructionFilter, instruction_of, with_instruction
from hasten.prompts.load_variant import TemplateVariant
from hasten.prompts.meta_prompt import KnownInstruction, improvement_prompt, induction_prompt
from hasten.prompts.optimizer import Candidate, Workbench
from hasten.prompts.proposal_file import ProposalFile
from hasten.prompts.proposer import Proposer
from hasten.prompts.successive_halving import RankedArm, successive_halving
from hasten.prompts.task import PromptItem

PROPOSALS_FILE = "proposals.jsonl"
PER_META_PROMPT = 4  # proposals; the next ones see other examples
NUM_EXAMPLES = 5  # of a meta-prompt
NUM_KNOWN = 8  # instructions of a meta-prompt
NUM_FINALISTS = 4  # instructions that are scored on the validation items, and that later rounds compare with
_MAX_SHOWN = 100  # characters of an instruction in the log


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionOptions:
    """Raises ``InvalidOption`` that names every value out of range."""

    proposer: Name | None = None  # URL of an OpenAI-compatible endpoint; None: the model itself
    proposer_model: Name | None = None  # name of the model at that endpoint
    num_candidates: Annotated[int, Range(1, 1024)] = 16  # proposals per round
    rounds: Annotated[int, Range(1, 100)] = 4  # the first from examples, the others from the best instructions so far
    max_instruction_tokens: Annotated[int, Range(1, 2**16)] = 128  # longer proposals are dropped
    # no round and no rung of one begins beyond it; the comparison on the validation items comes on top
    max_tokens_spent: Annotated[int, Range(1, 2**53)] | None = None

    def __post_init__(self) -> None:
        check_fields(self, "option of the instruction search", InvalidOption, self._conflicts)

    def _conflicts(self) -> Iterator[Fault]:
        if (self.proposer is None) != (self.proposer_model is None):
            yield Fault("proposer_model", "the model of the endpoint with proposer; None without")


def search_instructions(bench: Workbench, initial: TemplateVariant, options: InstructionOptions, proposer: Proposer) -> Candidate:
    """Return the best prompt. Raises ``HastenError``."""
    with ProposalFile(bench.folder / PROPOSALS_FILE) as kept:
        return _Search(bench, initial, options, proposer, kept).run()


@dataclass(slots=True)
class _Arm:
    """A prompt, with its results on the first train items in the order of the search."""

    text: str  # its instruction; empty for an initial prompt without one
    variant: TemplateVariant
    results: list[ItemResult] = field(default_factory=list)
    is_too_long: bool = False  # with it, an item does not fit the context

    @property
    def mean(self) -> float:
        return statistics.fmean(result.score for result in self.results)


class _Search:
    """The initial prompt is arm 0."""

    def __init__(
        self, bench: Workbench, initial: TemplateVariant, options: InstructionOptions, proposer: Proposer, kept: ProposalFile
    ) -> None:
        self._bench, self._initial, self._options = bench, initial, options
        self._proposer, self._kept = proposer, kept
        self._rng = random.Random(bench.seed)
        self._train = self._rng.sample(bench.train, len(bench.train))
        self._arms = [_Arm(instruction_of(initial.template), initial)]
        self._filter = InstructionFilter(
            lambda text: len(bench.llm.tokenizer.encode(text)),
            options.max_instruction_tokens,
            answers=(reference for item in bench.validation for reference in item.references),
            known=[self._arms[0].text],
        )

    def run(self) -> Candidate:
        best = [0]
        for number in range(1, self._options.rounds + 1):
            if self._is_spent():
                self._bench.on_log(f"{self._bench.num_tokens:,} tokens are spent: no further round")
                break
            new = self._propose()
            ranked = successive_halving(
                [*best, *new], len(self._train), self._scores, seed=self._bench.seed + number, is_spent=self._is_spent
            )
            best = [one.arm for one in ranked if not self._arms[one.arm].is_too_long][:NUM_FINALISTS] or best
            self._log_round(number, len(new), ranked)
        return self._choose([arm for arm in best if arm != 0])

    def _is_spent(self) -> bool:
        limit = self._options.max_tokens_spent
        return limit is not None and self._bench.num_tokens >= limit

    def _propose(self) -> list[int]:
        """Ask for the instructions of a round; return the arms of those that are new."""
        known, first = self._known(), len(self._arms)
        self._filter.dropped.clear()
        for start in range(0, self._options.num_candidates, PER_META_PROMPT):
            count = min(PER_META_PROMPT, self._options.num_candidates - start)
            for text in self._filter.instructions(self._ask(known, count, self._rng.getrandbits(30))):
                name = f"{self._initial.name} with instruction {len(self._arms)}"
                variant = with_instruction(self._initial, text, name, self._train[0].variables)
                self._arms.append(_Arm(text, variant))
        return list(range(first, len(self._arms)))

    def _ask(self, known: list[KnownInstruction], count: int, seed: int) -> tuple[str, ...]:
        """Return answers to a meta-prompt. If it does not fit the context of the proposer, it is halved."""
        language = self._initial.template.language
        examples = self._rng.sample(self._train, min(NUM_EXAMPLES, len(self._train)))
        while True:
            as_percent = (self._bench.metric.low, self._bench.metric.high) == (0.0, 1.0)
            prompt = (
                improvement_prompt(language, known, examples, as_percent=as_percent)
                if known
                else induction_prompt(language, examples)
            )
            try:
                found = self._kept.propose(self._proposer, prompt, count, seed)
            except PromptTooLong:
                if len(examples) == 1 and len(known) <= 1:
                    raise
                examples, known = examples[: -(-len(examples) // 2)], known[: -(-len(known) // 2)]
                continue
            self._bench.num_tokens += found.num_tokens
            return found.texts

    def _known(self) -> list[KnownInstruction]:
        """Return the best instructions, best first.

        They are those that were scored on most items, and of these the ones with the highest means.
        """
        scored = [arm for arm in self._arms if arm.results and arm.text.strip() and not arm.is_too_long]
        scored.sort(key=lambda arm: (-len(arm.results), -arm.mean))
        return [KnownInstruction(arm.text, arm.mean) for arm in scored[:NUM_KNOWN]]

    def _scores(self, number: int, num_items: int) -> list[float]:
        """Return the scores of an arm on the first train items; those that it has are not computed again."""
        arm = self._arms[number]
        missing = self._train[len(arm.results) : num_items]
        if missing and not arm.is_too_long:
            found = self._evaluate(arm, missing)
            arm.results += found.results if found is not None else ()
        worst = [-float("inf")] * num_items
        return worst if arm.is_too_long else [result.score for result in arm.results[:num_items]]

    def _evaluate(self, arm: _Arm, items: list[PromptItem] | tuple[PromptItem, ...]) -> Evaluation | None:
        """Return the scores; None if an item does not fit the context because of the instruction."""
        try:
            return self._bench.evaluate(arm.variant, items)
        except PromptTooLong:
            if arm.variant is self._initial:
                raise
            arm.is_too_long = True
            self._filter.dropped["too long for the context"] += 1
            return None

    def _choose(self, finalists: list[int]) -> Candidate:
        """Return the best of the finalists and the initial prompt, by the validation items."""
        if not finalists:
            return Candidate(self._initial)
        evaluation = self._evaluate(self._arms[0], self._bench.validation)
        assert evaluation is not None, "the initial prompt raises its error"
        initial_mean = highest = evaluation.mean
        chosen = self._arms[0]
        for number in finalists:
            found = self._evaluate(self._arms[number], self._bench.validation)
            if found is not None and found.mean > highest:
                highest, chosen = found.mean, self._arms[number]
        is_better = chosen.variant is not self._initial
        self._bench.on_log(
            f"validation: {highest:.4g}, the initial prompt {initial_mean:.4g}; {show(clip(chosen.text, _MAX_SHOWN), _MAX_SHOWN)}"
            if is_better
            else f"validation: no instruction is better than the initial prompt ({initial_mean:.4g})"
        )
        return Candidate(chosen.variant)

    def _log_round(self, number: int, num_new: int, ranked: list[RankedArm]) -> None:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self._filter.dropped.items()))
        dropped = f" ({reasons} dropped)" if reasons else ""
        first = f"; best {ranked[0].mean:.4g} on {ranked[0].num_items} train items" if ranked else ""
        tokens = f"; {self._bench.num_tokens:,} tokens so far"
        self._bench.on_log(f"round {number}: {num_new} new instructions{dropped}{first}{tokens}")
