"""DPO's losses are TRL's and those of transformers' log-probabilities; training widens margins, and resumes to the same bits."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.training.conftest import stop_after
from transformers import AutoModelForCausalLM

from hasten import LLM
from hasten.core.errors import CheckpointError, InvalidOption
from hasten.training.callback import TrainingCallback
from hasten.training.examples import Example
from hasten.training.options import TrainOptions
from hasten.training.preference.dpo_task import DpoTask, dpo_loss, reference_logprobs
from hasten.training.preference.output_logprobs import token_logprobs
from hasten.training.preference.preference_pairs import Pair, PreferencePairs, read_pairs
from hasten.training.preference.recipes import DpoRecipe
from hasten.training.preference.train import train_dpo
from hasten.training.trainable_model import TrainableModel

TRL: dict[str, Any] = json.loads((Path(__file__).parent / "trl_losses.json").read_text())["dpo"]
OPTIONS = TrainOptions(steps=10, batch=4, seq_len=32, lr=3e-3, validation_fraction=0.2, threads=1, patience=100)


@pytest.mark.parametrize("case", TRL["cases"], ids=lambda case: f"{case['loss_type']}-{case['beta']}")
def test_loss_and_gradient_are_those_of_trl(case: dict[str, Any]) -> None:
    leaf_BS = torch.tensor(TRL["logprobs"], dtype=torch.float64, requires_grad=True)
    reference_BS, mask_BS = (torch.tensor(TRL[name], dtype=torch.float64) for name in ("reference", "mask"))
    gains_B = ((leaf_BS - reference_BS) * mask_BS).sum(1)
    if case["loss_type"] == "ipo":
        gains_B = gains_B / mask_BS.sum(1)
    chosen_P, rejected_P = gains_B.chunk(2)
    loss = dpo_loss(chosen_P - rejected_P, DpoRecipe(loss=case["loss_type"], beta=case["beta"])).mean()
    (gradient_BS,) = torch.autograd.grad(loss, leaf_BS)
    assert float(loss.detach()) == pytest.approx(case["loss"], rel=1e-12)
    torch.testing.assert_close(gradient_BS, torch.tensor(case["gradient"], dtype=torch.float64), atol=1e-12, rtol=1e-12)


def test_label_smoothing_is_the_loss_of_flipped_pairs() -> None:
    for margin in (-3.0, 0.0, 2.0):
        right, wrong = (math.log1p(math.exp(-sign * 0.5 * margin)) for sign in (1, -1))
        found = dpo_loss(torch.tensor([margin], dtype=torch.float64), DpoRecipe(beta=0.5, label_smoothing=0.2))
        assert float(found) == pytest.approx(0.8 * right + 0.2 * wrong)
    with pytest.raises(InvalidOption, match="label_smoothing"):
        DpoRecipe(loss="ipo", label_smoothing=0.1)


def pairs(count: int = 12) -> list[Pair]:
    draw = random.Random(2)

    def ids(low: int, high: int) -> list[int]:
        return [draw.randrange(3, 100) for _ in range(draw.randrange(low, high))]

    inputs = [ids(2, 6) for _ in range(count)]
    return [Pair(Example([*i, *ids(1, 5)], len(i)), Example([*i, *ids(1, 7)], len(i))) for i in inputs]


def perturb(student: TrainableModel) -> None:
    with torch.no_grad():
        for number, parameter in enumerate(student.decoder.parameters()):
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_the_task_computes_the_loss_of_transformers(model: Path, tmp_path: Path, loss: str) -> None:
    """One sequence at a time and without padding, by transformers; the reference is the model before a change."""
    student, split = TrainableModel.load(model), PreferencePairs.split(pairs(), 0.3)
    split = split.with_reference(reference_logprobs(student, split, 5))
    perturb(student)
    student.write(tmp_path / "changed", model, torch.float32)
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (tmp_path / "changed", model)]
    recipe = DpoRecipe(loss=loss, beta=0.7)
    batch = next(split.validation_batches(8, 32, 8))
    assert batch.is_output_BS is not None
    gains, margins = [], []
    for ids, mask in zip(batch.ids_BS, batch.is_output_BS, strict=True):
        length, first = int(mask.nonzero().max()) + 1, int(mask.nonzero().min())
        logps = [
            reference(ids[None, :length])
            .logits[0]
            .detach()
            .log_softmax(-1)[first - 1 : length - 1]
            .gather(1, ids[first:length, None])
            for reference in models
        ]
        gains.append(float((logps[0] - logps[1]).sum()))
        margins.append(gains[-1] / (length - first) if loss == "ipo" else gains[-1])
    half = len(gains) // 2
    differences = [margins[i] - margins[half + i] for i in range(half)]
    losses = [(d - 1 / 1.4) ** 2 if loss == "ipo" else math.log1p(math.exp(-0.7 * d)) for d in differences]
    task = DpoTask(student, recipe, model)
    score = task.evaluate(batch)
    assert score.num_pairs == half and score.mean_loss == pytest.approx(sum(losses) / half, abs=2e-5)
    assert float(task.loss(batch).detach()) == pytest.approx(sum(losses) / half, abs=2e-5)
    raw = [gains[i] - gains[half + i] for i in range(half)]
    assert score.accuracy == sum(d > 0 for d in raw) / half and score.mean_margin == pytest.approx(sum(raw) / half, abs=1e-4)


def test_the_gradient_of_a_weight_is_a_finite_difference(model: Path) -> None:
    student, split = TrainableModel.load(model), PreferencePairs.split(pairs(), 0.3)
    split = split.with_reference(reference_logprobs(student, split, 5))
    perturb(student)
    task, batch = DpoTask(student, DpoRecipe(beta=0.5), model), split.batch(0, 4, 32, 0)
    torch.autograd.backward(task.loss(batch))
    for name, parameter in list(task.parameters().items())[::5]:
        assert parameter.grad is not None, name
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        direction /= direction.norm()
        expected, values = float((parameter.grad * direction).sum()), []
        with torch.no_grad():
            for sign in (1, -1):
                parameter += sign * 1e-2 * direction
                values.append(float(task.loss(batch).double()))
                parameter -= sign * 1e-2 * direction
        assert (values[0] - values[1]) / 2e-2 == pytest.approx(expected, abs=2e-3), name


def preference_file(folder: Path) -> Path:
    """Write pairs for the tiny model: words below 50 are preferred."""
    draw = random.Random(4)
    lines = []
    for _ in range(40):
        given = " ".join(f"w{draw.randrange(10, 90)}" for _ in range(3))
        texts = [" ".join(f"w{draw.randrange(*span)}" for _ in range(draw.randrange(1, 4))) for span in ((10, 50), (50, 90))]
        lines.append({"input": given, "chosen": texts[0], "rejected": texts[1], "source": "drawn"})
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return file


def test_training_prefers_what_is_chosen_and_resumes_to_the_same_bits(model: Path, tmp_path: Path) -> None:
    file, recipe = preference_file(tmp_path), DpoRecipe()
    result = train_dpo(str(model), file, tmp_path / "whole", recipe, OPTIONS)
    assert result is not None and result.score.accuracy > 0.8 and result.score.mean_margin > 0.5
    report = json.loads((tmp_path / "whole" / "training.json").read_text())
    assert report["kl_to_reference"] > 0 and report["held_out_score"]["accuracy"] == result.score.accuracy
    for calls in (1, 3, 9):
        assert train_dpo(str(model), file, tmp_path / "cut", recipe, OPTIONS, should_stop=stop_after(calls)) is None
        assert not (tmp_path / "cut" / "config.json").exists()
    train_dpo(str(model), file, tmp_path / "cut", recipe, OPTIONS)
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)
    assert (tmp_path / "cut" / "training.json").read_text() == (tmp_path / "whole" / "training.json").read_text()
    AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    with LLM(str(tmp_path / "whole"), threads=1, max_model_len=64, kv_cache_memory="4MiB") as llm:
        assert llm.generate("w10 w11", use_tqdm=False)[0].outputs[0].token_ids


def test_a_saved_reference_of_other_pairs_is_refused(model: Path, tmp_path: Path) -> None:
    file, out = preference_file(tmp_path), tmp_path / "out"
    assert train_dpo(str(model), file, out, DpoRecipe(), OPTIONS, should_stop=stop_after(12)) is None
    save_file({"logprobs_N2": torch.zeros(3, 2)}, out / ".resume" / "reference.safetensors")
    with pytest.raises(CheckpointError, match="reference has other pairs"):
        train_dpo(str(model), file, out, DpoRecipe(), OPTIONS)


def test_pairs_of_one_input_are_on_one_side_and_come_once_an_epoch() -> None:
    listed = [*pairs(), *(Pair(Example([*p.chosen.ids, 5], p.chosen.num_input), p.rejected) for p in pairs())]
    split = PreferencePairs.split(listed, 0.2)  # 5 pairs, so that a sixth must come along
    assert split.chosen.counts.tolist() == [18, 6, 0]
    sides = []
    for rows in (range(18), range(18, 24)):
        batch = split.select(rows, 0)
        assert batch.is_output_BS is not None
        sides.append(
            {tuple(ids[: int(mask.nonzero().min())].tolist()) for ids, mask in zip(batch.ids_BS, batch.is_output_BS, strict=True)}
        )
    assert not sides[0] & sides[1] and len(sides[1]) == 3
    rows = [tuple(row.tolist()) for step in range(6) for row in split.batch(step, 3, 32, 7).ids_BS[:, :4]]
    assert len(rows) == 36
    with pytest.raises(InvalidOption, match="2 different inputs"):
        PreferencePairs.split(listed[:1], 0.25)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"input": "w10", "chosen": "w11"}', "line 2 of .* has no input and chosen and rejected"),
        ('{"input": "w10", "chosen": "w11", "rejected": 3}', "line 2 of"),
        ("[" * 100_000, "line 2 of"),
        (
            '{"input": "w10", "chosen": "w11", "rejected": "' + "w12 " * 40 + '"}',
            "got 1 of input and 41 of the longer output|too many",
        ),
    ],
    ids=["missing", "number", "nested", "long"],
)
def test_a_wrong_line_is_one_error(model: Path, tmp_path: Path, line: str, message: str) -> None:
    from hasten.text.tokenizer import TextTokenizer

    tokenizer = TextTokenizer.load(model, 101)
    assert tokenizer is not None
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"input": "w10", "chosen": "w11", "rejected": "w12"}\n' + line)
    with pytest.raises(InvalidOption, match=message):
        read_pairs(file, tokenizer, 32)


def test_the_reference_may_be_another_model(model: Path, tmp_path: Path) -> None:
    """Margins before training are those between the two models."""
    other, file, out = TrainableModel.load(model), preference_file(tmp_path), tmp_path / "out"
    perturb(other)
    other.write(tmp_path / "teacher", model, torch.float32)
    reference = str(tmp_path / "teacher")
    assert train_dpo(str(model), file, out, DpoRecipe(), OPTIONS, reference=reference, should_stop=stop_after(12)) is None
    saved = load_file(out / ".resume" / "reference.safetensors")["logprobs_N2"]
    from hasten.text.tokenizer import TextTokenizer

    tokenizer = TextTokenizer.load(model, 101)
    assert tokenizer is not None
    split = PreferencePairs.split(read_pairs(file, tokenizer, 32), OPTIONS.validation_fraction)
    expected, own = (reference_logprobs(each, split, 3) for each in (other, TrainableModel.load(model)))
    torch.testing.assert_close(saved, expected, atol=1e-4, rtol=1e-4)
    assert own is not None and not torch.allclose(saved, own, atol=1e-2)


def test_in_bfloat16_the_first_margins_are_zero_and_logits_keep_their_digits(model: Path, tmp_path: Path) -> None:
    first: list[tuple[float, float]] = []

    class Log(TrainingCallback):
        def on_step_end(self, step: int, total_steps: int, loss: float) -> None:
            first.append((step, loss))

    options = TrainOptions(steps=1, batch=4, seq_len=32, threads=1, precision="bfloat16", validation_fraction=0.3)
    train_dpo(str(model), preference_file(tmp_path), tmp_path / "out", DpoRecipe(beta=100.0), options, callback=Log())
    assert first == [(1, pytest.approx(math.log(2), abs=1e-6))]

    hidden_RE, weight_VE = 4 * torch.randn(3, 8), torch.randn(50, 8)
    ids_R = torch.tensor([1, 2, 3])
    expected = (hidden_RE @ weight_VE.T).log_softmax(-1).gather(1, ids_R[:, None])[:, 0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(token_logprobs(hidden_RE, weight_VE, ids_R), expected, atol=1e-5)


def test_a_broken_reference_is_one_error(model: Path) -> None:
    student, split = TrainableModel.load(model), PreferencePairs.split(pairs(), 0.3)
    with torch.no_grad():
        next(iter(student.decoder.parameters())).fill_(math.nan)
    with pytest.raises(CheckpointError, match="the reference gives log-probabilities that are not finite"):
        reference_logprobs(student, split, 5)
