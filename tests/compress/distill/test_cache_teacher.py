"""Caches of a tiny teacher: against the live one, resumed after a stop or a kill, and of other or damaged parts."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.exhaustive import repeats
from tests.training.conftest import fluent_model, model, periodic_text, stop_after  # noqa: F401  (fixtures)

from hasten.checkpoints.hub import resolve
from hasten.compress.distill import cache_teacher as module
from hasten.compress.distill.cache_options import CacheOptions
from hasten.compress.distill.cache_teacher import cache_teacher
from hasten.core.errors import CapacityError, CheckpointError, HastenError, InvalidOption
from hasten.quality.documents import HELD_OUT, read_texts
from hasten.text.tokenizer import TextTokenizer
from hasten.training.corpus import Batch
from hasten.training.distill.cache_facts import FILE, SEQUENCES
from hasten.training.distill.cached_teacher import open_cached
from hasten.training.distill.distill_task import DistillTask
from hasten.training.distill.recipe import LOSSES, DistillRecipe
from hasten.training.distill.teacher import LiveTeacher, Teacher
from hasten.training.predicted_rows import predicted_rows
from hasten.training.target_model import TargetModel
from hasten.training.trainable_model import TrainableModel

VOCAB, SEQ_LEN = 101, 32
OPTIONS = CacheOptions(top_k=8, hidden_layers=(0, 2), seq_len=SEQ_LEN, validation_fraction=0.1, batch=4, threads=1)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCAB, (1500,), generator=generator).tolist()
    file = tmp_path_factory.mktemp("data") / "text.txt"
    file.write_text(" ".join(f"w{token}" for token in ids), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    generator = torch.Generator().manual_seed(1)
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    records = []
    for number in range(40):
        words = [f"w{token}" for token in torch.randint(3, VOCAB, (3 + number % 9,), generator=generator).tolist()]
        records.append({"input": " ".join(words[:2]), "output": " ".join(words[2:]), "source": number})
    file.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def small_parts():
    """Parts of a few sequences, so that a small cache has several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PART_BYTES", 1 << 16)
        yield


@pytest.fixture(scope="module")
def cache(model, text, tmp_path_factory, small_parts) -> Path:  # noqa: F811
    out = tmp_path_factory.mktemp("cache") / "out"
    assert cache_teacher(str(model), text, out, OPTIONS) is not None
    return out


@pytest.fixture(scope="module")
def live(model) -> LiveTeacher:  # noqa: F811
    return LiveTeacher(TargetModel.load(model))


@pytest.fixture
def copy(cache, tmp_path) -> Path:
    return shutil.copytree(cache, tmp_path / "copy")


def brute_classes(log_probs_RV: torch.Tensor, ids_RK: torch.Tensor) -> torch.Tensor:
    known_RK = log_probs_RV.double().exp().gather(-1, ids_RK)
    return torch.cat((known_RK, 1 - known_RK.sum(-1, keepdim=True)), -1).log()


