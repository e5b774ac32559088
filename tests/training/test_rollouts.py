"""Rollouts are what the student's current weights generate, and a killed run reads the same ones again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.training.conftest import stop_after
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from hasten.core.errors import CheckpointError, InvalidOption
from hasten.training.callback import TrainingCallback
from hasten.training.corpus import Batch
from hasten.training.distill.score import DistillScore
from hasten.training.loop import TrainingLoop
from hasten.training.options import TrainOptions
from hasten.training.predicted_rows import predicted_rows
from hasten.training.resume import ResumeFolder
from hasten.training.rollouts import Rollouts
from hasten.training.sample_outputs import sample_outputs
from hasten.training.trainable_model import TrainableModel

PROMPTS = [[1, 10, 11], [1, 40], [1, 70, 71, 72, 73], [1, 20, 30]]


def rollouts(student: TrainableModel, model: Path, out: Path, **options: Any) -> Rollouts:
    settings: dict[str, Any] = {"max_new_tokens": 6, "refresh_every": 2, "temperature": 1.0, "seed": 3, "threads": 1, **options}
    return Rollouts(student, PROMPTS, ResumeFolder.open(out, {}), side_files_of=model, **settings)


def outputs(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Return the prompt and the output of each row, without padding."""
    assert batch.is_output_BS is not None
    found = []
    for ids, mask in zip(batch.ids_BS, batch.is_output_BS, strict=True):
        first, last = int(mask.nonzero().min()), int(mask.nonzero().max())
        assert bool(mask[first : last + 1].all())
        found.append((ids[:first].tolist(), ids[first : last + 1].tolist()))
    return found


def test_each_window_has_the_outputs_of_the_current_weights(model: Path, tmp_path: Path) -> None:
    """Greedy outputs against those of transformers with the same weights."""
    student = TrainableModel.load(model)
    source = rollouts(student, model, tmp_path / "out", temperature=0.0)
    seen = []
    for window in range(2):
        student.write(tmp_path / f"weights{window}", model, torch.float32)
        reference = AutoModelForCausalLM.from_pretrained(tmp_path / f"weights{window}", dtype=torch.float32)
        pairs = [pair for step in (0, 1) for pair in outputs(source.batch(2 * window + step, 2, 32, 0))]
        assert sorted(prompt for prompt, _ in pairs) == sorted(PROMPTS)
        for prompt, output in pairs:
            expected = reference.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)[0, len(prompt) :].tolist()
            assert output == expected
        seen.append(sorted(pairs))
        with torch.no_grad():
            for number, parameter in enumerate(student.decoder.parameters()):
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    assert seen[0] != seen[1]


def test_an_end_token_belongs_to_the_output(model: Path, tmp_path: Path) -> None:
    """The end token is likely at once, and the loss must teach it."""
    student = TrainableModel.load(model)
    source = rollouts(student, model, tmp_path / "out", max_new_tokens=200, refresh_every=4)
    pairs = [pair for step in range(4) for pair in outputs(source.batch(step, 4, 32, 0))]
    assert all(len(output) == 200 or output[-1] == 2 for _, output in pairs)
    assert any(output[-1] == 2 and len(output) < 200 for _, output in pairs)
    assert all(2 not in output[:-1] for _, output in pairs)


def test_a_group_has_different_outputs_of_one_prompt_and_keeps_its_notes(model: Path, tmp_path: Path) -> None:
    student = TrainableModel.load(model)
    calls = []

    def annotate(examples: object) -> Mapping[str, Tensor]:
        calls.append(examples)
        return {"lengths_N": torch.arange(12)}

    options: dict[str, Any] = {"group_size": 3, "annotate": annotate}
    first, again = (rollouts(student, model, tmp_path / "out", **options) for _ in range(2))
    for source in (first, again):
        pairs = outputs(source.batch(1, 6, 32, 0))
        assert [prompt for prompt, _ in pairs] == [pairs[0][0]] * 3 + [pairs[3][0]] * 3
        assert len({tuple(output) for _, output in pairs[:3]}) > 1
        assert source.window(1, 6).notes["lengths_N"].tolist() == list(range(12)) and source.rows(1, 6) == range(6, 12)
    assert len(calls) == 1
    assert torch.equal(first.batch(1, 6, 32, 0).ids_BS, again.batch(1, 6, 32, 0).ids_BS)


class ImitateTask:
    """Trains the student on its own outputs; enough to make each window depend on all steps before it."""

    def __init__(self, student: TrainableModel) -> None:
        self.student = student

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return dict(self.student.decoder.named_parameters())

    def loss(self, batch: Batch) -> Tensor:
        rows = predicted_rows(batch)
        normed_RE = self.student.normed(self.student.hidden_states(batch.ids_BS))[rows.rows_R]
        return nn.functional.cross_entropy(normed_RE @ self.student.lm_head_VE.T, rows.labels_R)

    def evaluate(self, batch: Batch) -> DistillScore:
        return DistillScore(num_positions=1, nll=float(self.loss(batch)))

    def save(self, folder: Path, score: DistillScore) -> None:
        raise NotImplementedError


class Killed(Exception):
    """Stands for a death of the process."""


