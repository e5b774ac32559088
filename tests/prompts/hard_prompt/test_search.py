"""Searches go on after a kill or Ctrl-C to the same result, choose by the metric, and name what cannot work."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.prompts.hard_prompt.planted import INITIAL, word_items, workbench
from torch import Tensor

from hasten import LLM
from hasten.core.errors import HastenError, InvalidOption, UnsupportedModel
from hasten.entrypoints.task_options import TaskOptions
from hasten.prompts.hard_prompt import search as search_module
from hasten.prompts.hard_prompt.search import HardPromptSearch, Proposal
from hasten.prompts.hard_prompt.search_state import Finalist
from hasten.prompts.load_variant import TemplateVariant
from hasten.prompts.metric import open_metric
from hasten.prompts.optimizer import Workbench, find_optimizer
from hasten.prompts.template import PromptTemplate

ITEMS = word_items(9)
SMALL: Mapping[str, dict[str, Any]] = {
    "gcg": {"length": 3, "steps": 6, "top_k": 20, "num_candidates": 8, "batch": 4},
    "pez": {"length": 3, "steps": 8, "batch": 4},
}


def optimize(method: str, bench: Workbench) -> tuple[str, list[str], int]:
    """Return the found variant, the lines about the finalists and the tokens of a small run."""
    optimizer = find_optimizer(method)
    logs: list[str] = []
    own = dataclasses.replace(bench, on_log=lambda line: [report(line) for report in (logs.append, bench.on_log)] and None)
    found = optimizer.optimize(own, INITIAL, optimizer.OPTIONS(**SMALL[method]))
    assert found.soft_prompt is None
    return found.variant.digest, [line for line in logs if "on train items" in line], own.num_tokens


@pytest.mark.parametrize("method", ["gcg", "pez"])
def test_a_run_goes_on_from_any_saved_state(method: str, word_llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders are copied between steps, as a kill would leave them."""
    monkeypatch.setattr(search_module, "SAVE_SECONDS", 0.0)
    steps_run: list[int] = []
    advance = HardPromptSearch._next

    def copying(self: HardPromptSearch, run: Any, state: Any) -> Any:
        if not (tmp_path / f"killed {state.step}").exists():
            shutil.copytree(tmp_path / "plain", tmp_path / f"killed {state.step}")
        steps_run.append(state.step)
        return advance(self, run, state)

    monkeypatch.setattr(HardPromptSearch, "_next", copying)
    (tmp_path / "plain").mkdir()
    with workbench(word_llm, ITEMS, tmp_path / "plain") as bench:
        expected = optimize(method, bench)
    num_steps = len(steps_run)
    for step in (1, num_steps - 1):
        steps_run.clear()
        with workbench(word_llm, ITEMS, tmp_path / f"killed {step}") as bench:
            assert optimize(method, bench) == expected
        assert steps_run == list(range(step, num_steps))  # nothing that was saved ran again
    # A finished run runs nothing again; another seed and another method begin anew.
    steps_run.clear()
    with workbench(word_llm, ITEMS, tmp_path / "plain") as bench:
        assert optimize(method, bench) == expected and not steps_run
        optimize(method, dataclasses.replace(bench, seed=1))
        assert len(steps_run) == num_steps