@pytest.mark.parametrize("data", ["text", "pairs"])
def test_the_cache_has_what_the_live_teacher_says(data, request, model, live, tmp_path, small_parts):  # noqa: F811
    file, out = request.getfixturevalue(data), tmp_path / "out"
    report = cache_teacher(str(model), file, out, OPTIONS)
    source, teacher = open_cached(out)
    assert len(teacher.cache.facts.parts) > 1
    batches = [source.batch(step, 6, SEQ_LEN, seed=5) for step in range(2)]
    for batch in (*batches, *source.validation_batches(6, SEQ_LEN, 6)):
        rows = predicted_rows(batch)
        logits_RV = torch.randn(len(rows.rows_R), VOCAB, generator=torch.Generator().manual_seed(2))
        expected = live.outputs(batch, rows, (0, 2))
        teacher_RV, student_RV = expected.log_probs(0, len(logits_RV), logits_RV, 1.0)
        cached = teacher.outputs(batch, rows, (0, 2))
        teacher_RC, student_RC = cached.log_probs(0, len(logits_RV), logits_RV, 1.0)
        ids_RK = cached.rows.token_ids_RK
        assert torch.equal(ids_RK, teacher_RV.topk(8).indices)
        torch.testing.assert_close(teacher_RC.double(), brute_classes(teacher_RV, ids_RK), rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(student_RC.double(), brute_classes(student_RV, ids_RK), rtol=1e-4, atol=1e-5)
        for layer, hidden_RE in expected.hidden_states.items():
            torch.testing.assert_close(cached.hidden_states[layer], hidden_RE, rtol=2**-7, atol=1e-3)
        agrees_R = cached.has_same_top_token(0, len(logits_RV), logits_RV, (teacher_RC, student_RC))
        assert torch.equal(agrees_R, teacher_RV.argmax(-1) == student_RV.argmax(-1)), "the rest is no token to agree on"
        part = cached.log_probs(3, 9, logits_RV[3:9], 1.0)
        assert torch.equal(part[0], teacher_RC[3:9])
        torch.testing.assert_close(part[1], student_RC[3:9], rtol=0, atol=1e-6)
    assert report is not None
    assert sum(part.positions for part in teacher.cache.facts.parts) == report.num_positions
    stored = sum(file.stat().st_size for file in out.glob("part-*"))
    assert (
        report.num_positions * report.facts.position_bytes <= stored <= report.num_positions * report.facts.position_bytes + 20_000
    )
    assert f"{report.facts.position_bytes:,} bytes per position" in report.describe()


def test_with_every_token_the_cache_is_the_full_distribution_at_any_temperature(model, text, live, tmp_path):  # noqa: F811
    options = CacheOptions(top_k=1000, seq_len=SEQ_LEN, threads=1)
    cache_teacher(str(model), text, tmp_path / "out", options)
    source, teacher = open_cached(tmp_path / "out", recipe=DistillRecipe(temperature=2.0))
    batch = source.batch(0, 3, SEQ_LEN, seed=0)
    rows = predicted_rows(batch)
    logits_RV = torch.randn(len(rows.rows_R), VOCAB, generator=torch.Generator().manual_seed(2))
    cached = teacher.outputs(batch, rows)
    for temperature in (1.0, 2.0):
        expected = live.outputs(batch, rows).log_probs(0, len(logits_RV), logits_RV, temperature)
        for got, full_RV in zip(cached.log_probs(0, len(logits_RV), logits_RV, temperature), expected, strict=True):
            torch.testing.assert_close(got, full_RV.gather(-1, cached.rows.token_ids_RK), rtol=2e-3, atol=2e-3)


def disturbed(folder: Path) -> TrainableModel:
    """Return a student: the model with noise on its weights."""
    student, generator = TrainableModel.load(folder), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.decoder.parameters():
            parameter += 0.3 * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator)
    return student


def forward_kl(student: TrainableModel, teacher: Teacher, batch: Batch) -> torch.Tensor:
    return DistillTask(student, teacher, DistillRecipe()).loss(batch)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_and_its_gradient_are_those_of_the_live_teacher(loss, model, text, live, tmp_path):  # noqa: F811
    """With every token and every layer cached, only roundings differ."""
    options = CacheOptions(top_k=VOCAB, hidden_layers=(0, 1, 2), seq_len=SEQ_LEN, threads=1)
    cache_teacher(str(model), text, tmp_path / "out", options)
    recipe = DistillRecipe(loss=loss, hidden_weight=0.5)
    source, cached = open_cached(tmp_path / "out", recipe=recipe)
    batch = source.batch(0, 4, SEQ_LEN, seed=0)
    student = disturbed(model)
    results = []
    for teacher in (live, cached):
        task = DistillTask(student, teacher, recipe, teacher_layers=3, teacher_hidden_size=64)
        value = task.loss(batch)
        gradients = torch.autograd.grad(value, list(task.parameters().values()), allow_unused=True)
        results.append((value.item(), torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])))
        score = task.evaluate(batch)
        results[-1] += (score.as_dict()["kl"],)
    (expected, expected_gradient, kl), (value, gradient, cached_kl) = results
    assert value == pytest.approx(expected, rel=2e-3)
    assert cached_kl == pytest.approx(kl, rel=2e-3)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=5e-3 * expected_gradient.abs().max().item())