class Source(Rollouts):
    def validation_batches(self, size: int, seq_len: int, limit: int) -> Iterator[Batch]:
        ids_BS = torch.arange(3, 35).view(1, 32)
        yield Batch(ids_BS, 0)


class KillAt(TrainingCallback):
    def __init__(self, step: int | None, out: Path) -> None:
        self.step, self.out, self.windows = step, out, 0

    def on_step_end(self, step: int, total_steps: int, loss: float) -> None:
        self.windows = max(self.windows, len(list((self.out / ".resume").glob("rollouts-*.safetensors"))))
        if step == self.step:
            raise Killed


def train(model: Path, out: Path, *, save_every: float = 1e6, stop: int = 10**6, kill: int | None = None) -> KillAt:
    student = TrainableModel.load(model)
    options = TrainOptions(steps=12, batch=2, accumulate=2, seq_len=32, patience=100, save_every=save_every, threads=1)
    resume = ResumeFolder.open(out, {})
    source = Source(
        student,
        PROMPTS,
        resume,
        side_files_of=model,
        max_new_tokens=5,
        refresh_every=5,  # in the middle of a step of two batches
        temperature=1.0,
        seed=1,
        threads=1,
    )
    callback = KillAt(kill, out)
    TrainingLoop(ImitateTask(student), source, options, resume, callback, lr=3e-2, weight_decay=0.0).run(stop_after(stop))
    return callback


def final_state(out: Path) -> dict[str, Tensor]:
    (file,) = (out / ".resume").glob("step-00000012.safetensors")
    return load_file(file)


def test_a_killed_run_goes_on_to_the_same_bits(model: Path, tmp_path: Path) -> None:
    """One state is saved at step 3; the run is then killed two windows later, and runs again from step 3."""
    train(model, tmp_path / "whole")
    train(model, tmp_path / "cut", stop=3)
    with pytest.raises(Killed):
        train(model, tmp_path / "cut", kill=10)
    # Windows that were generated before the kill are read: their files hold.
    kept = {file.name: file.stat().st_ino for file in (tmp_path / "cut" / ".resume").glob("rollouts-*")}
    assert len(kept) >= 3
    train(model, tmp_path / "cut")
    assert {file.name: file.stat().st_ino for file in (tmp_path / "cut" / ".resume").glob("rollouts-*")}.items() >= kept.items()
    whole, cut = final_state(tmp_path / "whole"), final_state(tmp_path / "cut")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)


def test_windows_that_no_saved_state_needs_are_deleted(model: Path, tmp_path: Path) -> None:
    assert train(model, tmp_path / "often", save_every=0).windows <= 2
    assert train(model, tmp_path / "never").windows == 5
    assert not list((tmp_path / "often" / ".resume").glob("student-*"))


def sample(student: TrainableModel, model: Path, work: Path, prompts: list[list[int]]) -> list[list[int]]:
    options: dict[str, Any] = {"num_samples": 1, "max_new_tokens": 255, "temperature": 1.0, "threads": 1}
    sampled = sample_outputs(student, prompts, [3] * len(prompts), work=work, side_files_of=model, **options)
    return [output for (output,) in sampled.outputs]


def test_outputs_to_long_prompts_end_with_the_context(model: Path, tmp_path: Path) -> None:
    """A long prompt beside a long output: each example of a set fits, and so must what the student answers."""
    short, longest = sample(TrainableModel.load(model), model, tmp_path, [[1], [1] * 250])
    assert len(longest) == 6 or longest[-1] == 2
    assert len(longest) <= 6 < len(short)


def test_faults_are_one_error(model: Path, tmp_path: Path) -> None:
    student = TrainableModel.load(model)
    source = rollouts(student, model, tmp_path / "out", group_size=2)
    with pytest.raises(InvalidOption, match="batch=3, group_size=2"):
        source.batch(0, 3, 32, 0)
    with pytest.raises(InvalidOption, match=r"longest prompt leaves no place .* got 256 tokens; allowed: up to 255"):
        sample(student, model, tmp_path / "out", [[1] * 256])
    with pytest.raises(InvalidOption, match="no prompts"):
        Rollouts(
            student,
            [],
            ResumeFolder.open(tmp_path / "out", {}),
            side_files_of=model,
            max_new_tokens=4,
            refresh_every=1,
            temperature=1.0,
            seed=0,
            threads=1,
        )
    source.batch(0, 4, 32, 0)
    with pytest.raises(CheckpointError, match="rollouts-00000000 has other outputs"):
        rollouts(student, model, tmp_path / "out").batch(0, 2, 32, 0)
    file = tmp_path / "out" / ".resume" / "rollouts-00000000.safetensors"
    save_file({"ids_T": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match="rollouts-00000000 has other outputs"):
        rollouts(student, model, tmp_path / "out").batch(0, 4, 32, 0)


def test_weights_that_are_not_finite_generate_nothing(model: Path, tmp_path: Path) -> None:
    student = TrainableModel.load(model)
    with torch.no_grad():
        next(iter(student.decoder.parameters()))[0] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        sample_outputs(
            student,
            PROMPTS,
            [1] * 4,
            work=tmp_path,
            side_files_of=model,
            num_samples=1,
            max_new_tokens=2,
            temperature=1.0,
            threads=1,
        )
    assert not list(tmp_path.glob("student-*"))
