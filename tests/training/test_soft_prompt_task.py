"""A soft prompt learns a task, learns nothing from shuffled labels, and is the loss and the gradient of transformers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.conftest import stop_after
from transformers import AutoModelForCausalLM

from hasten import LLM, SamplingParams
from hasten.checkpoints.formats.soft_prompt import read_soft_prompt
from hasten.core.errors import InvalidOption
from hasten.training.base import WeightedTask
from hasten.training.build_task import build_task
from hasten.training.examples import Example, Examples
from hasten.training.options import TrainOptions
from hasten.training.recipes import SoftPromptRecipe
from hasten.training.target_model import TargetModel
from hasten.training.train import train

OPTIONS = TrainOptions(steps=40, batch=8, seq_len=32, validation_fraction=0.4, threads=1)
RECIPE = SoftPromptRecipe(virtual_tokens=6)
NAMES = ("count", "index", "value", "items", "result", "node")


def first_names(file: Path, shuffled: bool) -> Path:
    """Write programs of two assignments with the line that returns the first name, or, shuffled, one of another program."""
    draw = random.Random(4)
    pairs = [draw.sample(NAMES, 2) for _ in range(100)]
    inputs = [f"{first} = {draw.randrange(99)}\n{second} = {draw.randrange(99)}\n" for first, second in pairs]
    outputs = [f"return {first}" for first, _ in pairs]
    if shuffled:
        draw.shuffle(outputs)
    lines = [{"input": given, "output": output} for given, output in zip(inputs, outputs, strict=True)]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return file


def words(folder: Path) -> Path:
    """Write examples for the tiny model, whose tokens are words."""
    draw = random.Random(4)
    lines = [{"input": " ".join(f"w{draw.randrange(10, 90)}" for _ in range(4)), "output": f"w{50 + i % 2}"} for i in range(30)]
    file = folder / "task.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return file


def num_right(out: Path | None, file: Path) -> int:
    """Return how many outputs of the file, of 100, the demo model gives with a soft prompt."""
    llm = LLM("demo", threads=1, dtype="float32", max_model_len=64, kv_cache_memory="16MiB")
    lines = [json.loads(line) for line in file.read_text().split("\n")]
    soft_prompt = None if out is None else llm.load_soft_prompt(out)
    params = SamplingParams(temperature=0, max_tokens=8)
    outputs = llm.generate([line["input"] for line in lines], params, soft_prompt=soft_prompt, use_tqdm=False)
    return sum(output.outputs[0].text == line["output"] for output, line in zip(outputs, lines, strict=True))


def report(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "training.json").read_text())
    return found


def test_the_held_out_loss_falls_and_the_engine_serves_the_result(tmp_path: Path) -> None:
    file, out = first_names(tmp_path / "task.jsonl", shuffled=False), tmp_path / "out"
    train("demo", file, out, RECIPE, OPTIONS)
    held_out = report(out)["held_out"]
    assert held_out["gain_interval"][0] > 0 and held_out["examples"] == 20
    assert held_out["gain"] == pytest.approx(held_out["loss_without_soft_prompt"] - held_out["loss"])
    assert (num_right(None, file), num_right(out, file) > 70) == (0, True)


def test_shuffled_outputs_teach_no_more_than_their_form(tmp_path: Path) -> None:
    file, out = first_names(tmp_path / "task.jsonl", shuffled=True), tmp_path / "out"
    train("demo", file, out, RECIPE, OPTIONS)
    assert num_right(out, file) < 40  # by chance, 17 of 100


def examples() -> Examples:
    draw = random.Random(1)
    return Examples.split(
        [Example([draw.randrange(3, 100) for _ in range(draw.randrange(4, 9))], draw.randrange(1, 3)) for _ in range(20)], 0.2
    )


def test_loss_and_gradient_are_those_of_transformers(model: Path) -> None:
    """One example at a time, without padding, by the labels of transformers."""
    split = examples()
    task = build_task(SoftPromptRecipe(virtual_tokens=5), TargetModel.load(model), split, 0)
    batch, (parameter,) = split.batch(0, 4, 32, 7), task.parameters().values()
    loss = task.loss(batch)
    torch.autograd.backward(loss)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).requires_grad_(False)
    rows = parameter.detach().clone().requires_grad_()
    total, count = torch.zeros(()), 0
    assert batch.is_output_BS is not None
    for ids, mask in zip(batch.ids_BS, batch.is_output_BS, strict=True):
        length = int(mask.nonzero().max()) + 1
        labels = torch.cat([torch.full((5,), -100), torch.where(mask, ids, -100)[:length]])[None]
        embedded = torch.cat([rows, reference.get_input_embeddings()(ids[:length])])[None]
        num_outputs = int(mask.sum())
        total = total + reference(inputs_embeds=embedded, labels=labels).loss * num_outputs
        count += num_outputs
    expected = total / count
    torch.autograd.backward(expected)
    torch.testing.assert_close(loss.detach(), expected.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(parameter.grad, rows.grad, atol=1e-5, rtol=1e-4)
    score = task.evaluate(batch)
    assert score.num_positions == count and score.mean_loss == pytest.approx(float(expected.detach()), abs=1e-5)


def test_a_stopped_run_goes_on_to_the_same_bits(model: Path, tmp_path: Path) -> None:
    file, options = words(tmp_path), TrainOptions(steps=12, batch=4, seq_len=32, lr=0.1)
    train(str(model), file, tmp_path / "whole", RECIPE, options)
    assert train(str(model), file, tmp_path / "cut", RECIPE, options, should_stop=stop_after(7)) is None
    train(str(model), file, tmp_path / "cut", RECIPE, options)
    whole, cut = (read_soft_prompt(tmp_path / name, 64, 100).embeddings_NE for name in ("whole", "cut"))
    assert torch.equal(whole, cut) and report(tmp_path / "whole") == report(tmp_path / "cut")


def test_it_starts_from_the_embeddings_of_a_text_or_of_random_tokens(model: Path) -> None:
    target, split = TargetModel.load(model), examples()
    table = target.decoder.embed(torch.arange(101))
    (rows,) = build_task(SoftPromptRecipe(virtual_tokens=5, init_text="w5 w9"), target, split, 0).parameters().values()
    assert torch.equal(rows, table[[5, 9, 5, 9, 5]])
    (first,), (other,) = (build_task(RECIPE, target, split, seed).parameters().values() for seed in (1, 2))
    assert all(bool((table == row).all(1).any()) for row in first) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (
            SoftPromptRecipe(virtual_tokens=252),
            OPTIONS,
            "exceed the model's context: got 252 ",
        ),
        (SoftPromptRecipe(init_text=" "), OPTIONS, "the initial text has no tokens"),
        (RECIPE, TrainOptions(self_distill=4, seq_len=32), "the model generates none: got self_distill=4"),
    ],
)
def test_what_does_not_fit_is_refused(
    recipe: SoftPromptRecipe, options: TrainOptions, message: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidOption, match=message):
        train(str(model), words(tmp_path), tmp_path / "out", recipe, options)


def test_batches_count_by_their_output_tokens(model: Path) -> None:
    examples = Examples.join([Example([5, 6, 7, 8], 1), Example([5, 6, 7], 2)], [Example([5, 6], 1), Example([5, 7], 1)])
    task = build_task(RECIPE, TargetModel.load(model), examples, 0)
    assert isinstance(task, WeightedTask)
    assert task.weight(examples.select([0, 1], 0)) == 4 and task.weight(examples.select([1], 0)) == 1
