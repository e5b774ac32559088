"""One pass with exits equals a token-by-token reference."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.early_exit.reference_exits import Rule
from tests.training.early_exit.reference_costs import random_exits, reference_costs

from hasten.early_exit.confidence import ExitInput
from hasten.training.early_exit import risks
from hasten.training.early_exit import run_with_exits as module
from hasten.training.early_exit.exit_statistics import exit_statistics
from hasten.training.early_exit.risks import request_risks, token_risks
from hasten.training.early_exit.tables import token_table_cost
from hasten.training.target_model import TargetModel

NAMES = ["llama-gqa", "qwen3-mixed-window", "llama-mqa-bias"]
RULES = [Rule("softmax", 0.35), Rule("softmax", 0.35, decay=None), Rule("saturation", 0.82), Rule("classifier", 0.5)]
SEQ_LEN = 33


def sequences(count: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 96, (count, SEQ_LEN), generator=torch.Generator().manual_seed(seed))


def exit_layers(folder: Path) -> tuple[int, ...]:
    return tuple(range(1, TargetModel.load(folder).spec.num_layers))


def mismatches(folder: Path, rule: Rule) -> list[str]:
    """Return where layers or loss differ from the reference. The rule must decide something."""
    target = TargetModel.load(folder)
    exits = random_exits(target, exit_layers(folder))
    expected = [reference_costs(folder, exits, ids_S.tolist(), rule) for ids_S in sequences()]
    assert min(costs.smallest_margin for costs in expected) > 1e-5, "a margin too small for float32: use other sequences"
    assert len({layer for costs in expected for layer in costs.exit_layers}) > 1, "all tokens exit at one layer"
    actual = token_risks(target, exits, sequences(), rule.name, [rule.threshold], rule.decay)
    faults = []
    for number, costs in enumerate(expected):
        layers, loss = sum(costs.exit_layers[1:]) / len(costs.exit_layers[1:]), sum(costs.losses[1:]) / len(costs.losses[1:])
        if abs(layers - float(actual.layers_LN[0, number])) > 1e-9:
            faults.append(f"sequence {number}: {float(actual.layers_LN[0, number])} layers, not {layers}")
        if abs(loss - float(actual.risk_LN[0, number])) > 1e-4:
            faults.append(f"sequence {number}: {float(actual.risk_LN[0, number])} nats, not {loss}")
    return faults


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_rules_that_test_every_token(tiny: Callable[[str], Path], name: str, rule: Rule) -> None:
    assert mismatches(tiny(name), rule) == []


def test_a_token_table(tiny: Callable[[str], Path]) -> None:
    folder = tiny("llama-gqa")
    target = TargetModel.load(folder)
    exits, rng = random_exits(target, (1, 2)), random.Random(3)
    table = tuple(rng.randint(1, 3) for _ in range(101))
    rule = Rule("token_table", token_layers=table)
    expected = [reference_costs(folder, exits, ids_S.tolist(), rule) for ids_S in sequences()]
    loss, layers = token_table_cost(target, exits, sequences(), torch.tensor(table, dtype=torch.int32))
    assert layers == pytest.approx(sum(sum(costs.exit_layers[1:]) for costs in expected) / (3 * (SEQ_LEN - 2)))
    assert loss == pytest.approx(sum(sum(costs.losses[1:]) for costs in expected) / (3 * (SEQ_LEN - 2)), abs=1e-4)


@pytest.mark.parametrize("layers", [(1, 2), (2,)], ids=str)
def test_a_request_exits_where_its_prompt_is_confident(tiny: Callable[[str], Path], layers: tuple[int, ...]) -> None:
    """At the first exit where the confidence of the prompt's last token is above the threshold."""
    target = TargetModel.load(tiny("llama-gqa"))
    exits, ids_NS = random_exits(target, layers), sequences(6)
    statistics, prompt = exit_statistics(target, exits, ids_NS), (SEQ_LEN - 1) // 2
    thresholds = [1.12, 0.36, 0.33, 0.3, 0.0]
    costs = request_risks(statistics, exits.spec, "entropy", thresholds)
    seen = set()
    for number, ids_S in enumerate(ids_NS):
        states = target.hidden_states(ids_S[None, :-1], [layer - 1 for layer in layers])
        logits = [target.decoder.head(exits.at(layer).tuned_lens(states.aux_hidden_states[layer - 1])) for layer in layers]
        logits.append(target.decoder.head(states.last_TE))
        confidences = [
            1 - float(torch.distributions.Categorical(logits=each[prompt - 1]).entropy()) / torch.log(torch.tensor(101.0))
            for each in logits
        ]
        nll = [torch.nn.functional.cross_entropy(each[prompt - 1 :], ids_S[prompt:]) for each in logits]
        for row, threshold in enumerate(thresholds):
            exit_index = next((i for i in range(len(layers)) if confidences[i] > threshold), len(layers))
            seen.add(exit_index)
            assert float(costs.layers_LN[row, number]) == [*layers, 3][exit_index]
            assert float(costs.risk_LN[row, number]) == pytest.approx(float(nll[exit_index] - nll[-1]), abs=1e-4)
    assert len(seen) == len(layers) + 1


