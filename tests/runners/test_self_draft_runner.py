"""Guesses of a model's own first layers: what they are, by the slow way, and what verifying them still computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.early_exit.reference_exits import Rule, SlowExits
from tests.early_exit.test_exits import exits_folder, exits_of
from tests.engine.free_steps import free_steps
from tests.tiny_models import tiny_reference

from hasten import LLM, SamplingParams
from hasten.core.draft import Draft
from hasten.core.plan import RowPlan
from hasten.speculative import growth
from hasten.speculative.drafters.base import DraftRequest, TargetOutput

NAME, DEPTH, NEW_TOKENS = "qwen3-mixed-window", 2, 12
SAYABLE = tuple(range(3, 97, 5))
PROMPTS = [[3, 77, 12, 50, 50, 8, 96, 1, 1, 64, 23], [5, 9, 4, 31, 7], [40, 41, 42]]


class Recorder:
    """What a drafter proposes, and the rows that its engine runs."""

    def __init__(self, llm: LLM) -> None:
        self.llm, drafter = llm, llm.engine._drafter
        self._drafter = getattr(drafter, "drafter", drafter)  # without what puts PyTorch's threads to sleep
        self.aux_layer_indices = ()
        self.drafts: list[tuple[list[int], list[int]]] = []  # (tokens of the line, guesses)
        self.computed: list[tuple[int, int, list[int]]] = []  # (first layer, last layer, tokens of each row)
        runner = llm.engine._runner._runner._runner  # type: ignore[attr-defined]
        for name in ("layers", "finish"):
            setattr(runner, name, self._watched(getattr(runner, name), runner.num_layers))
        llm.engine._drafter = self

    def propose(self, lines: Sequence[DraftRequest], seen: TargetOutput) -> Sequence[Draft]:
        drafts = self._drafter.propose(lines, seen)
        self.drafts += [(list(line.token_ids), list(draft.token_ids)) for line, draft in zip(lines, drafts, strict=True)]
        return drafts

    def _watched(self, whole: Callable[..., Any], num_layers: int) -> Callable[..., Any]:
        def watched(rows: Sequence[RowPlan], hidden: Any, first: int, last: int | None = None) -> Any:
            if first == 0 or last is None:  # ``finish`` may use ``layers``
                self.computed.append((first, last or num_layers, [len(row.token_ids) for row in rows]))
            return whole(rows, hidden, first, *([] if last is None else [last]))

        return watched


@pytest.fixture
def recorded(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Recorder:
    monkeypatch.setattr(growth, "doubt", lambda *_: 0.0)
    settings = {"dtype": "float32", "threads": 1, "kv_cache_memory": "4MiB", "block_size": 4, "num_speculative_tokens": 3}
    with free_steps():
        llm = LLM(
            str(tiny(NAME)), speculative_method="self_speculation", self_draft_layers=DEPTH, backend=request.param, **settings
        )
    found = Recorder(llm)
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
    llm.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], params, use_tqdm=False)
    return found


@pytest.mark.parametrize("recorded", ["cpu", "torch"], indirect=True)
def test_guesses_are_what_the_first_layers_say(recorded: Recorder) -> None:
    slow = SlowExits(tiny_reference(NAME), {})
    assert sum(len(guesses) for _, guesses in recorded.drafts) > 40
    for tokens, guesses in recorded.drafts:
        if guesses:
            wanted = slow.answer(tokens, len(guesses), Rule("fixed", layer=DEPTH))
            assert wanted.closest > 1e-4
            assert guesses == wanted.token_ids


@pytest.mark.parametrize("recorded", ["cpu", "torch"], indirect=True)
def test_verifying_computes_the_first_layers_of_the_last_guess_alone(recorded: Recorder) -> None:
    """All tokens before it are there from guessing; the other layers compute all of them."""
    depth = tiny_reference(NAME).config.num_hidden_layers
    verified = [(below, above) for below, above in zip(recorded.computed, recorded.computed[1:], strict=False) if above[1] == depth]
    full = [(below, above) for below, above in verified if max(above[2]) == 4]
    assert len(full) > 3
    for below, above in full:
        assert (below[0], below[1], above[0]) == (0, DEPTH, DEPTH)
        assert below[2] == [1] * len(above[2])


class DraftVocabulary(SlowExits):
    """An exit that can say the tokens of ``SAYABLE`` alone."""

    def _logits(self, depth: int, state: torch.Tensor) -> torch.Tensor:
        logits_V = super()._logits(depth, state)
        return logits_V.where(torch.isin(torch.arange(len(logits_V)), torch.tensor(SAYABLE)), -torch.inf)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_guesses_come_from_the_draft_vocabulary(tiny: Callable[[str], Path], tmp_path: Path, monkeypatch, backend: str) -> None:
    """And are the tuned_lens states' likeliest tokens of it; what comes out is what comes out without guesses."""
    monkeypatch.setattr(growth, "doubt", lambda *_: 0.0)
    settings = {"dtype": "float32", "threads": 1, "kv_cache_memory": "4MiB", "block_size": 4, "backend": backend}
    exits = exits_folder(NAME, tmp_path / "exits", SAYABLE)
    guessing = {"speculative_method": "self_speculation", "self_draft_layers": DEPTH, "num_speculative_tokens": 3}
    with free_steps():
        llm = LLM(str(tiny(NAME)), exits=str(exits), **guessing, **settings)
    recorder = Recorder(llm)
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
    asked = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    found = llm.generate(asked, params, use_tqdm=False)
    plain = LLM(str(tiny(NAME)), speculative_method="off", **settings).generate(asked, params, use_tqdm=False)
    assert [o.outputs[0].token_ids for o in found] == [o.outputs[0].token_ids for o in plain]
    slow = DraftVocabulary(tiny_reference(NAME), exits_of(NAME))
    guessed = [guess for _, guesses in recorder.drafts for guess in guesses]
    assert len(guessed) > 40 and set(guessed) <= set(SAYABLE) and len(set(guessed)) > 3
    for tokens, guesses in recorder.drafts:
        if guesses:
            wanted = slow.answer(tokens, len(guesses), Rule("fixed", layer=DEPTH))
            assert wanted.closest > 1e-4
            assert guesses == wanted.token_ids


@pytest.mark.parametrize(("right", "depth"), [([0.9, 0.9, 0.9], 1), ([0.1, 0.1, 1.0], 3), (None, 2)])
def test_the_exit_that_should_pay_best_guesses(tiny: Callable[[str], Path], tmp_path: Path, right: Any, depth: int) -> None:
    """By what the exits' file says of them; half of the layers where it says nothing."""
    said = {} if right is None else {"agreements": right}
    exits = exits_folder(NAME, tmp_path / "exits", SAYABLE, **said)
    settings = {"dtype": "float32", "threads": 1, "kv_cache_memory": "4MiB", "block_size": 4}
    with free_steps():
        recorder = Recorder(LLM(str(tiny(NAME)), exits=str(exits), speculative_method="self_speculation", **settings))
    recorder.llm.generate({"prompt_token_ids": PROMPTS[0]}, SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True))
    assert {last for first, last, _ in recorder.computed if first == 0 and last < 4} == {depth}
