"""The swaps of GCG are those of a loop over all tokens, and it finds a planted hard prompt's gain."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from tests.prompts.hard_prompt.planted import INITIAL, PLANTED, planted_items, word_items, workbench
from transformers import AutoModelForCausalLM

from hasten import LLM
from hasten.core.errors import InvalidOption
from hasten.prompts.hard_prompt.search import HardPromptSearch
from hasten.prompts.optimizers.gcg import OPTIONS, CoordinateGradient, best_swaps, optimize

PROMPT = [30, 41, 52]


def reference_loss(model: object, search: HardPromptSearch, embedded_LE: torch.Tensor, items: list[int]) -> torch.Tensor:
    """Return the mean loss of train items after embeddings, one sequence at a time, by transformers."""
    assert callable(model)
    losses = []
    for item in items:
        rows = []
        for tail_ids, reference_ids in search.layout.rows[item]:
            after_TE = search.table_VE[[*tail_ids, *reference_ids]]
            labels = torch.tensor([-100] * (len(embedded_LE) + len(tail_ids)) + reference_ids)
            rows.append(model(inputs_embeds=torch.cat([embedded_LE, after_TE])[None], labels=labels[None]).loss)
        losses.append(torch.stack(rows).min())
    return torch.stack(losses).mean()


def test_the_best_swaps_are_those_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    gradient_LE, table_VE = torch.randn(3, 8, generator=generator), torch.randn(40, 8, generator=generator)
    is_printable_V = torch.rand(40, generator=generator) > 0.3
    found = best_swaps(gradient_LE, table_VE, is_printable_V, 5)
    for position in range(3):
        slopes = {token: float(gradient_LE[position] @ table_VE[token]) for token in range(40) if is_printable_V[token]}
        assert found[position].tolist() == sorted(slopes, key=slopes.__getitem__)[:5]
    assert best_swaps(gradient_LE, table_VE, is_printable_V, 99).shape == (3, int(is_printable_V.sum()))


def test_a_step_is_that_of_a_brute_force_loop(word_llm: LLM, word_folder: Path, tmp_path: Path) -> None:
    """With candidates for all swaps, the step takes the best swap among the top 6 by the one-hot gradient of transformers."""
    model = AutoModelForCausalLM.from_pretrained(word_folder, dtype=torch.float32).requires_grad_(False)
    options = OPTIONS(length=3, top_k=6, num_candidates=1000, batch=4)
    with workbench(word_llm, word_items(9), tmp_path) as bench:
        search = HardPromptSearch("gcg", bench, INITIAL, options)
        items = search.batch(2)
        one_hot_LV = torch.nn.functional.one_hot(torch.tensor(PROMPT), 101).float().requires_grad_()
        torch.autograd.backward(reference_loss(model, search, one_hot_LV @ search.table_VE, items))
        assert one_hot_LV.grad is not None
        losses = {}
        for position, token in itertools.product(range(3), range(101)):
            slope = float(one_hot_LV.grad[position, token])
            rank = sum(float(one_hot_LV.grad[position, other]) < slope for other in range(101) if other not in (0, 2))
            # The tokens w0 and w2 are special, and w25 is tokenised to w2 and another one.
            if rank < 6 and str(token)[0] not in "02" and token != PROMPT[position]:
                ids = (*PROMPT[:position], token, *PROMPT[position + 1 :])
                losses[ids] = float(reference_loss(model, search, search.table_VE[list(ids)], items))
        best = min(losses, key=losses.__getitem__)
        method = CoordinateGradient(search, options)
        proposal = method.advance(2, method.start(PROMPT))
        assert proposal.ids == best and proposal.tensors["ids_L"].tolist() == list(best)
        swaps_LK = best_swaps(search.loss.gradient(search.table_VE[PROMPT], items)[1], search.table_VE, search.is_printable_V, 6)
        swapped = [tuple(ids) for ids in method._swapped(PROMPT, swaps_LK, search.generator(2))]
        assert sorted(swapped) == sorted(losses) and swapped != sorted(swapped)


def test_swaps_that_do_not_read_back_are_not_candidates(word_llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = OPTIONS(length=3, top_k=20, num_candidates=7, batch=2)
    with workbench(word_llm, word_items(), tmp_path) as bench:
        search = HardPromptSearch("gcg", bench, INITIAL, options)
        method = CoordinateGradient(search, options)
        swaps_LK = torch.arange(20, 80).view(3, 20)
        monkeypatch.setattr(search.layout, "reads_back", lambda ids: sum(ids) % 2 == 0)
        swapped = list(method._swapped(PROMPT, swaps_LK, search.generator(0)))
        assert len(swapped) == 7 and all(sum(ids) % 2 == 0 for ids in swapped)
        assert all(sum(a != b for a, b in zip(ids, PROMPT, strict=True)) == 1 for ids in swapped)
        monkeypatch.setattr(search.layout, "reads_back", lambda ids: False)
        start = method.start(PROMPT)
        proposal = method.advance(0, start)
        assert proposal.ids is None and torch.equal(proposal.tensors["ids_L"], start["ids_L"])


def test_it_reaches_the_gain_of_a_planted_hard_prompt(llm: LLM, tmp_path: Path) -> None:
    """The seeds 0 to 4 reach 0.84, 0.99, 1.07, 1.13 and 0.95 of it; another processor rounds differently."""
    with workbench(llm, planted_items(llm), tmp_path, seed=3) as bench:
        found = optimize(bench, INITIAL, OPTIONS(length=4, steps=8, num_candidates=24, batch=4))
        empty, planted, score = (bench.evaluate(v, bench.validation).mean for v in (INITIAL, PLANTED, found.variant))
    assert planted - empty > 0.3
    assert (score - empty) / (planted - empty) >= 0.8


@pytest.mark.parametrize("name", ["length", "steps", "top_k", "num_candidates", "batch"])
def test_wrong_options_are_named(name: str) -> None:
    with pytest.raises(InvalidOption, match=f"1 gcg option is out of range: {name}=0 "):
        OPTIONS(**{name: 0})
