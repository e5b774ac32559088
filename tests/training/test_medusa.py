"""Medusa heads learn what they are for, beside a model that does not change, and survive a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.conftest import PERIOD
from transformers import AutoModelForCausalLM

from hasten.checkpoints.formats.medusa import read_medusa
from hasten.core.errors import InvalidOption
from hasten.layers.formats.dense import DenseFormatFactory
from hasten.layers.layer_context import LayerContext
from hasten.ops.torch.backend import TorchOps
from hasten.training.corpus import Batch, Corpus
from hasten.training.medusa import task as medusa_task
from hasten.training.medusa.recipe import MedusaRecipe
from hasten.training.options import TrainOptions
from hasten.training.target_model import TargetModel
from hasten.training.train import train

OPTIONS = TrainOptions(steps=250, batch=4, seq_len=128, lr=0.02)


@pytest.fixture(scope="module")
def trained(fluent, periodic, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("heads") / "trained"
    train(str(fluent), periodic, out, MedusaRecipe(heads=3), OPTIONS)
    return out


def right_guesses(model: Path, out: Path) -> list[float]:
    """How often head i names the token i + 2 places on, over hidden states that transformers computed."""
    ops = TorchOps()
    build = LayerContext(ops, DenseFormatFactory(ops, torch.float32), torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found = read_medusa(out, hidden_size=64, vocab_size=101, layer_context=build)
    ids = torch.tensor([10 + place % PERIOD for place in range(120)])
    shares = []
    with torch.no_grad():
        hidden = reference.model(ids[None]).last_hidden_state[0]
        for head, block in enumerate(found.heads.blocks):
            guesses = reference.lm_head(block(hidden)).argmax(-1)
            wanted = ids[2 + head :]
            shares.append(float((guesses[: len(wanted)] == wanted)[10:].float().mean()))
    return shares


def test_every_head_learns_its_own_distance(fluent, trained):
    assert min(right_guesses(fluent, trained)) > 0.98


def test_heads_that_learned_the_wrong_distance_are_caught(fluent, periodic, tmp_path, monkeypatch):
    """Negative control: trained for one token too near, they look fine to themselves."""
    monkeypatch.setattr(medusa_task, "OFFSET", 0)
    outcome = train(str(fluent), periodic, tmp_path / "out", MedusaRecipe(heads=3), OPTIONS)
    assert min(outcome.score.acceptance) > 0.95
    assert max(right_guesses(fluent, tmp_path / "out")) < 0.5


def test_the_report_and_the_accuracies_say_so(trained):
    report = json.loads((trained / "training.json").read_text())
    assert report["evaluations"][-1]["train_loss"] < 0.1 < 10 < report["evaluations"][0]["train_loss"]
    assert min(report["held_out_score"]["acceptance"]) > 0.97  # the rest is where the text was cut
    assert report["held_out_score"]["accepted_length"] > 2.9
    accuracies = json.loads((trained / "config.json").read_text())["head_accuracies"]
    assert [len(head) for head in accuracies] == [10, 10, 10]
    assert all(head[0] > 0.9 and sum(head) <= 1.0 + 1e-9 for head in accuracies)
    assert not (trained / ".resume").exists()


def test_only_the_heads_get_gradients_and_the_model_stays(model):
    target = TargetModel.load(model)
    before = {name: parameter.clone() for name, parameter in target.decoder.named_parameters()}
    task = MedusaRecipe(heads=2, layers=2, lm_head="own").build(target, None, 0)
    corpus = Corpus.split([[10 + place % PERIOD for place in range(2000)]], 64, 0.1, None)
    task.loss(corpus.batch(0, 2, 64, 0)).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in task.parameters().values())
    assert len(task.parameters()) == 2 * (2 * 2 + 1)
    assert all(parameter.grad is None for parameter in target.decoder.parameters())
    assert all(torch.equal(before[name], parameter) for name, parameter in target.decoder.named_parameters())


def test_the_loss_is_the_papers(model):
    """Divergence of each head from what the model says i + 1 tokens on, times 0.8 to the power of i. At first all are the model."""
    target = TargetModel.load(model)
    task = MedusaRecipe(heads=3).build(target, None, 0)
    corpus = Corpus.split([torch.randint(3, 101, (2000,), generator=torch.Generator().manual_seed(0)).tolist()], 64, 0.1, None)
    batch = corpus.batch(0, 2, 64, 0)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = reference(batch.ids_BW).logits
        wanted = sum(
            0.8**head * kl(logits[:, 1 + head :], logits[:, : -1 - head]) / logits[:, 1 + head :, 0].numel() for head in range(3)
        )
    torch.testing.assert_close(task.loss(batch).detach(), wanted)


def test_the_loss_of_few_tokens_is_over_these_alone(model):
    """Both distributions are over the tokens that can be guessed; where the model says another one, nothing counts."""
    target = TargetModel.load(model)
    corpus = Corpus.split([torch.randint(3, 101, (2000,), generator=torch.Generator().manual_seed(0)).tolist()], 64, 0.1, None)
    task = MedusaRecipe(heads=2, draft_vocab=40).build(target, corpus, 0)
    few = corpus.train_N.bincount(minlength=101).argsort(descending=True, stable=True)[:40].sort().values
    assert task.heads.token_map.tolist() == few.tolist()
    batch = corpus.batch(0, 2, 64, 0)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = reference(batch.ids_BW).logits
    counts = torch.isin(logits.argmax(-1), few)
    assert 0.1 < counts.float().mean() < 0.9
    wanted = sum(
        0.8**head
        * kl(logits[:, 1 + head :][counts[:, 1 + head :]][:, few], logits[:, : -1 - head][counts[:, 1 + head :]][:, few])
        / counts[:, 1 + head :].numel()
        for head in range(2)
    )
    torch.testing.assert_close(task.loss(batch).detach(), wanted)
    with torch.no_grad():
        ranks = task.evaluate(batch).ranks
    best = logits[:, : 64 - 2][..., few].argmax(-1)
    assert [head[0] for head in ranks] == [int((few[best] == logits.argmax(-1)[:, 1 + i : 63 + i]).sum()) for i in range(2)]


def kl(wanted: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
    """Of all rows of logits together."""
    return torch.nn.functional.kl_div(said.log_softmax(-1), wanted.softmax(-1), reduction="sum")


def test_acceptance_counts_chains_and_accuracy_counts_heads(model):
    """Against a plain count, on a text in which one token often comes several times: then the model often says one thing again."""
    target = TargetModel.load(model)
    task = MedusaRecipe(heads=2).build(target, None, 0)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 101, (3, 64), generator=generator)
    for place in range(1, 64):
        if float(torch.rand((), generator=generator)) < 0.7:
            ids[:, place] = ids[:, place - 1]
    with torch.no_grad():
        batch = Batch(ids, 0)
        score = task.evaluate(batch)
        best = reference(batch.ids_BW).logits.topk(10).indices
    first = second = chains = 0
    for guesses in best.tolist():
        for place in range(64 - 2):
            one, two = guesses[place][0] == guesses[place + 1][0], guesses[place][0] == guesses[place + 2][0]
            first, second, chains = first + one, second + two, chains + (one and two)
    assert min(first, second) > chains > 0
    assert score.num_positions == 3 * 62 == score.seen[0]
    assert (score.right, score.seen[1]) == ((first, chains), first)
    assert (score.ranks[0][0], score.ranks[1][0]) == (first, second)


def test_a_run_that_is_killed_ends_with_the_same_curve_and_weights(model, periodic, tmp_path):
    options = TrainOptions(steps=40, batch=2, seq_len=64, seed=4, save_every=0, threads=torch.get_num_threads())
    train(str(model), periodic, tmp_path / "whole", MedusaRecipe(heads=2), options)
    command = ["train", "medusa", str(model), "--data", str(periodic), "--out", str(tmp_path / "killed"), "--heads", "2"]
    command += ["--steps", "40", "--batch", "2", "--seq-len", "64", "--seed", "4", "--save-every", "0"]
    command += ["--threads", str(torch.get_num_threads())]
    process = subprocess.Popen([sys.executable, "-m", "hasten", *command], stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("step 14 of 40"):
            process.kill()
            break
    process.stderr.close()
    assert process.wait() == -signal.SIGKILL
    assert (tmp_path / "killed" / ".resume" / "state.json").is_file()
    told: list[str] = []

    class Told:
        def note(self, text):
            told.append(text)

        def moved(self, *_):
            pass

        evaluated = moved

    train(str(model), periodic, tmp_path / "killed", MedusaRecipe(heads=2), options, callback=Told())
    assert any(text.startswith("going on after step 1") for text in told), told
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert (whole / "training.json").read_bytes() == (killed / "training.json").read_bytes()
    ours, theirs = load_file(whole / "model.safetensors"), load_file(killed / "model.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_own_projections_and_copies_are_written(model, periodic, tmp_path):
    for vocabulary, names in (("own", {"lm_heads.0.weight", "lm_heads.1.weight"}), ("copy", {"lm_head.weight"}), ("model", set())):
        out = tmp_path / vocabulary
        options = TrainOptions(steps=2, batch=1, seq_len=64)
        train(str(model), periodic, out, MedusaRecipe(heads=2, lm_head=vocabulary), options)
        stored = load_file(out / "model.safetensors")
        assert {name for name in stored if name.startswith("lm_head")} == names
        assert json.loads((out / "config.json").read_text())["original_lm_head"] is (vocabulary != "own")
    copied = load_file(tmp_path / "copy" / "model.safetensors")["lm_head.weight"]
    whole = load_file(model / "model.safetensors")["lm_head.weight"]
    assert torch.equal(copied, whole)
    train(str(model), periodic, tmp_path / "few", MedusaRecipe(heads=2, lm_head="copy", draft_vocab=9), options)
    stored = load_file(tmp_path / "few" / "model.safetensors")
    assert stored["token_map"].shape == (9,) and torch.equal(stored["lm_head.weight"], whole[stored["token_map"]])


def test_texts_of_the_models_own_are_written_once_and_trained_on(model, periodic, tmp_path):
    options = TrainOptions(steps=2, batch=1, seq_len=32, self_distill=70, seed=1)
    told: list[str] = []

    class Stops:
        def note(self, text):
            told.append(text)

        def moved(self, *_):
            raise KeyboardInterrupt

        evaluated = moved

    asked = iter([False])  # a wish to stop is heard before the second round of texts
    stopped = train(str(model), periodic, tmp_path / "out", MedusaRecipe(heads=1), options, stop=lambda: next(asked, True))
    assert stopped is None and len(list((tmp_path / "out" / ".resume").glob("generated-*"))) == 1
    with pytest.raises(KeyboardInterrupt):
        train(str(model), periodic, tmp_path / "out", MedusaRecipe(heads=1), options, callback=Stops())
    written = [load_file(file)["ids"] for file in sorted((tmp_path / "out" / ".resume").glob("generated-*"))]
    assert [tuple(ids.shape) for ids in written] == [(64, 32), (6, 32)]
    ids = torch.cat(written)
    # A beginning of the text (an eighth of a window), then what a random model says: anything.
    assert set(ids[:, :4].flatten().tolist()) <= set(range(10, 17))
    assert len(set(ids[:, 4:].flatten().tolist())) > 50
    again = train(str(model), periodic, tmp_path / "again", MedusaRecipe(heads=1), options)
    resumed = train(str(model), periodic, tmp_path / "out", MedusaRecipe(heads=1), options)
    assert again.state == resumed.state


@pytest.mark.parametrize(
    ("options", "words"),
    [({"heads": 0}, "1 to 16"), ({"layers": 9}, "1 to 8"), ({"lm_head": "modle"}, "Did you mean 'model'")],
)
def test_a_recipe_out_of_range_is_refused(options, words):
    with pytest.raises(InvalidOption, match=words):
        MedusaRecipe(**options)
