"""Medusa heads learn their distances beside a frozen model. A killed training gives the same heads."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.conftest import PERIOD, stop_after
from transformers import AutoModelForCausalLM

from hasten.checkpoints.formats.medusa import read_medusa
from hasten.core.errors import InvalidOption
from hasten.layers.formats.dense import DenseFormatFactory
from hasten.layers.layer_context import LayerContext
from hasten.ops.torch.backend import TorchOps
from hasten.training import medusa_task
from hasten.training.build_task import build_task
from hasten.training.callback import TrainingCallback
from hasten.training.corpus import Batch, Corpus
from hasten.training.options import TrainOptions
from hasten.training.recipes import MedusaRecipe
from hasten.training.target_model import TargetModel
from hasten.training.train import train

OPTIONS = TrainOptions(steps=250, batch=4, seq_len=128, lr=0.02)


@pytest.fixture(scope="module")
def trained(fluent_model, periodic_text, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("heads") / "trained"
    train(str(fluent_model), periodic_text, out, MedusaRecipe(heads=3), OPTIONS)
    return out


def head_accuracies(model: Path, out: Path) -> list[float]:
    """Return how often head i drafts the token i + 2 positions ahead, on hidden states from transformers."""
    ops = TorchOps()
    layer_context = LayerContext(ops, DenseFormatFactory(ops, torch.float32), torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    heads = read_medusa(out, hidden_size=64, vocab_size=101, layer_context=layer_context).heads
    ids = torch.tensor([10 + position % PERIOD for position in range(120)])
    accuracies = []
    with torch.no_grad():
        hidden = reference.model(ids[None]).last_hidden_state[0]
        for head, block in enumerate(heads.blocks):
            drafted = reference.lm_head(block(hidden)).argmax(-1)
            expected = ids[2 + head :]
            accuracies.append(float((drafted[: len(expected)] == expected)[10:].float().mean()))
    return accuracies


def test_every_head_learns_its_own_distance(fluent_model, trained):
    assert min(head_accuracies(fluent_model, trained)) > 0.98


def test_heads_trained_for_another_distance_are_detected(fluent_model, periodic_text, tmp_path, monkeypatch):
    """Negative control: heads trained for one token less have a good validation score."""
    monkeypatch.setattr(medusa_task, "OFFSET", 0)
    result = train(str(fluent_model), periodic_text, tmp_path / "out", MedusaRecipe(heads=3), OPTIONS)
    assert min(result.score.acceptance) > 0.95
    assert max(head_accuracies(fluent_model, tmp_path / "out")) < 0.5


def test_the_report_and_the_saved_accuracies_agree(trained):
    report = json.loads((trained / "training.json").read_text())
    assert report["evaluations"][-1]["train_loss"] < 0.1 < 10 < report["evaluations"][0]["train_loss"]
    assert min(report["held_out_score"]["acceptance"]) > 0.97  # the rest is near the cuts of the text
    assert report["held_out_score"]["accepted_length"] > 2.9
    accuracies = json.loads((trained / "config.json").read_text())["head_accuracies"]
    assert [len(head) for head in accuracies] == [10, 10, 10]
    assert all(head[0] > 0.9 and sum(head) <= 1.0 + 1e-9 for head in accuracies)
    assert not (trained / ".resume").exists()


def test_only_the_heads_get_gradients_and_the_model_does_not_change(model):
    target = TargetModel.load(model)
    before = {name: parameter.clone() for name, parameter in target.decoder.named_parameters()}
    task = build_task(MedusaRecipe(heads=2, layers=2, lm_head="own"), target, None, 0)
    corpus = Corpus.split([[10 + position % PERIOD for position in range(2000)]], 64, 0.1, None)
    task.loss(corpus.batch(0, 2, 64, 0)).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in task.parameters().values())
    assert len(task.parameters()) == 2 * (2 * 2 + 1)
    assert all(parameter.grad is None for parameter in target.decoder.parameters())
    assert all(torch.equal(before[name], parameter) for name, parameter in target.decoder.named_parameters())


def test_the_loss_is_that_of_the_paper(model):
    """KL of head i from the model's distribution i + 1 tokens later, times 0.8^i, for untrained heads."""
    target = TargetModel.load(model)
    task = build_task(MedusaRecipe(heads=3), target, None, 0)
    corpus = Corpus.split([torch.randint(3, 101, (2000,), generator=torch.Generator().manual_seed(0)).tolist()], 64, 0.1, None)
    batch = corpus.batch(0, 2, 64, 0)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = reference(batch.ids_BS).logits
        expected = sum(
            0.8**head * kl(logits[:, 1 + head :], logits[:, : -1 - head]) / logits[:, 1 + head :, 0].numel() for head in range(3)
        )
    torch.testing.assert_close(task.loss(batch).detach(), expected)


