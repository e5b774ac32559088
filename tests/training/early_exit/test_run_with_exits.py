"""Texts in one pass, with tokens that leave, equal the slow way: token by token, each key and value from its own state."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.early_exit.reference_exits import Rule
from tests.training.early_exit.reference_texts import SlowText, random_exits, slow_text

from hasten.early_exit.base import Reading
from hasten.training.early_exit import risks
from hasten.training.early_exit import run_with_exits as leaving
from hasten.training.early_exit.annotate import annotate
from hasten.training.early_exit.risks import request_risks, token_risks
from hasten.training.early_exit.tables import token_costs
from hasten.training.target_model import TargetModel

NAMES = ["llama-gqa", "qwen3-mixed-window", "llama-mqa-bias"]
RULES = [Rule("softmax", 0.35), Rule("softmax", 0.35, decay=None), Rule("saturation", 0.82), Rule("classifier", 0.5)]
LENGTH = 33


def texts(count: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 96, (count, LENGTH), generator=torch.Generator().manual_seed(seed))


def exit_layers(folder: Path) -> tuple[int, ...]:
    return tuple(range(1, TargetModel.load(folder).spec.num_layers))


def wrong(folder: Path, rule: Rule) -> list[str]:
    """What differs from the slow way: the layers or the loss of a text. Also checks that the rule decides something."""
    target = TargetModel.load(folder)
    exits = random_exits(target, exit_layers(folder))
    slow: list[SlowText] = [slow_text(folder, exits, text.tolist(), rule) for text in texts()]
    assert min(found.closest for found in slow) > 1e-5, "a decision too close for float32: take another text"
    assert len({depth for found in slow for depth in found.depths}) > 1, "this rule decides nothing"
    costs = token_risks(target, exits, texts(), rule.name, [rule.threshold], rule.decay)
    faults = []
    for number, found in enumerate(slow):
        layers, loss = sum(found.depths[1:]) / len(found.depths[1:]), sum(found.losses[1:]) / len(found.losses[1:])
        if abs(layers - float(costs.layers_LN[0, number])) > 1e-9:
            faults.append(f"text {number}: {float(costs.layers_LN[0, number])} layers, not {layers}")
        if abs(loss - float(costs.risk_LN[0, number])) > 1e-4:
            faults.append(f"text {number}: {float(costs.risk_LN[0, number])} nats, not {loss}")
    return faults


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_rules_that_ask_every_token(tiny: Callable[[str], Path], name: str, rule: Rule) -> None:
    assert wrong(tiny(name), rule) == []


def test_tokens_that_are_told_where_to_leave(tiny: Callable[[str], Path]) -> None:
    folder = tiny("llama-gqa")
    target = TargetModel.load(folder)
    exits, draw = random_exits(target, (1, 2)), random.Random(3)
    table = [draw.randint(1, 3) for _ in range(101)]
    slow = [slow_text(folder, exits, text.tolist(), Rule("token_table", token_layers=tuple(table))) for text in texts()]
    loss, layers = token_costs(target, exits, texts(), torch.tensor(table, dtype=torch.int32))
    assert layers == pytest.approx(sum(sum(found.depths[1:]) for found in slow) / (3 * (LENGTH - 2)))
    assert loss == pytest.approx(sum(sum(found.losses[1:]) for found in slow) / (3 * (LENGTH - 2)), abs=1e-4)


@pytest.mark.parametrize("layers", [(1, 2), (2,)], ids=str)
def test_a_whole_answer_leaves_where_its_prompt_is_sure(tiny: Callable[[str], Path], layers: tuple[int, ...]) -> None:
    """By the definition: at the first exit where the prompt's last token is surer than the threshold."""
    target = TargetModel.load(tiny("llama-gqa"))
    exits, ids_NW = random_exits(target, layers), texts(6)
    found, prompt = annotate(target, exits, ids_NW), (LENGTH - 1) // 2
    thresholds = [1.12, 0.36, 0.33, 0.3, 0.0]
    costs = request_risks(found, layers, 3, "entropy", thresholds)
    seen = set()
    for number, ids_W in enumerate(ids_NW):
        taps = target.states(ids_W[None, :-1], [layer - 1 for layer in layers])
        logits = [target.decoder.head(exits.at(layer).tuned_lens(taps.aux_hidden_states[layer - 1])) for layer in layers]
        logits.append(target.decoder.head(taps.last_TE))
        sure = [
            1 - float(torch.distributions.Categorical(logits=each[prompt - 1]).entropy()) / torch.log(torch.tensor(101.0))
            for each in logits
        ]
        nll = [torch.nn.functional.cross_entropy(each[prompt - 1 :], ids_W[prompt:]) for each in logits]
        for place, threshold in enumerate(thresholds):
            goes = next((i for i in range(len(layers)) if sure[i] > threshold), len(layers))
            seen.add(goes)
            assert float(costs.layers_LN[place, number]) == [*layers, 3][goes]
            assert float(costs.risk_LN[place, number]) == pytest.approx(float(nll[goes] - nll[-1]), abs=1e-4)
    assert len(seen) == len(layers) + 1


