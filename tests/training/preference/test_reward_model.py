"""A reward model learns an order, and transformers loads it with equal scores."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny_models import word_tokenizer
from tests.training.conftest import stop_after
from transformers import AutoModelForSequenceClassification

from hasten.core.errors import CheckpointError, HastenError, InvalidOption
from hasten.text.tokenizer import TextTokenizer
from hasten.training.examples import Example, output_tokens
from hasten.training.options import TrainOptions
from hasten.training.preference.preference_pairs import Pair, PreferencePairs
from hasten.training.preference.recipes import RewardModelRecipe
from hasten.training.preference.reward_model import RewardModel
from hasten.training.preference.reward_model_task import RewardModelTask
from hasten.training.preference.rewards import find_reward
from hasten.training.preference.train import train_reward_model

OPTIONS = TrainOptions(steps=40, batch=8, seq_len=32, lr=3e-3, validation_fraction=0.2, threads=1, patience=100)


def preference_file(folder: Path) -> Path:
    """Write pairs whose chosen output has words of one set of ten, and the rejected one those of another."""
    draw, lines = random.Random(4), []
    for _ in range(120):
        given = " ".join(f"w{draw.randrange(10, 90)}" for _ in range(3))
        texts = [" ".join(f"w{draw.randrange(*span)}" for _ in range(draw.randrange(2, 4))) for span in ((20, 30), (60, 70))]
        lines.append({"input": given, "chosen": texts[0], "rejected": texts[1]})
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return file


def random_head(folder: Path) -> RewardModel:
    reward_model = RewardModel.new(folder)
    with torch.no_grad():
        reward_model.score_1E.normal_(generator=torch.Generator().manual_seed(5))
    return reward_model


TEXTS = [("w10 w11 w12", "w13"), ("w20", "w21 w22 w23 w24"), ("w30 w31", "")]


def scores_of_transformers(folder: Path, tokenizer: TextTokenizer) -> list[float]:
    """Score the texts in one batch with padding on the right."""
    reference = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    assert reference.config.num_labels == 1
    rows = [[*tokenizer.encode(given), *output_tokens(tokenizer, output)] for given, output in TEXTS]
    longest, pad = max(map(len, rows)), reference.config.pad_token_id
    ids_BS = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask_BS = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    with torch.no_grad():
        found: list[float] = reference(ids_BS, attention_mask=mask_BS).logits[:, 0].tolist()
    return found


@pytest.mark.parametrize("name", ["llama-gqa", "llama-mha-tied", "qwen2-tied", "mistral-window", "gpt2", "qwen3-gqa"])
def test_transformers_and_hasten_load_it_with_equal_scores(tiny: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    reward_model = random_head(tiny(name))
    reward_model.write(tmp_path / "reward")
    word_tokenizer(reward_model.backbone.spec.vocab_size).save_pretrained(tmp_path / "reward")
    loaded = RewardModel.load(tmp_path / "reward")
    scores = loaded.scores(loaded.tokenizer(), TEXTS)
    assert scores == pytest.approx(scores_of_transformers(tmp_path / "reward", loaded.tokenizer()), abs=1e-4)
    assert len({round(score, 2) for score in scores}) == 3


def test_an_end_token_that_pads_is_not_scored(model: Path, tmp_path: Path) -> None:
    """The token before it is, as in transformers: there is no other token to pad with."""
    shutil.copytree(model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**config, "pad_token_id": None, "bos_token_id": None, "eos_token_id": 2}))
    random_head(tmp_path / "model").write(tmp_path / "reward")
    loaded = RewardModel.load(tmp_path / "reward")
    scores = loaded.scores(loaded.tokenizer(), TEXTS)
    assert scores == pytest.approx(scores_of_transformers(tmp_path / "reward", loaded.tokenizer()), abs=1e-4)


def test_loss_and_accuracy_are_those_of_bradley_and_terry(model: Path) -> None:
    reward_model = random_head(model)
    draw = random.Random(1)
    pairs = []
    for _ in range(10):
        given = [draw.randrange(3, 99) for _ in range(3)]
        sides = [Example([*given, *(draw.randrange(3, 99) for _ in range(draw.randrange(1, 6)))], 3) for _ in range(2)]
        pairs.append(Pair(*sides))
    split = PreferencePairs.split(pairs, 0.4)
    task = RewardModelTask(reward_model, RewardModelRecipe(center=0.25))
    batch = next(split.validation_batches(4, 32, 4))
    # Each sequence alone, without padding.
    assert batch.is_output_BS is not None
    scores = []
    for ids, mask in zip(batch.ids_BS, batch.is_output_BS, strict=True):
        states = reward_model.backbone.hidden_states(ids[None, : int(mask.nonzero().max()) + 1])
        scores.append(float((reward_model.backbone.normed(states)[-1] * reward_model.score_1E).sum().detach()))
    half = len(scores) // 2
    differences = [scores[i] - scores[half + i] for i in range(half)]
    losses = [math.log1p(math.exp(-difference)) for difference in differences]
    centred = [loss + 0.25 * (scores[i] + scores[half + i]) ** 2 for i, loss in enumerate(losses)]
    score = task.evaluate(batch)
    assert score.mean_loss == pytest.approx(sum(losses) / half, abs=1e-4)
    assert float(task.loss(batch).detach()) == pytest.approx(sum(centred) / half, abs=1e-4)
    assert score.accuracy == sum(difference > 0 for difference in differences) / half


def test_it_learns_held_out_pairs_and_resumes_to_the_same_bits(model: Path, tmp_path: Path) -> None:
    file = preference_file(tmp_path)
    result = train_reward_model(str(model), file, tmp_path / "whole", RewardModelRecipe(), OPTIONS)
    assert result is not None and result.score.accuracy >= 0.85
    assert train_reward_model(str(model), file, tmp_path / "cut", RewardModelRecipe(), OPTIONS, should_stop=stop_after(9)) is None
    train_reward_model(str(model), file, tmp_path / "cut", RewardModelRecipe(), OPTIONS)
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)
    reward = find_reward(str(tmp_path / "whole"))
    scores = reward.scores([("w60 w61", f"w{number} w{number + 1}") for number in (20, 24, 28, 60, 64, 68)])
    assert min(scores[:3]) > max(scores[3:])
    with pytest.raises(InvalidOption, match="exceeds the context"):
        reward.scores([("w10 " * 300, "w11")])


def test_a_folder_that_is_no_reward_model_is_one_error(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no reward model: it has no score\.weight"):
        RewardModel.load(model)
    random_head(model).write(tmp_path / "reward")
    weights = tmp_path / "reward" / "model.safetensors"
    save_file({**load_file(weights), "score.weight": torch.zeros(2, 64)}, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"wrong shape.*\[2, 64\]"):
        RewardModel.load(tmp_path / "reward")
    weights.unlink()
    with pytest.raises(HastenError):
        RewardModel.load(tmp_path / "reward")