def test_the_loss_is_over_the_draft_vocabulary(model):
    """So is the teacher's distribution. Positions where the model chooses another token weigh 0."""
    target = TargetModel.load(model)
    corpus = Corpus.split([torch.randint(3, 101, (2000,), generator=torch.Generator().manual_seed(0)).tolist()], 64, 0.1, None)
    task = build_task(MedusaRecipe(heads=2, draft_vocab=40), target, corpus, 0)
    draft_ids = corpus.train_N.bincount(minlength=101).argsort(descending=True, stable=True)[:40].sort().values
    assert task.heads.token_map.tolist() == draft_ids.tolist()
    batch = corpus.batch(0, 2, 64, 0)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = reference(batch.ids_BS).logits
    counts = torch.isin(logits.argmax(-1), draft_ids)
    assert 0.1 < counts.float().mean() < 0.9
    expected = sum(
        0.8**head
        * kl(
            logits[:, 1 + head :][counts[:, 1 + head :]][:, draft_ids], logits[:, : -1 - head][counts[:, 1 + head :]][:, draft_ids]
        )
        / counts[:, 1 + head :].numel()
        for head in range(2)
    )
    torch.testing.assert_close(task.loss(batch).detach(), expected)
    with torch.no_grad():
        rank_hits = task.evaluate(batch).rank_hits
    best = logits[:, : 64 - 2][..., draft_ids].argmax(-1)
    assert [head[0] for head in rank_hits] == [
        int((draft_ids[best] == logits.argmax(-1)[:, 1 + i : 63 + i]).sum()) for i in range(2)
    ]


def kl(target: torch.Tensor, draft: torch.Tensor) -> torch.Tensor:
    """Return the sum of KL(target || draft) over all rows of logits."""
    return torch.nn.functional.kl_div(draft.log_softmax(-1), target.softmax(-1), reduction="sum")


def test_acceptance_counts_chains_and_accuracy_counts_heads(model):
    """Compared with a plain count. The text repeats tokens, so that some draft tokens are right."""
    target = TargetModel.load(model)
    task = build_task(MedusaRecipe(heads=2), target, None, 0)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 101, (3, 64), generator=generator)
    for position in range(1, 64):
        if float(torch.rand((), generator=generator)) < 0.7:
            ids[:, position] = ids[:, position - 1]
    with torch.no_grad():
        batch = Batch(ids, 0)
        score = task.evaluate(batch)
        best = reference(batch.ids_BS).logits.topk(10).indices
    first = second = chains = 0
    for top in best.tolist():
        for position in range(64 - 2):
            one, two = top[position][0] == top[position + 1][0], top[position][0] == top[position + 2][0]
            first, second, chains = first + one, second + two, chains + (one and two)
    assert min(first, second) > chains > 0
    assert score.num_positions == 3 * 62 == score.reached[0]
    assert (score.accepted, score.reached[1]) == ((first, chains), first)
    assert (score.rank_hits[0][0], score.rank_hits[1][0]) == (first, second)


