"""The instruction search: it finds the planted instruction for a tenth of the tokens, and goes on after a kill without new questions."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.exhaustive import EXHAUSTIVE

from hasten import LLM
from hasten.core.errors import InvalidOption, PromptTooLong
from hasten.entrypoints.task_options import TaskOptions
from hasten.prompts.instruction_search import NUM_FINALISTS, PROPOSALS_FILE, InstructionOptions, search_instructions
from hasten.prompts.load_variant import TemplateVariant
from hasten.prompts.metric import Attempt, ItemScore
from hasten.prompts.optimizer import Candidate, Workbench, find_optimizer
from hasten.prompts.proposer import Proposals
from hasten.prompts.run_file import RunFile
from hasten.prompts.task import PromptItem
from hasten.prompts.template import PromptTemplate

NUM_TRAIN, NUM_VALIDATION = 256, 128
INITIAL = TemplateVariant("initial", PromptTemplate("initial", "Item {{ input }}:"))
NUM_PLANTED = 64


class Killed(BaseException):
    """Stands for the end of the process."""


@dataclass
class PlantedMetric:
    """Scores of 0 and 1 by the number of the instruction that the prompt begins with; ``kill_at``: the call that is the last."""

    shares: Sequence[float]
    initial_share: float = 0.3
    seed: int = 0
    kill_at: int | None = None
    num_calls: int = 0
    name: str = "planted"
    identity: str = "planted"
    needs_output: bool = False
    low: float = 0.0
    high: float = 1.0
    is_binary: bool = True

    def score(self, attempt: Attempt, llm: LLM) -> ItemScore:
        self.num_calls += 1
        if self.num_calls == self.kill_at:
            raise Killed
        prompt = str(attempt.prompt)
        number = int(prompt.split()[1]) if prompt.startswith("Instruction ") else -1
        share = self.shares[number] if number >= 0 else self.initial_share
        return ItemScore(float(random.Random(f"{self.seed} {number} {attempt.item.line}").random() < share))

    def close(self) -> None:
        pass


@dataclass
class ScriptedProposer:
    """Gives the texts of a list in order, some per question."""

    texts: Sequence[str]
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    identity: str = "scripted"
    max_count: int = 4
    start: int = 0
    kill_at: int | None = None

    def propose(self, prompt: str, count: int, seed: int) -> Proposals:
        if self.kill_at == len(self.asked) + 1:
            raise Killed
        self.asked.append((prompt, count, seed))
        begin = self.start + sum(count for _, count, _ in self.asked[:-1])
        return Proposals(tuple(self.texts[begin : begin + count]), num_tokens=10 * count)


def instruction(number: int) -> str:
    return f"Instruction {number} of many"


def items(first: int, num: int) -> tuple[PromptItem, ...]:
    return tuple(PromptItem(line, {"input": f"number {line}"}, (f"answer {line}",)) for line in range(first, first + num))


def planted_shares(seed: int, best_share: float = 0.8) -> tuple[list[float], int]:
    rng = random.Random(seed)
    best = rng.randrange(NUM_PLANTED)
    return [best_share if number == best else rng.uniform(0.2, 0.6) for number in range(NUM_PLANTED)], best


@dataclass
class Search:
    """One search in a folder, and what came of it."""

    llm: LLM
    folder: Path
    metric: PlantedMetric
    proposer: ScriptedProposer
    options: InstructionOptions = field(default_factory=lambda: InstructionOptions(num_candidates=NUM_PLANTED, rounds=1))
    initial: TemplateVariant = INITIAL
    num_train: int = NUM_TRAIN
    num_validation: int = NUM_VALIDATION
    seed: int = 0
    log: list[str] = field(default_factory=list)
    num_tokens: int = 0

    def run(self) -> Candidate:
        with RunFile(self.folder / "run.jsonl") as run:
            bench = Workbench(
                llm=self.llm,
                train=items(1, self.num_train),
                validation=items(10_001, self.num_validation),
                metric=self.metric,
                options=TaskOptions(),
                run_file=run,
                folder=self.folder,
                seed=self.seed,
                on_log=self.log.append,
            )
            try:
                return search_instructions(bench, self.initial, self.options, self.proposer)
            finally:
                self.num_tokens = bench.num_tokens

    def full_tokens(self, texts: Sequence[str]) -> int:
        """Return the tokens of all prompts of these instructions, counted here."""
        every = [*items(1, self.num_train), *items(10_001, self.num_validation)]
        prompts = [f"{text}\n\nItem {item.variables['input']}:" for text in texts for item in every]
        return sum(len(self.llm.tokenizer.encode(prompt)) for prompt in prompts)


@pytest.mark.parametrize("seed", range(100 if EXHAUSTIVE else 2))
def test_the_planted_instruction_is_found_for_a_tenth_of_the_tokens(llm: LLM, tmp_path: Path, seed: int) -> None:
    shares, best = planted_shares(seed)
    texts = [instruction(number) for number in range(NUM_PLANTED)]
    search = Search(llm, tmp_path, PlantedMetric(shares, seed=seed), ScriptedProposer(texts), seed=seed)
    found = search.run()
    FOUND.append(found.variant.render({"input": "x"}) == f"{instruction(best)}\n\nItem x:")
    assert search.num_tokens - 10 * NUM_PLANTED <= 0.1 * search.full_tokens(texts)
    assert sum(FOUND) >= 0.95 * len(FOUND) - 1


FOUND: list[bool] = []
