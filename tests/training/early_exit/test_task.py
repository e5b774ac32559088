"""Exits learn to say what the model says, beside a model that does not change, and end as a checkpoint that can be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.conftest import PERIOD
from transformers import AutoModelForCausalLM

from hasten.checkpoints.formats.exits import read_exits
from hasten.core.early_exit import REQUEST_CRITERIA, TOKEN_CRITERIA
from hasten.core.errors import InvalidOption
from hasten.layers.formats.dense import DenseFormatFactory
from hasten.layers.layer_context import LayerContext
from hasten.ops.torch.backend import TorchOps
from hasten.training import lm_head_loss
from hasten.training.callback import Silent, line
from hasten.training.corpus import Batch, Corpus
from hasten.training.draft_score import DraftScore
from hasten.training.early_exit import calibrate
from hasten.training.early_exit.recipe import EarlyExitRecipe
from hasten.training.early_exit.task import JUDGED
from hasten.training.options import TrainOptions
from hasten.training.target_model import TargetModel
from hasten.training.train import train

OPTIONS = TrainOptions(steps=120, batch=4, seq_len=64, lr=0.02)


@pytest.fixture(scope="module")
def trained(model, periodic, tmp_path_factory):
    out = tmp_path_factory.mktemp("exits") / "trained"
    return out, train(str(model), periodic, out, EarlyExitRecipe(layers=(1, 2), texts=24), OPTIONS)


def reading(model: Path, out: Path, ids_BW: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor, list[torch.Tensor]]:
    """Logits of every exit and of the model, and the classifiers' logits, over states that transformers computed. [T, ...]"""
    ops = TorchOps()
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    exits = read_exits(
        out,
        hidden_size=64,
        num_layers=3,
        vocab_size=101,
        layer_context=LayerContext(ops, DenseFormatFactory(ops, torch.float32), torch.float32),
    ).exits
    with torch.no_grad():
        states = reference(ids_BW, output_hidden_states=True)
        hidden = {layer: states.hidden_states[layer].flatten(0, 1) for layer in exits.spec.layers}
        said = [reference.lm_head(reference.model.norm(exits.at(layer).tuned_lens(x))) for layer, x in hidden.items()]
        return said, states.logits.flatten(0, 1), [exits.at(layer).agreement_logit(x) for layer, x in hidden.items()]


def divergence(said: torch.Tensor, whole: torch.Tensor) -> float:
    return float(torch.nn.functional.kl_div(said.log_softmax(-1), whole.softmax(-1), reduction="batchmean"))


def test_stopped_while_it_is_calibrated_a_training_goes_on_to_the_same_result(model, periodic, tmp_path):
    options, recipe = TrainOptions(steps=3, batch=2, seq_len=64, save_every=0), EarlyExitRecipe(layers=(1, 2), texts=8)
    whole = train(str(model), periodic, tmp_path / "whole", recipe, options)
    out = tmp_path / "cut"
    num_rules = len(TOKEN_CRITERIA) + len(REQUEST_CRITERIA)
    # It is asked before each step, before the tables and before each rule. What was trained is not trained again.
    for heard in (3, 0, 1, num_rules, num_rules + 1):
        asked = iter([False] * heard)
        outcome = train(str(model), periodic, out, recipe, options, stop=lambda asked=asked: next(asked, True))
        ended = heard > num_rules
        assert (outcome is not None) == (out / "training.json").exists() == ended
    assert outcome is not None and outcome.state == whole.state
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "whole"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert json.loads((out / "training.json").read_text()) == json.loads((tmp_path / "whole" / "training.json").read_text())


def test_exits_learn_what_the_model_says(model, trained):
    ids = torch.tensor([[10 + (begin + place) % PERIOD for place in range(64)] for begin in range(PERIOD)])
    said, whole, sure = reading(model, trained[0], ids)
    target = TargetModel.load(model)
    lens = [target.decoder.head(target.states(ids, [layer - 1]).aux_hidden_states[layer - 1]) for layer in (1, 2)]
    for exit_, plain, certainty in zip(said, lens, sure, strict=True):
        assert divergence(exit_, whole) < 0.5 * divergence(plain, whole)
        agrees = (exit_.argmax(-1) == whole.argmax(-1)).float()
        assert float(certainty[agrees > 0].mean()) > float(certainty[agrees == 0].mean()) + 0.3