class RecordingCallback(TrainingCallback):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def on_log(self, message):
        self.messages.append(message)


def test_a_killed_run_gives_the_same_report_and_weights(model, periodic_text, tmp_path):
    options = TrainOptions(steps=40, batch=2, seq_len=64, seed=4, save_every=0, threads=torch.get_num_threads())
    train(str(model), periodic_text, tmp_path / "uninterrupted", MedusaRecipe(heads=2), options)
    command = ["train", "medusa", str(model), "--data", str(periodic_text), "--out", str(tmp_path / "killed"), "--heads", "2"]
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
    callback = RecordingCallback()
    train(str(model), periodic_text, tmp_path / "killed", MedusaRecipe(heads=2), options, callback=callback)
    assert any(message.startswith("resuming after step 1") for message in callback.messages), callback.messages
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    assert (uninterrupted / "training.json").read_bytes() == (killed / "training.json").read_bytes()
    expected, resumed = load_file(uninterrupted / "model.safetensors"), load_file(killed / "model.safetensors")
    assert expected.keys() == resumed.keys() and all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_own_and_copied_lm_heads_are_saved(model, periodic_text, tmp_path):
    for lm_head, names in (("own", {"lm_heads.0.weight", "lm_heads.1.weight"}), ("copy", {"lm_head.weight"}), ("model", set())):
        out = tmp_path / lm_head
        options = TrainOptions(steps=2, batch=1, seq_len=64)
        train(str(model), periodic_text, out, MedusaRecipe(heads=2, lm_head=lm_head), options)
        stored = load_file(out / "model.safetensors")
        assert {name for name in stored if name.startswith("lm_head")} == names
        assert json.loads((out / "config.json").read_text())["original_lm_head"] is (lm_head != "own")
    copied = load_file(tmp_path / "copy" / "model.safetensors")["lm_head.weight"]
    original = load_file(model / "model.safetensors")["lm_head.weight"]
    assert torch.equal(copied, original)
    train(str(model), periodic_text, tmp_path / "truncated", MedusaRecipe(heads=2, lm_head="copy", draft_vocab=9), options)
    stored = load_file(tmp_path / "truncated" / "model.safetensors")
    assert stored["token_map"].shape == (9,) and torch.equal(stored["lm_head.weight"], original[stored["token_map"]])


def test_self_distillation_documents_are_generated_once(model, periodic_text, tmp_path):
    options = TrainOptions(steps=2, batch=1, seq_len=32, self_distill=70, seed=1)

    class InterruptingCallback(TrainingCallback):
        def on_step_end(self, *_):
            raise KeyboardInterrupt

    def run(out, **arguments):
        return train(str(model), periodic_text, tmp_path / out, MedusaRecipe(heads=1), options, **arguments)

    # ``should_stop`` is called before the second batch of documents.
    assert run("out", should_stop=stop_after(1)) is None
    assert len(list((tmp_path / "out" / ".resume").glob("generated-*"))) == 1
    with pytest.raises(KeyboardInterrupt):
        run("out", callback=InterruptingCallback())
    saved = [load_file(file)["ids"] for file in sorted((tmp_path / "out" / ".resume").glob("generated-*"))]
    assert [tuple(ids.shape) for ids in saved] == [(64, 32), (6, 32)]
    ids = torch.cat(saved)
    # A prompt from the text (an eighth of a sequence), then the output of a random model.
    assert set(ids[:, :4].flatten().tolist()) <= set(range(10, 17))
    assert len(set(ids[:, 4:].flatten().tolist())) > 50
    assert run("uninterrupted").state == run("out").state


@pytest.mark.parametrize(
    ("options", "message"),
    [({"heads": 0}, "1 to 16"), ({"layers": 9}, "1 to 8"), ({"lm_head": "modle"}, "Did you mean 'model'")],
)
def test_a_recipe_out_of_range_is_refused(options, message):
    with pytest.raises(InvalidOption, match=message):
        MedusaRecipe(**options)
