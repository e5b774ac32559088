"""A planted reward rises within the KL limit, and a killed run goes on to the same bits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.conftest import stop_after
from transformers import AutoModelForCausalLM

from hasten.core.errors import HastenError, InvalidOption
from hasten.training.callback import TrainingCallback
from hasten.training.examples import Example, Examples
from hasten.training.options import TrainOptions
from hasten.training.preference.policy_loss import PolicyTokens, policy_loss
from hasten.training.preference.policy_source import PolicyBatch, PolicyPrompts, PolicySource
from hasten.training.preference.policy_task import PolicyTask
from hasten.training.preference.recipes import PolicyRecipe
from hasten.training.preference.train import split_prompts, train_policy
from hasten.training.resume import ResumeFolder
from hasten.training.target_model import TargetModel
from hasten.training.trainable_model import TrainableModel

OPTIONS = TrainOptions(steps=10, batch=32, seq_len=32, lr=6e-3, validation_fraction=0.3, threads=1, patience=100)
RECIPE = PolicyRecipe(group_size=4, max_new_tokens=4, refresh_every=2, max_kl=2.0)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    lines = [{"input": f"w{10 + i} w{20 + i}", "output": "w1"} for i in range(12)]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


@pytest.fixture
def share(tmp_path: Path) -> str:
    """The share of output words in the upper half of the vocabulary."""
    file = tmp_path / "share.py"
    file.write_text(
        "def reward(input, output):\n"
        "    words = [int(word[1:]) for word in output.split()]\n"
        "    return sum(word >= 50 for word in words) / max(1, len(words))\n"
    )
    return str(file)


@pytest.mark.parametrize("options", [{}, {"algorithm": "rloo"}], ids=str)
def test_a_planted_reward_rises_within_the_kl_limit(
    model: Path, prompts: Path, share: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    recipe = PolicyRecipe(group_size=4, max_new_tokens=4, refresh_every=2, max_kl=2.0, **options)
    result = train_policy(str(model), prompts, tmp_path / "out", recipe, OPTIONS, reward=share)
    assert result is not None
    report = json.loads((tmp_path / "out" / "training.json").read_text())
    before, after = report["score_before"], report["held_out_score"]
    assert (before["kl_to_reference"], before["outputs"]) == (0, 256)
    assert after["reward"] > before["reward"] + 0.15 and 0 < after["kl_to_reference"] <= 2.0
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


class Reward:
    """The number of the last word."""

    identity = "last"

    def scores(self, texts: list[tuple[str, str]]) -> list[float]:
        return [float(output.split()[-1][1:]) if output.split() else -1.0 for _, output in texts]

    def close(self) -> None:
        """Do nothing."""


def source(model: Path, out: Path, student: TrainableModel, recipe: PolicyRecipe) -> PolicySource:
    from hasten.text.tokenizer import TextTokenizer

    tokenizer = TextTokenizer.load(model, 101)
    assert tokenizer is not None
    prompts = PolicyPrompts([[10, 20], [11, 21, 31], [12, 22]], [[13, 23], [14, 24]])
    resume = ResumeFolder.open(out, {})
    return PolicySource(
        student, TargetModel.load(model), prompts, Reward(), tokenizer, recipe, OPTIONS, resume, TrainingCallback(), model
    )


def perturb(student: TrainableModel) -> None:
    with torch.no_grad():
        for number, parameter in enumerate(student.decoder.parameters()):
            parameter += 0.03 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))


def test_batches_and_scores_are_those_of_transformers(model: Path, tmp_path: Path) -> None:
    """Log-probabilities, advantages, loss and KL, one output at a time and without padding."""
    student, recipe = TrainableModel.load(model), PolicyRecipe(group_size=4, max_new_tokens=5, temperature=1.7, beta=0.3)
    perturb(student)
    student.write(tmp_path / "sampler", model, torch.float32)
    policy_source = source(model, tmp_path / "out", student, recipe)
    batch = policy_source.batch(1, 8, 32, 0)
    perturb(student)
    student.write(tmp_path / "policy", model, torch.float32)
    folders = (tmp_path / "policy", tmp_path / "sampler", model)
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in folders]
    assert isinstance(batch, PolicyBatch) and batch.is_output_BS is not None and batch.advantages_B is not None
    columns: list[list[torch.Tensor]] = [[], [], []]
    rewards, owners = [], []
    for number, (ids, mask) in enumerate(zip(batch.ids_BS, batch.is_output_BS, strict=True)):
        first, length = int(mask.nonzero().min()), int(mask.nonzero().max()) + 1
        for column, reference in zip(columns, models, strict=True):
            logprobs_SV = (reference(ids[None, :length]).logits[0] / 1.7).log_softmax(-1).detach()
            column.append(logprobs_SV[first - 1 : length - 1].gather(1, ids[first:length, None])[:, 0])
        words = [token for token in ids[first:length].tolist() if token not in (0, 1, 2)]
        rewards.append(float(words[-1]) if words else -1.0)
        owners += [number] * (length - first)
    assert batch.rewards_B.tolist() == rewards
    for group in (rewards[:4], rewards[4:]):
        mean = sum(group) / 4
        deviation = math.sqrt(sum((reward - mean) ** 2 for reward in group) / 3)
        found = batch.advantages_B[:4] if group is not rewards[4:] and group == rewards[:4] else batch.advantages_B[4:]
        assert found.tolist() == pytest.approx([(reward - mean) / (deviation + 1e-4) for reward in group], abs=1e-4)
    policy_R, sampled_R, reference_R = map(torch.cat, columns)
    torch.testing.assert_close(batch.sampled_R, sampled_R, atol=1e-4, rtol=0)
    torch.testing.assert_close(batch.reference_R, reference_R, atol=1e-4, rtol=0)
    expected = policy_loss(PolicyTokens(policy_R, sampled_R, reference_R, torch.tensor(owners)), batch.advantages_B, recipe)
    task = PolicyTask(student, TargetModel.load(model), recipe, model)
    assert float(task.loss(batch).detach()) == pytest.approx(float(expected), abs=1e-4)
    score, total = task.evaluate(batch), 0.0
    for ids, mask in zip(batch.ids_BS, batch.is_output_BS, strict=True):
        first, length = int(mask.nonzero().min()), int(mask.nonzero().max()) + 1
        pair = [
            (each(ids[None, :length]).logits[0] / 1.7).log_softmax(-1)[first - 1 : length - 1] for each in (models[0], models[2])
        ]
        total += float((pair[0].exp() * (pair[0] - pair[1])).sum().detach())
    assert score.kl == pytest.approx(total, abs=1e-3) and score.num_positions == len(owners)
    assert (score.mean_reward, score.num_outputs) == (pytest.approx(sum(rewards) / 8), 8)


def test_fresh_outputs_have_the_ratio_of_one(model: Path, tmp_path: Path) -> None:
    student = TrainableModel.load(model)
    recipe = PolicyRecipe(group_size=4, max_new_tokens=5, beta=0.0)
    batch = source(model, tmp_path / "out", student, recipe).batch(0, 8, 32, 0)
    task = PolicyTask(student, TargetModel.load(model), recipe, model)
    assert batch.advantages_B is not None
    assert float(task.loss(batch).detach()) == pytest.approx(-float(batch.advantages_B.mean()), abs=1e-5)


def test_evaluation_reads_held_out_prompts_with_the_same_seeds(model: Path, tmp_path: Path) -> None:
    student = TrainableModel.load(model)
    policy_source = source(model, tmp_path / "out", student, RECIPE)
    first, again = (list(policy_source.validation_batches(16, 32, 40)) for _ in range(2))
    assert sum(len(batch.ids_BS) for batch in first) == 64
    assert all(torch.equal(one.ids_BS, other.ids_BS) for one, other in zip(first, again, strict=True))
    assert {tuple(row[:2].tolist()) for batch in first for row in batch.ids_BS} == {(13, 23), (14, 24)}
    perturb(student)
    assert not all(
        torch.equal(one.ids_BS, other.ids_BS)
        for one, other in zip(first, policy_source.validation_batches(16, 32, 40), strict=True)
        if one.ids_BS.shape == other.ids_BS.shape
    )


class Killed(Exception):
    """Stands for a death of the process."""


class KillAt(TrainingCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, step: int, total_steps: int, loss: float) -> None:
        if step == self.step:
            raise Killed


def test_a_killed_run_goes_on_to_the_same_bits(model: Path, prompts: Path, share: str, tmp_path: Path) -> None:
    options = TrainOptions(steps=5, batch=8, seq_len=32, lr=1e-3, validation_fraction=0.3, threads=1, patience=100)

    def run(name: str, **further: Any) -> Any:
        return train_policy(str(model), prompts, tmp_path / name, RECIPE, options, reward=share, **further)

    run("whole")
    assert run("cut", should_stop=stop_after(1)) is None
    with pytest.raises(Killed):
        run("cut", callback=KillAt(5))
    assert not (tmp_path / "cut" / "config.json").exists()
    run("cut")
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)
    assert (tmp_path / "cut" / "training.json").read_text() == (tmp_path / "whole" / "training.json").read_text()
    assert not (tmp_path / "cut" / ".resume").exists()


def test_training_ends_beyond_the_kl_limit(model: Path, prompts: Path, share: str, tmp_path: Path) -> None:
    """The result keeps a limit that training crosses, and without any evaluation within it there is no result."""
    options = TrainOptions(steps=40, batch=16, seq_len=32, lr=3e-3, validation_fraction=0.3, threads=1, patience=100)
    limits = {"group_size": 4, "max_new_tokens": 4, "refresh_every": 2, "beta": 0.0}
    result = train_policy(str(model), prompts, tmp_path / "out", PolicyRecipe(**limits, max_kl=0.1), options, reward=share)
    assert result is not None
    kls = [entry["kl_to_reference"] for entry in result.report["evaluations"]]
    assert kls[-1] > 0.1 and max(kls[:-1]) <= 0.1 and result.state.step < 40
    assert result.score.mean_kl <= 0.1
    with pytest.raises(InvalidOption, match=r"no evaluation within the KL limit.*allowed: up to 1e-09"):
        train_policy(str(model), prompts, tmp_path / "none", PolicyRecipe(**limits, max_kl=1e-9), options, reward=share)
    assert not (tmp_path / "none" / "config.json").exists()


def test_faults_are_one_error_before_anything_is_written(model: Path, prompts: Path, share: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    uneven = TrainOptions(steps=2, batch=6, seq_len=32)
    with pytest.raises(InvalidOption, match=r"batch=6, group_size=4.*--batch 4"):
        train_policy(str(model), prompts, out, RECIPE, uneven, reward=share)
    with pytest.raises(InvalidOption, match="no such reward"):
        train_policy(str(model), prompts, out, RECIPE, OPTIONS, reward="goodness")
    (tmp_path / "long.jsonl").write_text(json.dumps({"input": "w10 " * 40}))
    with pytest.raises(InvalidOption, match=r"prompt in line 1.*from 1 to 32"):
        train_policy(str(model), tmp_path / "long.jsonl", out, RECIPE, OPTIONS, reward=share)
    with pytest.raises(InvalidOption, match="too few prompts"):
        split_prompts([[1, 2], [1, 2]], 0.5)
    (tmp_path / "faulty.py").write_text("def reward(input, output):\n    return 1 / 0\n")
    with pytest.raises(HastenError, match=r"faulty\.py:reward failed.*ZeroDivisionError"):
        train_policy(str(model), prompts, out, RECIPE, OPTIONS, reward=str(tmp_path / "faulty.py"))
    assert not out.exists() or not (out / "config.json").exists()


def test_the_reference_may_be_another_model(model: Path, prompts: Path, share: str, tmp_path: Path) -> None:
    """The KL divergence before training is that from the other model, and the limit holds from the start."""
    other = TrainableModel.load(model)
    perturb(other)
    other.write(tmp_path / "teacher", model, torch.float32)
    options = TrainOptions(steps=2, batch=4, seq_len=32, validation_fraction=0.3, threads=1)
    recipe = PolicyRecipe(group_size=4, max_new_tokens=4, max_kl=50.0)
    teacher = str(tmp_path / "teacher")
    result = train_policy(str(model), prompts, tmp_path / "out", recipe, options, reward=share, reference=teacher)
    assert result is not None and result.report["score_before"]["kl_to_reference"] > 0.01
    assert len(result.report["reference_sha256"]) == 64
    config = json.loads((tmp_path / "teacher" / "config.json").read_text())
    TrainableModel.new({**config, "vocab_size": 99}, 0).write(tmp_path / "smaller")
    smaller = str(tmp_path / "smaller")
    with pytest.raises(InvalidOption, match=r"got 99 tokens in .*smaller; allowed: 101 tokens"):
        train_policy(str(model), prompts, tmp_path / "other", recipe, options, reward=share, reference=smaller)


@pytest.mark.parametrize(("loss_mean", "weights"), [("token", [3, 1]), ("sequence", [2, 1]), ("constant", [2, 1])])
def test_batches_count_by_what_their_loss_is_a_mean_of(model: Path, loss_mean: str, weights: list[int]) -> None:
    examples = Examples.join([Example([5, 6, 7], 1), Example([5, 6, 7], 2)], [])
    task = PolicyTask(TrainableModel.load(model), TargetModel.load(model), PolicyRecipe(loss_mean=loss_mean), model)
    assert [task.weight(examples.select(indices, 0)) for indices in ([0, 1], [1])] == weights