def test_the_loss_is_the_divergence_of_all_exits_and_the_classifiers(model, tmp_path, monkeypatch):
    target = TargetModel.load(model)
    task = EarlyExitRecipe(layers=(1, 2), texts=0).build(target, None, 0)
    with torch.no_grad():
        for parameter in task.parameters().values():
            parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(1))
    batch = Batch(torch.randint(3, 101, (2, 40), generator=torch.Generator().manual_seed(0)), 0)
    monkeypatch.setattr(lm_head_loss, "BLOCK_ELEMENTS", 101 * 7)  # blocks that begin in the middle of a token's exits
    with torch.no_grad():
        score = task.evaluate(batch)
    task.save(tmp_path, score)
    said, whole, sure = reading(model, tmp_path, batch.ids_BW)
    wanted = sum(divergence(exit_, whole) for exit_ in said)
    for exit_, certainty in zip(said, sure, strict=True):
        agrees = (exit_.argmax(-1) == whole.argmax(-1)).float()[::JUDGED]
        wanted += float(torch.nn.functional.binary_cross_entropy_with_logits(certainty[::JUDGED], agrees))
    assert float(task.loss(batch).detach()) == pytest.approx(wanted, rel=1e-4)
    assert score.mean_loss == pytest.approx(wanted, rel=1e-4)
    assert score.exits == (1, 2) and score.num_positions == 80
    for exit_, share, ranks in zip(said, score.acceptance, score.accuracies, strict=True):
        hits = exit_.topk(10).indices == whole.argmax(-1, keepdim=True)
        assert share == pytest.approx(float(hits[:, 0].float().mean()))
        assert ranks == pytest.approx(tuple(hits.float().mean(0).tolist()))


def test_only_exits_get_gradients_and_classifiers_none_of_the_translators(model):
    target = TargetModel.load(model)
    before = {name: parameter.clone() for name, parameter in target.decoder.named_parameters()}
    task = EarlyExitRecipe(layers=(1, 2)).build(target, None, 0)
    assert all(not parameter.any() for parameter in task.parameters().values())  # the logit lens
    batch = Batch(torch.randint(3, 101, (2, 40), generator=torch.Generator().manual_seed(0)), 0)
    task.loss(batch).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in task.parameters().values())
    assert len(task.parameters()) == 2 * 4
    assert all(parameter.grad is None for parameter in target.decoder.parameters())
    assert all(torch.equal(before[name], parameter) for name, parameter in target.decoder.named_parameters())
    grads = {name: parameter.grad.clone() for name, parameter in task.parameters().items()}
    with torch.no_grad():
        task.exits.at(1).classify_bias.fill_(5.0)
    for parameter in task.parameters().values():
        parameter.grad = None
    task.loss(batch).backward()
    changed = {name for name, parameter in task.parameters().items() if not torch.equal(grads[name], parameter.grad)}
    assert changed == {"exits.1.classify_weight", "exits.1.classify_bias"}


def test_a_checkpoint_with_thresholds_and_tables_comes_out(trained):
    out, outcome = trained
    report = json.loads((out / "training.json").read_text())
    assert report["held_out_score"]["exits"] == [1, 2] and "acceptance" not in report["held_out_score"]
    assert report["held_out_score"]["agreement"] == list(outcome.score.acceptance)
    assert [about["layers"] for about in report["exits"]] == [1, 2]
    assert report["exits"][0]["kl"] > report["exits"][1]["kl"] > 0
    calibrations = json.loads((out / "config.json").read_text())["calibrations"]
    assert calibrations == report["calibrations"] and len(calibrations) == 16
    assert {each["rule"] for each in calibrations} == {*TOKEN_CRITERIA, *REQUEST_CRITERIA}
    assert {"token_layers", "text_planes", "text_layers"} <= set(load_file(out / "model.safetensors"))
    words = line(3, 9, 1.5, outcome.score)
    assert "agreed" in words and "accepted" not in words and "tokens" not in words
    assert not (out / ".resume").exists()


def test_first_layers_guess_from_the_most_frequent_tokens(model, periodic, tmp_path):
    """Stored with tables and without; of a small vocabulary all tokens are guessed, and nothing is stored."""
    options = TrainOptions(steps=2, batch=1, seq_len=64)
    for name, recipe in (
        ("tables", EarlyExitRecipe(texts=8, draft_vocab=5)),
        ("none", EarlyExitRecipe(texts=0, draft_vocab=5)),
        ("all", EarlyExitRecipe(texts=0)),
    ):
        train(str(model), periodic, tmp_path / name, recipe, options)
        stored = load_file(tmp_path / name / "model.safetensors")
        if name == "all":
            assert "draft_ids" not in stored
        else:
            assert set(stored["draft_ids"].tolist()) < {0, 1, 2, *range(10, 10 + PERIOD)} and len(stored["draft_ids"]) == 5