def test_without_exits_nothing_is_lost(tiny: Callable[[str], Path]) -> None:
    target = TargetModel.load(tiny("qwen3-mixed-window"))
    costs = token_risks(target, random_exits(target, (1, 2, 3)), texts(), "softmax", [1.12])
    assert float(costs.risk_LN.abs().max()) < 1e-6 and costs.layers_LN.tolist() == [[4.0] * 3]


@pytest.mark.parametrize("name", ["gpt2", "llama-gqa"])
def test_annotations_are_what_each_exit_says_alone(tiny: Callable[[str], Path], name: str) -> None:
    """Learned positions come with the first layer, and must not come twice."""
    target = TargetModel.load(tiny(name))
    exits, ids_NW = random_exits(target, (1, 2)), texts(2)
    found = annotate(target, exits, ids_NW)
    for layer in (1, 2):
        states = target.states(ids_NW[:, :-1], [layer - 1])
        said = target.decoder.head(exits.at(layer).tuned_lens(states.aux_hidden_states[layer - 1])).double().log_softmax(-1)
        whole = target.decoder.head(states.last_TE).double().log_softmax(-1)
        kl = torch.nn.functional.kl_div(said, whole, log_target=True, reduction="none").sum(-1)
        torch.testing.assert_close(found.kl_NDT[:, layer - 1].flatten().double(), kl, atol=1e-5, rtol=1e-4)
        assert torch.equal(found.agrees_NDT[:, layer - 1].flatten(), said.argmax(-1) == whole.argmax(-1))
        nll = -said.gather(-1, ids_NW[:, 1:].reshape(-1, 1))[:, 0]
        torch.testing.assert_close(found.exit_nll_NDT[:, layer - 1].flatten().double(), nll, atol=1e-5, rtol=1e-4)
    everything = token_risks(target, exits, ids_NW, "classifier", [0.0], None)
    lost = (found.exit_nll_NDT[:, 0] - found.nll_NT)[:, 1:].mean(1)
    assert everything.layers_LN.tolist() == [[1.0, 1.0]]
    torch.testing.assert_close(everything.risk_LN[0].float(), lost, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(everything.kl_LN[0].float(), found.kl_NDT[:, 0, 1:].mean(1), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("fault", ["computed on", "tuned_lens", "not decayed", "first exit left out", "looks back too far"])
def test_planted_faults_are_seen(tiny: Callable[[str], Path], fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    folder, rule = tiny("llama-gqa"), RULES[0]
    held, decide = leaving.held, risks._measured
    if fault == "computed on":  # later layers go on computing a token that has left
        monkeypatch.setattr(leaving, "held", lambda inside, computed, hidden: computed)
    elif fault == "tuned_lens":  # keys and values come from what the exit made of the state
        found = random_exits(TargetModel.load(folder), exit_layers(folder)).at(1)

        def tuned_lens(inside: torch.Tensor, computed: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            return held(inside, computed, found.tuned_lens(hidden))

        monkeypatch.setattr(leaving, "held", tuned_lens)
    elif fault == "not decayed":
        monkeypatch.setattr(risks, "decayed", lambda threshold, decay, share: threshold)
    elif fault == "first exit left out":

        def late(name: str, limit: torch.Tensor) -> leaving.Decide:
            asks = decide(name, limit)
            return lambda layer, rows, reading: asks(layer, rows, reading) & (layer > 1)

        monkeypatch.setattr(risks, "_measured", late)
    else:  # before the state is the state itself
        rule = RULES[2]
        monkeypatch.setattr(leaving, "Reading", lambda hidden, before, *rest: Reading(hidden, hidden, *rest))
    assert wrong(folder, rule) != []
