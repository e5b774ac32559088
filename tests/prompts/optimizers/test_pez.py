"""The projection of PEZ is that of a loop, its update that of PyTorch's AdamW, and it finds a planted hard prompt's gain."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.prompts.hard_prompt.planted import INITIAL, PLANTED, planted_items, word_items, workbench

from hasten import LLM
from hasten.core.errors import InvalidOption
from hasten.prompts.hard_prompt.search import HardPromptSearch
from hasten.prompts.optimizers.pez import OPTIONS, ProjectedGradient, adamw_step, nearest_tokens, optimize


def test_the_nearest_tokens_are_those_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    prompt_LE, table_VE = torch.randn(3, 8, generator=generator), torch.randn(40, 8, generator=generator)
    table_VE[7] = 0.0  # has no direction
    is_printable_V = torch.rand(40, generator=generator) > 0.3
    is_printable_V[7] = True
    found = nearest_tokens(prompt_LE, table_VE, is_printable_V, 5)
    for position in range(3):
        similarity = {
            token: float(torch.cosine_similarity(prompt_LE[position], table_VE[token], dim=0))
            for token in range(40)
            if is_printable_V[token]
        }
        assert found[position].tolist() == sorted(similarity, key=lambda token: -similarity[token])[:5]


def test_the_update_is_that_of_adamw() -> None:
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(3, 8, generator=generator))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.1)
    state = {"prompt_LE": parameter.detach().clone(), "exp_avg_LE": torch.zeros(3, 8), "exp_avg_sq_LE": torch.zeros(3, 8)}
    for step in range(20):
        parameter.grad = torch.randn(3, 8, generator=generator)
        state = adamw_step(state, parameter.grad, step, 0.1)
        optimizer.step()
    torch.testing.assert_close(state["prompt_LE"], parameter.detach())


def test_a_step_takes_the_gradient_at_the_tokens(word_llm: LLM, tmp_path: Path) -> None:
    """It moves the embeddings away from a vocabulary row by the gradient at the row."""
    options = OPTIONS(length=3, batch=4)
    with workbench(word_llm, word_items(9), tmp_path) as bench:
        search = HardPromptSearch("pez", bench, INITIAL, options)
        method, ids = ProjectedGradient(search, options), [30, 41, 52]
        away = method.start(ids) | {"prompt_LE": 7 * search.table_VE[ids] + 0.01}
        proposal = method.advance(0, away)
        assert proposal.ids == tuple(ids)
        _, gradient_LE = search.loss.gradient(search.table_VE[ids], search.batch(0))
        expected = adamw_step(away, gradient_LE, 0, options.learning_rate)
        assert all(torch.equal(proposal.tensors[name], expected[name]) for name in expected)


def test_a_projection_reads_back(word_llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the nearest tokens, each position takes the first one with which all so far read back."""
    options = OPTIONS(length=3)
    with workbench(word_llm, word_items(), tmp_path) as bench:
        search = HardPromptSearch("pez", bench, INITIAL, options)
        method = ProjectedGradient(search, options)
        prompt_LE = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
        nearest = nearest_tokens(prompt_LE, search.table_VE, search.is_printable_V, 64).tolist()
        monkeypatch.setattr(search.layout, "is_stable", lambda ids: ids[-1] % 3 == 0)
        monkeypatch.setattr(search.layout, "reads_back", lambda ids: ids[-1] % 5 == 0)
        ids, reads_back = method._project(prompt_LE)
        assert reads_back and ids == [next(t for t in row if t % n == 0) for row, n in zip(nearest, (3, 3, 5), strict=True)]
        assert ids != [row[0] for row in nearest]
        monkeypatch.setattr(search.layout, "reads_back", lambda ids: False)
        assert method._project(prompt_LE) == ([*ids[:2], nearest[2][0]], False)
        assert method.advance(0, method.start([30, 41, 52])).ids is None


def test_it_reaches_the_gain_of_a_planted_hard_prompt(llm: LLM, tmp_path: Path) -> None:
    """The seeds 0 to 4 reach 1.09, 1.02, 1.31, 1.01 and 1.52 of it; another processor rounds differently."""
    with workbench(llm, planted_items(llm), tmp_path, seed=2) as bench:
        found = optimize(bench, INITIAL, OPTIONS(length=4, steps=40, batch=4))
        empty, planted, score = (bench.evaluate(v, bench.validation).mean for v in (INITIAL, PLANTED, found.variant))
    assert planted - empty > 0.3
    assert (score - empty) / (planted - empty) >= 0.8


def test_wrong_options_are_named() -> None:
    for name, value in (("length", 0), ("steps", 0), ("learning_rate", 0.0), ("learning_rate", 11.0), ("batch", 0)):
        with pytest.raises(InvalidOption, match=f"1 pez option is out of range: {name}={value} "):
            OPTIONS(**{name: value})
