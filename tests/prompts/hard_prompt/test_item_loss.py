"""Losses and gradients are those of transformers with an explicit one-hot matrix, and the loss is the metric's."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch
from tests.prompts.hard_prompt.planted import INITIAL, word_items, workbench
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from hasten import LLM
from hasten.core.errors import HastenError
from hasten.entrypoints.task_options import TaskOptions
from hasten.prompts.hard_prompt import item_loss
from hasten.prompts.hard_prompt.item_loss import ItemLoss
from hasten.prompts.hard_prompt.prompt_layout import PromptLayout, Row
from hasten.training.target_model import TargetModel

HEAD = [7, 8]
PROMPT = [30, 41, 52]
# Items of several lengths; the second has two references, of which the first or the other is the more likely one.
ITEMS = [[Row([11, 12], [13, 14, 15])], [Row([21], [22, 23]), Row([21, 24], [25])], [Row([31, 32, 33], [34])]]


@pytest.fixture(scope="module")
def reference(word_folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(word_folder, dtype=torch.float32).requires_grad_(False)
    return model


@pytest.fixture
def loss(word_folder: Path) -> ItemLoss:
    return ItemLoss(TargetModel.load(word_folder), HEAD, ITEMS)


def one_hot_loss(reference: PreTrainedModel, one_hot_LV: Tensor, rows: list[Row]) -> Tensor:
    """Return the loss of one item, one sequence at a time, by the labels of transformers."""
    table_VE = reference.get_input_embeddings().weight
    losses = []
    for tail_ids, reference_ids in rows:
        after = torch.tensor([*tail_ids, *reference_ids])
        embedded = torch.cat([table_VE[HEAD], one_hot_LV @ table_VE, table_VE[after]])
        ignored = len(embedded) - len(reference_ids)
        labels = torch.tensor([-100] * ignored + reference_ids)
        losses.append(reference(inputs_embeds=embedded[None], labels=labels[None]).loss)
    return torch.stack(losses).min()


def one_hot(ids: list[int]) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(ids), 101).float()


@pytest.fixture(params=["at once", "in parts"])
def _limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in parts":
        monkeypatch.setattr(item_loss, "MAX_TOKENS", 20)
        monkeypatch.setattr(item_loss, "MAX_LOGITS", 303)


@pytest.mark.usefixtures("_limits")
def test_losses_are_those_of_transformers(loss: ItemLoss, reference: PreTrainedModel) -> None:
    prompts = [PROMPT, [60, 61, 62], [5, 5, 90]]
    table_VE = reference.get_input_embeddings().weight
    found = loss.losses(table_VE[torch.tensor(prompts)], [2, 0, 1])
    expected = [[one_hot_loss(reference, one_hot(ids), ITEMS[item]) for item in (2, 0, 1)] for ids in prompts]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-5)
    lengths = [sum(len(HEAD) + 3 + len(row.tail_ids) + len(row.reference_ids) for row in rows) for rows in ITEMS]
    assert loss.num_tokens == 3 * sum(lengths)


@pytest.mark.usefixtures("_limits")
def test_the_gradient_is_that_of_an_explicit_one_hot_matrix(loss: ItemLoss, reference: PreTrainedModel) -> None:
    table_VE = reference.get_input_embeddings().weight
    value, gradient_LE = loss.gradient(table_VE[PROMPT], [0, 1, 2])
    one_hot_LV = one_hot(PROMPT).requires_grad_()
    expected = torch.stack([one_hot_loss(reference, one_hot_LV, rows) for rows in ITEMS]).mean()
    torch.autograd.backward(expected)
    assert value == pytest.approx(float(expected.detach()), abs=1e-5)
    torch.testing.assert_close(gradient_LE @ table_VE.T, one_hot_LV.grad, atol=1e-5, rtol=1e-4)
    num_tokens, loss.num_tokens = loss.num_tokens, 0
    loss.losses(table_VE[PROMPT][None], [0, 1, 2])
    assert num_tokens == 2 * loss.num_tokens


def test_both_references_of_an_item_count(reference: PreTrainedModel) -> None:
    """The item above tests the minimum: over prompts, each of its references is the more likely one at times."""
    drawn = torch.randint(3, 100, (20, 3), generator=torch.Generator().manual_seed(0)).tolist()
    losses = [[float(one_hot_loss(reference, one_hot(ids), [row])) for row in ITEMS[1]] for ids in drawn]
    assert {first < second for first, second in losses} == {True, False}


def test_the_loss_is_the_metric_with_the_opposite_sign(word_llm: LLM, word_folder: Path, tmp_path: Path) -> None:
    items = word_items()
    layout = PromptLayout(word_llm.tokenizer, INITIAL, items, TaskOptions())
    loss = ItemLoss(TargetModel.load(word_folder), layout.head_ids, layout.rows)
    table_VE = loss._target.decoder.embed(torch.arange(101))
    with workbench(word_llm, items, tmp_path) as bench:
        scores = bench.evaluate(layout.variant(PROMPT, "found"), items).scores
    found = -loss.losses(table_VE[PROMPT][None], range(len(items)))[0]
    assert found.tolist() == pytest.approx(scores, abs=1e-4) and statistics.stdev(scores) > 0.1


def test_a_loss_that_is_not_finite_is_refused(loss: ItemLoss) -> None:
    table_VE = loss._target.decoder.embed(torch.arange(101))
    loss._target.decoder.norm.weight.fill_(3e38)
    for call in (lambda: loss.losses(table_VE[PROMPT][None], [0]), lambda: loss.gradient(table_VE[PROMPT], [0])):
        with pytest.raises(HastenError, match=r"the loss of a hard prompt is not finite\. Check the model"):
            call()