def test_a_run_that_stops_ends_with_the_same_files(model, periodic, tmp_path):
    options = TrainOptions(steps=20, batch=2, seq_len=64, seed=4, save_every=0)
    recipe = EarlyExitRecipe(layers=(2,), texts=8)
    train(str(model), periodic, tmp_path / "whole", recipe, options)
    left = iter([False] * 11)
    assert train(str(model), periodic, tmp_path / "cut", recipe, options, stop=lambda: next(left, True)) is None
    train(str(model), periodic, tmp_path / "cut", recipe, options)
    for name in ("training.json", "config.json", "model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes(), name


def test_what_is_calibrated_is_what_is_stored(tiny, tmp_path):
    """A bfloat16 model: translators are rounded before anything is measured."""
    import shutil

    from tests.tiny_models import word_tokenizer

    folder = tmp_path / "model"
    shutil.copytree(tiny("llama-gqa"), folder)
    word_tokenizer(101).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    target = TargetModel.load(folder)
    task = EarlyExitRecipe(layers=(1,), texts=0).build(target, None, 0)
    with torch.no_grad():
        for parameter in task.parameters().values():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    assert task.finish(None, TrainOptions(), None, lambda: False) == {}
    task.save(tmp_path / "out", DraftScore.nothing())
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored["exits.1.translate.weight"].dtype == torch.bfloat16
    assert torch.equal(stored["exits.1.translate.weight"].float(), task.exits.at(1).translate.format.weight)


def test_thresholds_are_found_on_text_that_training_did_not_look_at():
    """Held-out windows that chose the weights calibrate nothing, however few there are and however many are asked for."""
    for length in (96, 130, 2000, 40_000):
        corpus = Corpus.split([list(range(length))], 32, 0.2, None)
        held_out = len(corpus.held_out_N) // 32
        read = {int(token) for batch in corpus.held_out(8, 32, 10_000) for token in batch.ids_BW.flatten()}
        chosen = corpus.unread(32, 10_000, 0)
        assert not read & set(chosen.flatten().tolist())
        assert len(chosen) == held_out // 2 >= 1 and len(read) == 32 * (held_out - len(chosen))
    assert torch.equal(chosen, corpus.unread(32, 10_000, 0)) and not torch.equal(chosen, corpus.unread(32, 10_000, 1))
    assert len(corpus.unread(32, 64, 0)) == 64
    starts = [int(window[0]) for window in chosen]
    assert starts != sorted(starts)


@pytest.mark.parametrize(
    ("depth", "layers"), [(8, (3, 4, 5, 6, 7)), (28, (10, 14, 18, 21, 24)), (2, (1,)), (3, (1, 2)), (4, (2, 3))]
)
def test_exits_are_in_the_upper_part_of_any_depth(depth, layers):
    assert EarlyExitRecipe().settled(depth) == layers


def test_exits_that_the_model_does_not_have_are_refused(model):
    with pytest.raises(InvalidOption, match=r"exits after 1, 3 layers.*1 to 2.*3 layers"):
        EarlyExitRecipe(layers=(3, 1)).build(TargetModel.load(model), None, 0)
    for layers in ((), (0, 1), (2, 2)):
        with pytest.raises(InvalidOption, match="numbers of layers from 1"):
            EarlyExitRecipe(layers=layers)
    with pytest.raises(InvalidOption, match="from 0"):
        EarlyExitRecipe(texts=-1)
    with pytest.raises(InvalidOption):
        EarlyExitRecipe().settled(1)


def test_what_is_listed_and_counted_is_not_what_is_tested(model, monkeypatch):
    """Thresholds are listed, and tables counted, on text that was trained on; only what they cost is read from held-out text."""
    target = TargetModel.load(model)
    task = EarlyExitRecipe(layers=(1, 2), texts=8).build(target, None, 0)
    corpus = Corpus(torch.randint(3, 50, (2000,), dtype=torch.int32), torch.randint(50, 101, (2000,), dtype=torch.int32))
    texts: dict[int, bool] = {}  # of annotations, whether they are of held-out text
    seen: set[tuple[str, bool]] = set()

    def watched(name, held_out):
        real = getattr(calibrate, name)

        def call(*arguments, **options):
            seen.add((name, held_out(arguments)))
            return real(*arguments, **options)

        monkeypatch.setattr(calibrate, name, call)

    noted = calibrate.annotate

    def annotated(target, exits, texts_NW):
        found = noted(target, exits, texts_NW)
        texts[id(found)] = bool((texts_NW >= 50).all())
        return found

    monkeypatch.setattr(calibrate, "annotate", annotated)
    watched("token_risks", lambda arguments: bool((arguments[2] >= 50).all()))
    watched("token_costs", lambda arguments: bool((arguments[2] >= 50).all()))
    watched("request_risks", lambda arguments: texts[id(arguments[0])])
    watched("text_costs", lambda arguments: bool((arguments[2] >= 50).all()) and texts[id(arguments[3])])
    watched("grid", lambda arguments: texts[id(arguments[0])])
    watched("isolated_risks", lambda arguments: texts[id(arguments[0])])
    task.finish(corpus, TrainOptions(seq_len=64), Silent(), lambda: False)
    assert task._made.token_layers is not None
    assert int((task._made.token_layers[50:] < 3).sum()) == 0  # no token of the held-out text was ever counted
    tested = {(name, True) for name in ("token_risks", "token_costs", "request_risks", "text_costs")}
    # What the largest loss may be is asked of the text that was trained on, too.
    assert seen == {*tested, ("grid", False), ("isolated_risks", False), ("request_risks", False)}
