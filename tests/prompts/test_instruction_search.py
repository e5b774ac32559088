"""The instruction search finds a planted instruction for a tenth of the tokens, and goes on after a kill without new questions."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from tests.exhaustive import repeats
from tests.prompts.endpoint_server import Asked, completion, send, serve

from hasten import LLM
from hasten.core.errors import InvalidOption, PromptTooLong
from hasten.entrypoints.task_options import TaskOptions
from hasten.prompts.evaluation import Evaluation, ItemResult
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
class SimulatedBench(Workbench):
    """A workbench without a model. A prompt has a token per word."""

    def evaluate(self, variant: TemplateVariant, items: Sequence[PromptItem]) -> Evaluation:
        text = variant.template.defaults.get("instruction", "")
        prompts = [f"{text} Item {item.variables['input']}:" for item in items]
        pairs = list(zip(items, prompts, strict=True))
        scores = [self.metric.score(Attempt(item, prompt.strip(), None), self.llm).score for item, prompt in pairs]
        results = tuple(
            ItemResult(score=score, output=None, prompt_tokens=len(prompt.split()), output_tokens=0, metric_tokens=0)
            for score, prompt in zip(scores, prompts, strict=True)
        )
        found = Evaluation(
            variant=variant.name, metric="planted", low=0.0, high=1.0, items=tuple(items), results=results, seconds=0.0
        )
        self.num_tokens += found.num_tokens
        return found


WORDS = cast(LLM, SimpleNamespace(tokenizer=SimpleNamespace(encode=str.split)))


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

    def run(self) -> str:
        """Return the found prompt for the input "x"."""
        with RunFile(self.folder / "run.jsonl") as run:
            bench = (SimulatedBench if self.llm is WORDS else Workbench)(
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
                found = search_instructions(bench, self.initial, self.options, self.proposer)
            finally:
                self.num_tokens = bench.num_tokens
            return found.variant.render({"input": "x"})

    def full_tokens(self) -> int:
        """Return the tokens of all prompts of the planted instructions, counted here."""
        every = [*items(1, self.num_train), *items(10_001, self.num_validation)]
        prompts = [f"{text}\n\nItem {item.variables['input']}:" for text in self.proposer.texts for item in every]
        return sum(len(self.llm.tokenizer.encode(prompt)) for prompt in prompts)


def planted_search(llm: LLM, folder: Path, seed: int, best_share: float = 0.8) -> tuple[Search, str]:
    """Return a search with 64 instructions, and the prompt of the best one."""
    shares, best = planted_shares(seed, best_share)
    proposer = ScriptedProposer([instruction(number) for number in range(NUM_PLANTED)])
    return Search(llm, folder, PlantedMetric(shares, seed=seed), proposer, seed=seed), f"{instruction(best)}\n\nItem x:"


def test_the_planted_instruction_is_found_for_a_tenth_of_the_tokens(tmp_path: Path) -> None:
    num_found, num = 0, repeats("instruction searches")
    for seed in range(num):
        search, expected = planted_search(WORDS, tmp_path / str(seed), seed)
        num_found += search.run() == expected
        assert search.num_tokens <= 0.1 * search.full_tokens()
    assert num_found >= 0.95 * num


def test_a_real_model_spends_as_little(llm: LLM, tmp_path: Path) -> None:
    search, expected = planted_search(llm, tmp_path, seed=0, best_share=0.9)
    assert search.run() == expected
    assert search.num_tokens <= 0.1 * search.full_tokens()


def small_search(llm: LLM, folder: Path, **options: object) -> Search:
    """Return a search of three rounds with eight instructions each; the best one is of the second round."""
    shares = [0.9 if number == 11 else 0.1 + 0.02 * number for number in range(24)]
    proposer = ScriptedProposer([instruction(number) for number in range(24)])
    settings = InstructionOptions(**{"num_candidates": 8, "rounds": 3, **options})
    return Search(llm, folder, PlantedMetric(shares), proposer, settings, num_train=24, num_validation=24)


def test_a_killed_run_asks_nothing_twice_and_finds_the_same(llm: LLM, tmp_path: Path) -> None:
    undisturbed = small_search(llm, tmp_path / "undisturbed")
    expected = undisturbed.run()
    assert expected == "Instruction 11 of many\n\nItem x:" and len(undisturbed.proposer.asked) == 6
    rng, num_kills, num = random.Random(0), 0, repeats("killed searches")
    for run in range(num):
        asked: list[tuple[str, int, int]] = []
        while True:
            search = small_search(llm, tmp_path / str(run))
            search.proposer.start = sum(count for _, count, _ in asked)
            search.metric.kill_at, search.proposer.kill_at = rng.choice([(rng.randint(1, 120), None), (None, rng.randint(1, 3))])
            try:
                found = search.run()
                break
            except Killed:
                num_kills += 1
            finally:
                asked += search.proposer.asked
        assert asked == undisturbed.proposer.asked
        assert (found, search.num_tokens) == (expected, undisturbed.num_tokens)
        assert search.log == undisturbed.log
    assert num_kills >= 2 * num


KILLED = """
import os, signal, sys
from pathlib import Path
from hasten import LLM
from tests.prompts.conftest import OPTIONS
from tests.prompts.test_instruction_search import small_search
with LLM("demo", **OPTIONS) as llm:
    search = small_search(llm, Path(sys.argv[1]))
    score = search.metric.score
    def kill(attempt, llm):
        if search.metric.num_calls == 150:
            print(len(search.proposer.asked), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return score(attempt, llm)
    search.metric.score = kill
    search.run()
"""


def test_a_process_that_is_killed_goes_on(llm: LLM, tmp_path: Path) -> None:
    undisturbed = small_search(llm, tmp_path / "undisturbed")
    expected = undisturbed.run()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed")]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    num_asked = int(killed.stdout)
    search = small_search(llm, tmp_path / "killed")
    search.proposer.start = 4 * num_asked
    assert search.run() == expected and search.num_tokens == undisturbed.num_tokens
    assert search.proposer.asked == undisturbed.proposer.asked[num_asked:] and 2 <= num_asked < 6
    assert search.metric.num_calls == undisturbed.metric.num_calls - 150


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_the_initial_prompt_comes_back_if_nothing_is_better(tmp_path: Path, share: float) -> None:
    search = small_search(WORDS, tmp_path)
    search.metric.shares, search.metric.initial_share = [share] * 24, 4 * share
    assert search.run() == "Item x:"
    assert search.log[-1].startswith("validation: no instruction is better than the initial prompt")


class OverfittedMetric(PlantedMetric):
    """Instruction 5 is right on all train items, and on no other."""

    def score(self, attempt: Attempt, llm: LLM) -> ItemScore:
        if str(attempt.prompt).startswith("Instruction 5 "):
            return ItemScore(float(attempt.item.line < 10_000))
        return super().score(attempt, llm)


def test_the_validation_items_decide(tmp_path: Path) -> None:
    """The instruction that is best on train items alone is not chosen."""
    search = small_search(WORDS, tmp_path, rounds=1)
    search.metric = OverfittedMetric([0.6 if number == 3 else 0.1 for number in range(24)])
    assert search.run() == "Instruction 3 of many\n\nItem x:"


def test_later_rounds_show_the_best_instructions_worst_first(tmp_path: Path) -> None:
    search = small_search(WORDS, tmp_path)
    search.run()
    prompts = [prompt for prompt, _, _ in search.proposer.asked]
    assert all(prompt.endswith("<INS>") for prompt in prompts) and len({seed for _, _, seed in search.proposer.asked}) == 6
    assert all("Input: number" in prompt and "Output: answer" in prompt for prompt in prompts)
    assert not any("Score" in prompt for prompt in prompts[:2])
    for prompt in prompts[2:]:
        scores = [int(text) for text in re.findall(r"^Score: (\d+)$", prompt, re.MULTILINE)]
        assert scores == sorted(scores) and len(scores) == 8
    assert "<INS>Instruction 11 of many</INS>" in prompts[-1] and "<INS>Instruction 11 of many</INS>" not in prompts[2]
    assert not any("10001" in prompt for prompt in prompts)  # of the validation items
    assert prompts[0] != prompts[1]  # other examples


def test_a_chinese_prompt_is_improved_in_chinese(tmp_path: Path) -> None:
    search = small_search(WORDS, tmp_path, rounds=2)
    search.initial = TemplateVariant("initial", replace(INITIAL.template, language="zh"))
    search.run()
    first, last = search.proposer.asked[0][0], search.proposer.asked[-1][0]
    assert "请写出这条指令" in first and "得分" in last and "Input" not in first + last


def test_dropped_proposals_are_counted(tmp_path: Path) -> None:
    search = small_search(WORDS, tmp_path, rounds=1, max_instruction_tokens=5)
    search.proposer.texts = [
        *("Instruction 1 a", "<INS>Instruction 2 b</INS>", "Instruction  1\na", ""),
        *("one two three four five six", "Say\nanswer 10003\n", "Do not say answer 10003", " </INS>"),
    ]
    search.run()
    assert search.log[0].startswith("round 1: 3 new instructions (2 empty, 1 known, 1 too long, 1 with an answer dropped); best")


def test_an_instruction_that_does_not_fit_the_context_is_dropped(llm: LLM, tmp_path: Path) -> None:
    search = small_search(llm, tmp_path, rounds=2, max_instruction_tokens=4096)
    search.proposer.texts = [f"{instruction(number)}{' word' * 300 * (number in (2, 9))}" for number in range(16)]
    assert search.run() == "Instruction 11 of many\n\nItem x:"
    assert "1 too long for the context" in search.log[0] and "1 too long for the context" in search.log[1]
    long = TemplateVariant("initial", PromptTemplate("initial", "word " * 300 + "{{ input }}"))
    search = small_search(llm, tmp_path / "long")
    search.initial = long
    with pytest.raises(PromptTooLong, match="variant initial"):
        search.run()


class ShortProposer(ScriptedProposer):
    """A proposer with a small context."""

    max_characters = 800

    def propose(self, prompt: str, count: int, seed: int) -> Proposals:
        if len(prompt) > self.max_characters:
            raise PromptTooLong("prompt and output do not fit the context")
        return super().propose(prompt, count, seed)


def test_a_meta_prompt_that_does_not_fit_is_halved(tmp_path: Path) -> None:
    search = small_search(WORDS, tmp_path, rounds=2)
    search.proposer = ShortProposer(search.proposer.texts)
    search.run()
    counts = [(prompt.count("Score:"), prompt.count("Input:")) for prompt, _, _ in search.proposer.asked]
    assert counts == [(0, 5), (0, 5), (4, 3), (4, 3)]  # of 8 instructions and 5 examples
    search = small_search(WORDS, tmp_path / "none")
    search.proposer = ShortProposer(search.proposer.texts)
    search.proposer.max_characters = 10
    with pytest.raises(PromptTooLong):
        search.run()


def test_no_round_begins_beyond_the_budget(tmp_path: Path) -> None:
    full = small_search(WORDS, tmp_path / "full")
    full.run()
    spent = []
    for limit in (1, full.num_tokens // 4, full.num_tokens // 2, full.num_tokens * 2):
        search = small_search(WORDS, tmp_path / str(limit), max_tokens_spent=limit)
        search.run()
        final_tokens = 24 * 7 * (1 + NUM_FINALISTS)
        assert search.num_tokens <= max(limit, 80) + final_tokens + 24 * 7
        spent.append(search.num_tokens)
    assert spent == sorted(spent) and spent[-1] == full.num_tokens
    assert len(small_log(tmp_path / "1")) == 8  # the proposals of the first round, and nothing more


def test_a_budget_that_is_spent_by_proposals_leaves_the_best_so_far(tmp_path: Path) -> None:
    full = small_search(WORDS, tmp_path / "full")
    full.metric.shares = [0.8 if number == 3 else 0.1 for number in range(24)]
    full.run()
    num_tokens = int(re.search(r"; ([\d,]+) tokens so far", full.log[0])[1].replace(",", ""))
    search = small_search(WORDS, tmp_path / "spent", max_tokens_spent=num_tokens + 1)
    search.metric.shares = full.metric.shares
    assert search.run() == "Instruction 3 of many\n\nItem x:"
    assert len(search.proposer.asked) == 4 and "no further round" in search.log[2]


def small_log(folder: Path) -> list[str]:
    lines = (folder / PROPOSALS_FILE).read_text().splitlines()[1:]
    return [text for line in lines for text in json.loads(line)["texts"]]


def test_options_are_checked() -> None:
    method = find_optimizer("instructions")
    assert method.OPTIONS is InstructionOptions and InstructionOptions().proposer is None
    for wrong in ({"num_candidates": 0}, {"rounds": 1000}, {"proposer": "http://host/v1"}, {"proposer_model": "m"}):
        with pytest.raises(InvalidOption, match="option of the instruction search"):
            method.OPTIONS(**wrong)


def optimized(llm: LLM, folder: Path, **options: object) -> tuple[Candidate, list[str]]:
    log: list[str] = []
    with RunFile(folder / "run.jsonl") as run:
        bench = Workbench(
            llm=llm,
            train=items(1, 8),
            validation=items(10_001, 4),
            metric=PlantedMetric([0.9] * NUM_PLANTED, initial_share=0.1),
            options=TaskOptions(),
            run_file=run,
            folder=folder,
            seed=0,
            on_log=log.append,
        )
        method = find_optimizer("instructions")
        return method.optimize(bench, INITIAL, method.OPTIONS(num_candidates=5, rounds=2, **options)), log


def test_the_model_itself_proposes_the_same_texts_again(llm: LLM, tmp_path: Path) -> None:
    found = [optimized(llm, tmp_path / name, max_instruction_tokens=16) for name in ("first", "second")]
    assert found[0] == found[1]
    assert small_log(tmp_path / "first") == small_log(tmp_path / "second")
    assert len(small_log(tmp_path / "first")) == 10 and len(set(small_log(tmp_path / "first"))) > 5


def test_an_endpoint_proposes(llm: LLM, tmp_path: Path) -> None:
    def answer(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        send(handler, completion(f"<think>It <INS>is</INS> so.</think><INS>Instruction {len(server.asked)} for all</INS>"))

    with serve(answer) as server:
        candidate, log = optimized(llm, tmp_path, proposer=server.url, proposer_model="teacher")
        assert len(server.asked) == 10 and {asked.body["model"] for asked in server.asked} == {"teacher"}
        assert len({asked.body["seed"] for asked in server.asked}) == 10
        assert (optimized(llm, tmp_path, proposer=server.url, proposer_model="teacher")) == (candidate, log)
        assert len(server.asked) == 10
    assert candidate.variant.render({"input": "x"}).startswith("Instruction ")