@pytest.mark.parametrize(
    "change",
    [
        {"options": TaskOptions(delimiter="  ")},
        {"train": ITEMS[1:6]},
        {"validation": ITEMS[7:]},
        {"seed": 5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_state_is_bound_to_all_that_the_search_depends_on(word_llm: LLM, tmp_path: Path, change: dict[str, Any]) -> None:
    options = find_optimizer("gcg").OPTIONS(**SMALL["gcg"])
    with workbench(word_llm, ITEMS, tmp_path) as bench:
        first = HardPromptSearch("gcg", bench, INITIAL, options)._digest()
        assert first == HardPromptSearch("gcg", dataclasses.replace(bench, num_tokens=9), INITIAL, options)._digest()
        others = [
            HardPromptSearch("gcg", dataclasses.replace(bench, **change), INITIAL, options),
            HardPromptSearch("pez", bench, INITIAL, options),
            HardPromptSearch("gcg", bench, INITIAL, dataclasses.replace(options, top_k=19)),
            HardPromptSearch("gcg", bench, TemplateVariant("initial", PromptTemplate("i", "w9 {{ input }}")), options),
        ]
        assert len({first, *(other._digest() for other in others)}) == 5


_KILLED = """
import os, signal, sys
from pathlib import Path
from tests.prompts.hard_prompt.planted import workbench
from tests.prompts.hard_prompt import test_search as suite
from hasten import LLM
suite.search_module.SAVE_SECONDS = 0.0
advance = suite.HardPromptSearch._next
def dying(self, run, state):
    if state.step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return advance(self, run, state)
suite.HardPromptSearch._next = dying
llm = LLM(sys.argv[1], threads=1, dtype="float32", max_model_len=64, kv_cache_memory="16MiB", speculative_method="off")
with workbench(llm, suite.ITEMS, Path(sys.argv[2])) as bench:
    suite.optimize("gcg", bench)
"""


def test_a_killed_process_goes_on(word_llm: LLM, word_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "killed").mkdir()
    command = [sys.executable, "-c", _KILLED, str(word_folder), str(tmp_path / "killed")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    logs: list[str] = []
    with workbench(word_llm, ITEMS, tmp_path / "killed", on_log=logs.append) as bench:
        found = optimize("gcg", bench)
    assert logs[0] == "gcg: resuming after step 4 of 6"
    with workbench(word_llm, ITEMS, tmp_path / "plain") as bench:
        assert optimize("gcg", bench) == found


class Interrupted(Exception):
    """Stands for nothing that the search catches."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, Interrupted])
def test_an_interrupt_saves_the_last_step(
    word_llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    (tmp_path / "plain").mkdir()
    with workbench(word_llm, ITEMS, tmp_path / "plain") as bench:
        expected = optimize("pez", bench)
    gradient = search_module.ItemLoss.gradient
    calls = iter(range(100))

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == 5:
            raise error
        return gradient(*arguments)

    monkeypatch.setattr(search_module.ItemLoss, "gradient", interrupted)
    logs: list[str] = []
    with workbench(word_llm, ITEMS, tmp_path, on_log=logs.append) as bench:
        with pytest.raises(error):
            optimize("pez", bench)
        assert optimize("pez", bench) == expected
    assert logs[0] == "pez: resuming after step 5 of 8"


class Scripted:
    """Proposes given hard prompts."""

    def __init__(self, prompts: Sequence[tuple[int, ...] | None]) -> None:
        self._prompts = prompts

    def start(self, ids: Sequence[int]) -> Mapping[str, Tensor]:
        return {"ids_L": torch.tensor(ids)}

    def advance(self, step: int, tensors: Mapping[str, Tensor]) -> Proposal:
        return Proposal(tensors, self._prompts[step])


def test_the_metric_on_the_validation_items_chooses(word_llm: LLM, tmp_path: Path) -> None:
    """The choice is that of a loop over the best four by train loss; equal prompts count once."""
    generator = torch.Generator().manual_seed(1)
    prompts: list[tuple[int, ...]] = [tuple(ids) for ids in torch.randint(30, 100, (7, 3), generator=generator).tolist()]
    options = find_optimizer("gcg").OPTIONS(length=3, steps=9, batch=4)
    logs: list[str] = []
    with workbench(word_llm, ITEMS, tmp_path, on_log=logs.append) as bench:
        search = HardPromptSearch("gcg", bench, INITIAL, options)
        everything = [*prompts, tuple(search._initial_ids())]
        num_tokens = bench.num_tokens
        steps: list[tuple[int, int]] = []
        bench.on_progress = lambda num_done, total: steps.append((num_done, total))
        found = search.run(Scripted([*prompts, None, prompts[0]]))
        assert steps == [(step, 9) for step in range(1, 10)]
        num_tokens = bench.num_tokens - num_tokens
        train = {ids: -bench.evaluate(search.layout.variant(ids, "v"), bench.train).mean for ids in everything}
        finalists = sorted(everything, key=lambda ids: train[ids])[:4]
        validation = {ids: bench.evaluate(search.layout.variant(ids, "v"), bench.validation).mean for ids in finalists}
        best = max(finalists, key=lambda ids: validation[ids])
        evaluations = [bench.evaluate(search.layout.variant(ids, "v"), bench.validation) for ids in finalists]
        assert num_tokens == search.loss.num_tokens + sum(evaluation.num_tokens for evaluation in evaluations)
        before = bench.evaluate(INITIAL, bench.validation).mean
        assert best != finalists[0] and validation[best] > before  # or the test would show nothing
        assert found.variant.template == search.layout.variant(best, "v").template
        assert found.variant.name == "initial+gcg"
        assert len(logs) == 4 and f"{before:.4g} before" in logs[0]
        # With finalists that are worse than the initial prompt, that one comes back.
        worst = min(train, key=lambda ids: validation.get(ids, 0))
        search._before = dataclasses.replace(
            search._before, results=tuple(dataclasses.replace(result, score=0.0) for result in search._before.results)
        )
        assert search._choose([Finalist(worst, 0.0)]).variant is INITIAL


def test_batches_cover_the_items_once_per_epoch(word_llm: LLM, tmp_path: Path) -> None:
    options = find_optimizer("pez").OPTIONS(length=2, batch=4)
    with workbench(word_llm, ITEMS, tmp_path) as bench:
        search = HardPromptSearch("pez", bench, INITIAL, options)
        drawn = [item for step in range(9) for item in search.batch(step)]
        assert all(sorted(drawn[start : start + 6]) == list(range(6)) for start in range(0, 36, 6))
        assert drawn[:6] != drawn[6:12] and search.batch(3) == search.batch(3)
        wide = HardPromptSearch("pez", bench, INITIAL, find_optimizer("pez").OPTIONS(batch=100))
        assert sorted(wide.batch(7)) == list(range(6))


def test_what_cannot_work_is_one_sentence(word_llm: LLM, tmp_path: Path) -> None:
    def refusal(length: int = 3, metric: str = "log_likelihood", **changes: Any) -> str:
        with (
            workbench(word_llm, ITEMS, tmp_path, metric=open_metric(metric), **changes) as bench,
            pytest.raises(HastenError) as error,
        ):
            HardPromptSearch("gcg", bench, INITIAL, find_optimizer("gcg").OPTIONS(length=length))._initial_ids()
        return str(error.value)

    assert refusal(train=()) == "a hard prompt needs train items and validation items. Change the fractions of the split."
    assert "needs train items and validation items" in refusal(validation=())
    assert refusal(length=61) == (
        "the hard prompt and the longest item exceed the context: got 61 + 5 = 66 tokens; allowed: up to 64. "
        "Choose fewer tokens with length, or shorten the items."
    )
    assert "got 60 + 5 = 65" in refusal(length=60)
    assert "got 9 + 58 = 67" in refusal(length=9, metric="exact_match", options=TaskOptions(max_tokens=56))


class Described:
    """Knows its folder alone: whatever else is asked of it is a fault."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def describe(self) -> dict[str, str]:
        return {"folder": str(self._folder)}


def test_a_quantised_checkpoint_is_refused_before_anything_is_computed(word_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(word_folder, tmp_path / "quantised")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with workbench(Described(folder), ITEMS, tmp_path) as bench, pytest.raises(UnsupportedModel, match="are quantised"):
        HardPromptSearch("gcg", bench, INITIAL, find_optimizer("gcg").OPTIONS())


def test_tokens_that_never_read_back_are_refused(word_llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with workbench(word_llm, ITEMS, tmp_path) as bench:
        search = HardPromptSearch("gcg", bench, INITIAL, find_optimizer("gcg").OPTIONS(length=3))
        monkeypatch.setattr(search.layout, "text", lambda ids: "")
        with pytest.raises(InvalidOption, match="no 3 tokens were found whose text is tokenised to the same tokens"):
            search.run(Scripted([]))