def test_a_student_learns_from_64_tokens_of_the_demo_what_it_learns_from_the_live_teacher(tmp_path):
    """The rest of the vocabulary has a tenth of the demo's probability, so the loss is smaller, but its gradient hardly differs."""
    folder, text = resolve("demo", quiet=True), tmp_path / "text.txt"
    text.write_text("\n".join(read_texts(HELD_OUT)[:2])[:12000], encoding="utf-8")
    cache_teacher("demo", text, tmp_path / "out", CacheOptions(seq_len=64, threads=1))
    source, cached = open_cached(tmp_path / "out", teacher=folder, data=text)
    live = LiveTeacher(TargetModel.load(folder))
    validation = next(iter(source.validation_batches(4, 64, 4)))
    losses, gradients, results = [], [], []
    for teacher in (live, cached):
        student = disturbed(folder)
        optimizer = torch.optim.AdamW(student.decoder.parameters(), lr=3e-4)
        for step in range(4):
            loss = forward_kl(student, teacher, source.batch(step, 2, 64, seed=0))
            loss.backward()
            if step == 0:
                losses.append(loss.item())
                gradients.append(torch.cat([parameter.grad.flatten() for parameter in student.decoder.parameters()]))
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            results.append(forward_kl(student, live, validation).item())
    assert 0.7 * losses[0] < losses[1] < losses[0]
    assert torch.cosine_similarity(*gradients, dim=0).item() > 0.98
    assert gradients[1].norm().item() == pytest.approx(gradients[0].norm().item(), rel=0.1)
    with torch.no_grad():
        before = forward_kl(disturbed(folder), live, validation).item()
    assert before - results[1] == pytest.approx(before - results[0], rel=0.15)
    assert results[1] == pytest.approx(results[0], rel=0.05)


def test_a_stopped_run_resumes_to_the_same_bytes(model, text, cache, tmp_path, small_parts):  # noqa: F811
    out = tmp_path / "out"
    run = partial(cache_teacher, str(model), text, out, OPTIONS)
    assert run(should_stop=stop_after(8)) is None
    assert not out.exists()
    assert list((tmp_path / "out.partial" / ".resume").glob("part-*"))
    with pytest.raises(InvalidOption, match="unfinished run"):
        run()
    assert run(resume=True) is not None
    names = sorted(file.name for file in cache.iterdir())
    assert sorted(file.name for file in out.iterdir()) == names
    assert all((out / name).read_bytes() == (cache / name).read_bytes() for name in names)
    assert not (tmp_path / "out.partial").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from hasten.compress.distill import cache_teacher as module
from hasten.compress.distill.cache_options import CacheOptions
module.PART_BYTES = 1 << 16
model, text, out, point = sys.argv[1:5]
options = CacheOptions(top_k=8, hidden_layers=(0, 2), seq_len=32, validation_fraction=0.1, batch=4, threads=1)
calls = 0
def kill(*_):
    global calls
    calls += 1
    if calls == int(point):
        os.kill(os.getpid(), signal.SIGKILL)