def test_without_exits_there_is_no_loss(tiny: Callable[[str], Path]) -> None:
    target = TargetModel.load(tiny("qwen3-mixed-window"))
    costs = token_risks(target, random_exits(target, (1, 2, 3)), sequences(), "softmax", [1.12])
    assert float(costs.risk_LN.abs().max()) < 1e-6 and costs.layers_LN.tolist() == [[4.0] * 3]


@pytest.mark.parametrize("name", ["gpt2", "llama-gqa"])
def test_statistics_are_those_of_each_exit_alone(tiny: Callable[[str], Path], name: str) -> None:
    """Learned positions are added before the first layer, and must not be added twice."""
    target = TargetModel.load(tiny(name))
    exits, ids_NS = random_exits(target, (1, 2)), sequences(2)
    statistics = exit_statistics(target, exits, ids_NS)
    for layer in (1, 2):
        states = target.hidden_states(ids_NS[:, :-1], [layer - 1])
        exit_logp = target.decoder.head(exits.at(layer).tuned_lens(states.aux_hidden_states[layer - 1])).double().log_softmax(-1)
        logp = target.decoder.head(states.last_TE).double().log_softmax(-1)
        kl = torch.nn.functional.kl_div(exit_logp, logp, log_target=True, reduction="none").sum(-1)
        torch.testing.assert_close(statistics.kl_NDT[:, layer - 1].flatten().double(), kl, atol=1e-5, rtol=1e-4)
        assert torch.equal(statistics.agrees_NDT[:, layer - 1].flatten(), exit_logp.argmax(-1) == logp.argmax(-1))
        nll = -exit_logp.gather(-1, ids_NS[:, 1:].reshape(-1, 1))[:, 0]
        torch.testing.assert_close(statistics.exit_nll_NDT[:, layer - 1].flatten().double(), nll, atol=1e-5, rtol=1e-4)
    all_exit = token_risks(target, exits, ids_NS, "classifier", [0.0], None)
    loss = (statistics.exit_nll_NDT[:, 0] - statistics.nll_NT)[:, 1:].mean(1)
    assert all_exit.layers_LN.tolist() == [[1.0, 1.0]]
    torch.testing.assert_close(all_exit.risk_LN[0].float(), loss, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(all_exit.kl_LN[0].float(), statistics.kl_NDT[:, 0, 1:].mean(1), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("fault", ["not frozen", "tuned_lens", "not decayed", "no first exit", "wrong previous state"])
def test_planted_faults_are_detected(tiny: Callable[[str], Path], fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    folder, rule = tiny("llama-gqa"), RULES[0]
    freeze_exited, above_threshold = module.freeze_exited, risks.above_threshold
    if fault == "not frozen":  # later layers continue to compute an exited token
        monkeypatch.setattr(module, "freeze_exited", lambda active, computed, hidden: computed)
    elif fault == "tuned_lens":  # keys and values come from the output of the tuned lens
        head = random_exits(TargetModel.load(folder), exit_layers(folder)).at(1)

        def freeze_lens(active: torch.Tensor, computed: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            return freeze_exited(active, computed, head.tuned_lens(hidden))

        monkeypatch.setattr(module, "freeze_exited", freeze_lens)
    elif fault == "not decayed":
        monkeypatch.setattr(risks, "decayed_threshold", lambda threshold, decay, share: threshold)
    elif fault == "no first exit":

        def above_after_first(rule_name: str, thresholds: torch.Tensor) -> module.ShouldExit:
            should_exit = above_threshold(rule_name, thresholds)
            return lambda layer, rows, exit_input: should_exit(layer, rows, exit_input) & (layer > 1)

        monkeypatch.setattr(risks, "above_threshold", above_after_first)
    else:  # the previous state is the state itself
        rule = RULES[2]
        monkeypatch.setattr(module, "ExitInput", lambda hidden, previous, *rest: ExitInput(hidden, hidden, *rest))
    assert mismatches(folder, rule) != []