module._link, link = (lambda *paths: (kill(), link(*paths))), module._link
module.cache_teacher(model, Path(text), Path(out), options, resume=True, progress=kill)
"""


def test_killed_runs_resume_to_the_same_bytes(model, text, cache, tmp_path):  # noqa: F811
    out, names, moments = tmp_path / "out", sorted(file.name for file in cache.iterdir()), random.Random(1)
    kills, wanted = 0, repeats("teacher cache kills")
    while True:
        # A whole run makes some 16 calls; the last ones are made while files are put together.
        point = moments.randint(2, 16) if kills < wanted else 10**6
        arguments = [sys.executable, "-c", KILLED, str(model), str(text), str(out), str(point)]
        ran = subprocess.run(arguments, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if ran.returncode == -signal.SIGKILL:
            kills += 1
            with pytest.raises(HastenError):  # nothing half-written can be opened
                open_cached(out)
            continue
        assert ran.returncode == 0, ran.stderr
        assert all((out / name).read_bytes() == (cache / name).read_bytes() for name in names)
        if kills == wanted:
            return
        shutil.rmtree(out)  # it was complete before the moment to kill it: once more


def test_the_need_is_told_first_and_a_small_disk_refused(model, text, tmp_path, monkeypatch):  # noqa: F811
    told: list[str] = []
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("hasten.compress.new_folder.shutil.disk_usage", lambda folder: usage._replace(free=10_000))
    with pytest.raises(CapacityError, match="too small"):
        cache_teacher(str(model), text, tmp_path / "out", OPTIONS, on_log=told.append)
    assert "bytes per position" in told[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (CacheOptions(seq_len=512), "seq_len exceeds"),
        (CacheOptions(seq_len=32, hidden_layers=(1, 3, 4)), r"no such layers: got \[4, 5\]; allowed: 1 to 3"),
    ],
)
def test_what_the_teacher_lacks_is_refused(model, text, tmp_path, options, expected):  # noqa: F811
    with pytest.raises(InvalidOption, match=expected):
        cache_teacher(str(model), text, tmp_path / "out", options)
    assert list(tmp_path.iterdir()) == []


def test_another_origin_is_refused(cache, model, fluent_model, text, pairs):  # noqa: F811
    tokenizer = TextTokenizer.load(model, VOCAB)
    settings = {"seq_len": SEQ_LEN, "validation_fraction": 0.1}
    open_cached(cache, teacher=model, tokenizer=tokenizer, data=text, **settings, recipe=DistillRecipe(hidden_weight=1.0))
    other = TextTokenizer.load(resolve("demo", quiet=True), 8192)
    for wrong, expected in (
        ({"teacher": fluent_model}, "another teacher"),
        ({"tokenizer": other}, "another tokenizer"),
        ({"data": pairs}, "another data"),
        ({"seq_len": 64}, "another seq_len"),
        ({"validation_fraction": 0.2}, "another validation_fraction"),
        ({"recipe": DistillRecipe(temperature=2.0)}, "temperature 1"),
        ({"recipe": DistillRecipe(on_policy=0.5)}, "the student generates"),
    ):
        with pytest.raises(InvalidOption, match=expected):
            open_cached(cache, **wrong)


def test_a_batch_of_another_source_and_layers_that_are_not_cached_are_refused(cache):
    source, teacher = open_cached(cache)
    batch = source.batch(0, 2, SEQ_LEN, seed=0)
    rows = predicted_rows(batch)
    with pytest.raises(InvalidOption, match="got 2; allowed: 1, 3, counted from 1"):
        teacher.outputs(batch, rows, (1,))
    with pytest.raises(InvalidOption, match="sequences that are not its own"):
        teacher.outputs(Batch(batch.ids_BS, 0), rows)
    for indices in (batch.indices[::-1], (10**6, 0)):
        with pytest.raises(InvalidOption, match="sequences that are not its own"):
            teacher.outputs(Batch(batch.ids_BS, 0, indices=indices), rows)
    with pytest.raises(InvalidOption, match="temperature=2"):
        teacher.outputs(batch, rows).log_probs(0, 1, torch.zeros(1, VOCAB), 2.0)
    with pytest.raises(InvalidOption, match="vocabulary lacks"):
        teacher.outputs(batch, rows).log_probs(0, 30, torch.zeros(30, 40), 1.0)


def test_further_tokens_of_the_students_vocabulary_do_not_count(cache):
    source, teacher = open_cached(cache)
    batch = source.batch(0, 2, SEQ_LEN, seed=0)
    outputs = teacher.outputs(batch, predicted_rows(batch))
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(0))
    padded = torch.cat((logits, torch.full((4, 27), 9.0)), -1)
    assert torch.equal(outputs.log_probs(0, 4, logits, 1.0)[1], outputs.log_probs(0, 4, padded, 1.0)[1])


def read_all(folder: Path) -> None:
    source, teacher = open_cached(folder)
    for index in range(len(source.predicted_counts_N)):
        batch = source.numbered([index])
        teacher.outputs(batch, predicted_rows(batch), teacher.cache.facts.hidden_layers)


def change_tensor(file: Path, name: str, value: float) -> None:
    tensors = {key: tensor.clone() for key, tensor in load_file(file).items()}
    tensors[name].view(-1)[5] = value
    save_file(tensors, file)


def hide_an_unlikely_token(folder: Path) -> None:
    """Set the least stored probability to 0, which hardly changes the sum."""
    file = folder / "part-000000000.safetensors"
    tensors = {key: tensor.clone() for key, tensor in load_file(file).items()}
    tensors["log_probs"].view(-1)[tensors["log_probs"].argmin()] = float("-inf")
    save_file(tensors, file)


def drop_a_position(folder: Path) -> None:
    """Remove the last position of a part from its file and from the facts alike."""
    file, facts = folder / "part-000000000.safetensors", json.loads((folder / FILE).read_text())
    save_file({key: tensor[:-1].clone() for key, tensor in load_file(file).items()}, file)
    facts["parts"][0]["positions"] -= 1
    (folder / FILE).write_text(json.dumps(facts))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / FILE).unlink(),
        lambda folder: (folder / FILE).write_text("{"),
        lambda folder: (folder / SEQUENCES).unlink(),
        lambda folder: change_tensor(folder / SEQUENCES, "train_N", 11),
        lambda folder: change_tensor(folder / SEQUENCES, "train_N", 5000),
        lambda folder: max(folder.glob("part-*")).unlink(),
        lambda folder: (folder / "part-000000000.safetensors").write_bytes(b"x" * 100),
        lambda folder: os.truncate(folder / "part-000000000.safetensors", 5000),
        lambda folder: change_tensor(folder / "part-000000000.safetensors", "log_probs", float("nan")),
        lambda folder: change_tensor(folder / "part-000000000.safetensors", "log_probs", float("-inf")),
        lambda folder: change_tensor(folder / "part-000000000.safetensors", "log_probs", 0.0),
        lambda folder: change_tensor(folder / "part-000000000.safetensors", "token_ids", 101),
        lambda folder: change_tensor(folder / "part-000000000.safetensors", "hidden.2", float("inf")),
        lambda folder: shutil.copy(max(folder.glob("part-*")), folder / "part-000000000.safetensors"),
        hide_an_unlikely_token,
        drop_a_position,
    ],
)
def test_damage_is_one_clear_error(copy, damage):
    read_all(copy)
    damage(copy)
    with pytest.raises(CheckpointError) as caught:
        read_all(copy)
    assert str(copy) in str(caught.value)


def test_every_wrong_value_of_the_facts_is_one_clear_error(copy):
    facts = json.loads((copy / FILE).read_text())
    for name in facts:
        for value in (None, -1, 0, 1 << 70, "x", [], {}, [1], True, float("nan"), [[]], [{"first": 0, "stop": 9, "positions": 1}]):
            if name == "teacher" and value == "x":
                continue
            (copy / FILE).write_text(json.dumps({**facts, name: value}))
            if name == "temperature" and value is True:
                continue
            with pytest.raises(CheckpointError):
                open_cached(copy)
        (copy / FILE).write_text(json.dumps({key: value for key, value in facts.items() if key != name}))
        with pytest.raises(CheckpointError):
            open_cached(copy)
