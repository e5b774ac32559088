"""Exit heads learn a frozen model's distribution and are saved with calibrated thresholds and tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.conftest import PERIOD, stop_after
from transformers import AutoModelForCausalLM

from hasten.checkpoints.formats.exits import read_exits
from hasten.core.early_exit import REQUEST_CRITERIA, TOKEN_CRITERIA
from hasten.core.errors import InvalidOption
from hasten.layers.formats.dense import DenseFormatFactory
from hasten.layers.layer_context import LayerContext
from hasten.ops.torch.backend import TorchOps
from hasten.training import lm_head_loss
from hasten.training.build_task import build_task
from hasten.training.callback import TrainingCallback, evaluation_line
from hasten.training.corpus import Batch, Corpus
from hasten.training.draft_score import DraftScore
from hasten.training.early_exit import calibrate
from hasten.training.early_exit.task import CLASSIFIER_STRIDE, exit_layers
from hasten.training.options import TrainOptions
from hasten.training.recipes import EarlyExitRecipe
from hasten.training.target_model import TargetModel
from hasten.training.train import train

OPTIONS = TrainOptions(steps=120, batch=4, seq_len=64, lr=0.02)


@pytest.fixture(scope="module")
def trained(model, periodic_text, tmp_path_factory):
    """The folder of trained exits, and the training's result."""
    out = tmp_path_factory.mktemp("exits") / "trained"
    return out, train(str(model), periodic_text, out, EarlyExitRecipe(layers=(1, 2), texts=24), OPTIONS)


def exit_logits(model: Path, out: Path, ids_BS: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor, list[torch.Tensor]]:
    """Return the logits of exits, model and classifiers, on hidden states from transformers."""
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
        states = reference(ids_BS, output_hidden_states=True)
        hidden = {layer: states.hidden_states[layer].flatten(0, 1) for layer in exits.spec.layers}
        logits = [reference.lm_head(reference.model.norm(exits.at(layer).tuned_lens(x))) for layer, x in hidden.items()]
        return logits, states.logits.flatten(0, 1), [exits.at(layer).agreement_logit(x) for layer, x in hidden.items()]


def divergence(exit_: torch.Tensor, full: torch.Tensor) -> float:
    """Return the mean KL(full model || exit) of logits."""
    return float(torch.nn.functional.kl_div(exit_.log_softmax(-1), full.softmax(-1), reduction="batchmean"))


def test_a_training_that_stops_in_calibration_resumes_to_the_same_result(model, periodic_text, tmp_path):
    options, recipe = TrainOptions(steps=3, batch=2, seq_len=64, save_every=0), EarlyExitRecipe(layers=(1, 2), texts=8)
    uninterrupted = train(str(model), periodic_text, tmp_path / "uninterrupted", recipe, options)
    out = tmp_path / "interrupted"
    num_rules = len(TOKEN_CRITERIA) + len(REQUEST_CRITERIA)
    # ``should_stop`` is called before each step, before the tables and before each rule. Finished steps are not repeated.
    for calls in (3, 0, 1, num_rules, num_rules + 1):
        result = train(str(model), periodic_text, out, recipe, options, should_stop=stop_after(calls))
        assert (result is not None) == (out / "training.json").exists() == (calls > num_rules)
    assert result is not None and result.state == uninterrupted.state
    resumed, expected = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "uninterrupted"))
    assert resumed.keys() == expected.keys() and all(torch.equal(resumed[name], expected[name]) for name in resumed)
    reports = [json.loads((folder / "training.json").read_text()) for folder in (out, tmp_path / "uninterrupted")]
    assert reports[0] == reports[1]


def test_exits_learn_the_models_distribution(model, trained):
    ids = torch.tensor([[10 + (begin + position) % PERIOD for position in range(64)] for begin in range(PERIOD)])
    exits, full, classifiers = exit_logits(model, trained[0], ids)
    target = TargetModel.load(model)
    aux = target.hidden_states(ids, [0, 1]).aux_hidden_states
    for exit_, classifier, layer in zip(exits, classifiers, (1, 2), strict=True):
        logit_lens = target.decoder.head(aux[layer - 1])
        assert divergence(exit_, full) < 0.5 * divergence(logit_lens, full)
        agrees = (exit_.argmax(-1) == full.argmax(-1)).float()
        assert float(classifier[agrees > 0].mean()) > float(classifier[agrees == 0].mean()) + 0.3


def test_the_loss_is_the_divergence_of_all_exits_and_the_classifiers(model, tmp_path, monkeypatch):
    target = TargetModel.load(model)
    task = build_task(EarlyExitRecipe(layers=(1, 2), texts=0), target, None, 0)
    with torch.no_grad():
        for parameter in task.parameters().values():
            parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(1))
    batch = Batch(torch.randint(3, 101, (2, 40), generator=torch.Generator().manual_seed(0)), 0)
    monkeypatch.setattr(lm_head_loss, "BLOCK_ELEMENTS", 101 * 7)  # blocks that start between the exits of one token
    with torch.no_grad():
        score = task.evaluate(batch)
    task.save(tmp_path, score)
    exits, full, classifiers = exit_logits(model, tmp_path, batch.ids_BS)
    expected = sum(divergence(exit_, full) for exit_ in exits)
    for exit_, classifier in zip(exits, classifiers, strict=True):
        agrees = (exit_.argmax(-1) == full.argmax(-1)).float()[::CLASSIFIER_STRIDE]
        logits = classifier[::CLASSIFIER_STRIDE]
        expected += float(torch.nn.functional.binary_cross_entropy_with_logits(logits, agrees))
    assert float(task.loss(batch).detach()) == pytest.approx(expected, rel=1e-4)
    assert score.mean_loss == pytest.approx(expected, rel=1e-4)
    assert score.exit_layers == (1, 2) and score.num_positions == 80
    for exit_, agreement, accuracies in zip(exits, score.acceptance, score.accuracies, strict=True):
        hits = exit_.topk(10).indices == full.argmax(-1, keepdim=True)
        assert agreement == pytest.approx(float(hits[:, 0].float().mean()))
        assert accuracies == pytest.approx(tuple(hits.float().mean(0).tolist()))


def test_only_exits_get_gradients_and_classifiers_train_no_tuned_lens(model):
    target = TargetModel.load(model)
    before = {name: parameter.clone() for name, parameter in target.decoder.named_parameters()}
    task = build_task(EarlyExitRecipe(layers=(1, 2)), target, None, 0)
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


def test_the_checkpoint_has_thresholds_and_tables(trained):
    out, result = trained
    report = json.loads((out / "training.json").read_text())
    assert report["held_out_score"]["exits"] == [1, 2] and "acceptance" not in report["held_out_score"]
    assert report["held_out_score"]["agreement"] == list(result.score.acceptance)
    assert [entry["layers"] for entry in report["exits"]] == [1, 2]
    assert report["exits"][0]["kl"] > report["exits"][1]["kl"] > 0
    calibrations = json.loads((out / "config.json").read_text())["calibrations"]
    assert calibrations == report["calibrations"] and len(calibrations) == 16
    assert {each["rule"] for each in calibrations} == {*TOKEN_CRITERIA, *REQUEST_CRITERIA}
    assert {"token_layers", "text_planes", "text_layers"} <= set(load_file(out / "model.safetensors"))
    message = evaluation_line(3, 9, 1.5, result.score)
    assert "agreed" in message and "accepted" not in message and "tokens" not in message
    assert not (out / ".resume").exists()


def test_the_vocabulary_of_self_drafting_layers_is_saved(model, periodic_text, tmp_path):
    """With tables and without them. The entire vocabulary is not saved."""
    options = TrainOptions(steps=2, batch=1, seq_len=64)
    for name, recipe in (
        ("tables", EarlyExitRecipe(texts=8, draft_vocab=5)),
        ("none", EarlyExitRecipe(texts=0, draft_vocab=5)),
        ("all", EarlyExitRecipe(texts=0)),
    ):
        train(str(model), periodic_text, tmp_path / name, recipe, options)
        stored = load_file(tmp_path / name / "model.safetensors")
        if name == "all":
            assert "draft_ids" not in stored
        else:
            assert set(stored["draft_ids"].tolist()) < {0, 1, 2, *range(10, 10 + PERIOD)} and len(stored["draft_ids"]) == 5


def test_a_stopped_and_resumed_run_gives_the_same_files(model, periodic_text, tmp_path):
    options = TrainOptions(steps=20, batch=2, seq_len=64, seed=4, save_every=0)
    recipe = EarlyExitRecipe(layers=(2,), texts=8)
    train(str(model), periodic_text, tmp_path / "uninterrupted", recipe, options)
    assert train(str(model), periodic_text, tmp_path / "interrupted", recipe, options, should_stop=stop_after(11)) is None
    train(str(model), periodic_text, tmp_path / "interrupted", recipe, options)
    for name in ("training.json", "config.json", "model.safetensors"):
        assert (tmp_path / "uninterrupted" / name).read_bytes() == (tmp_path / "interrupted" / name).read_bytes(), name


def test_tuned_lenses_are_rounded_before_calibration(tiny, tmp_path):
    """The calibrated exits of a bfloat16 model are those that are saved."""
    import shutil

    from tests.tiny_models import word_tokenizer

    folder = tmp_path / "model"
    shutil.copytree(tiny("llama-gqa"), folder)
    word_tokenizer(101).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    target = TargetModel.load(folder)
    task = build_task(EarlyExitRecipe(layers=(1,), texts=0), target, None, 0)
    with torch.no_grad():
        for parameter in task.parameters().values():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    assert task.calibrate(None, TrainOptions(), None, lambda: False) == {}
    task.save(tmp_path / "out", DraftScore.zero())
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored["exits.1.translate.weight"].dtype == torch.bfloat16
    assert torch.equal(stored["exits.1.translate.weight"].float(), task.exits.at(1).translate.format.weight)


@pytest.mark.parametrize(
    ("num_layers", "expected"), [(8, (3, 4, 5, 6, 7)), (28, (10, 14, 18, 21, 24)), (2, (1,)), (3, (1, 2)), (4, (2, 3))]
)
def test_default_exits_are_in_the_upper_part_of_the_model(num_layers, expected):
    assert exit_layers(None, num_layers) == expected


def test_exits_that_the_model_does_not_have_are_refused(model):
    with pytest.raises(InvalidOption, match=r"exits after 1, 3 layers.*1 to 2.*3 layers"):
        build_task(EarlyExitRecipe(layers=(3, 1)), TargetModel.load(model), None, 0)
    for layers in ((), (0, 1), (2, 2)):
        with pytest.raises(InvalidOption, match="layers="):
            EarlyExitRecipe(layers=layers)
    with pytest.raises(InvalidOption, match=r"texts=-1 .*0 to"):
        EarlyExitRecipe(texts=-1)
    with pytest.raises(InvalidOption, match="exits after no layers"):
        exit_layers(None, 1)


def test_validation_text_measures_costs_only(model, monkeypatch):
    """Training text gives threshold grids, table statistics and the bounds of the test."""
    target = TargetModel.load(model)
    task = build_task(EarlyExitRecipe(layers=(1, 2), texts=8), target, None, 0)
    corpus = Corpus(torch.randint(3, 50, (2000,), dtype=torch.int32), torch.randint(50, 101, (2000,), dtype=torch.int32))
    of_validation: dict[int, bool] = {}  # id of statistics -> whether they are of validation text
    calls: set[tuple[str, bool]] = set()

    def record(name, is_validation):
        original = getattr(calibrate, name)

        def call(*arguments, **options):
            calls.add((name, is_validation(arguments)))
            return original(*arguments, **options)

        monkeypatch.setattr(calibrate, name, call)

    original_statistics = calibrate.exit_statistics

    def exit_statistics(target, exits, ids_NS):
        statistics = original_statistics(target, exits, ids_NS)
        of_validation[id(statistics)] = bool((ids_NS >= 50).all())
        return statistics

    monkeypatch.setattr(calibrate, "exit_statistics", exit_statistics)
    record("token_risks", lambda arguments: bool((arguments[2] >= 50).all()))
    record("token_table_cost", lambda arguments: bool((arguments[2] >= 50).all()))
    record("prompt_table_cost", lambda arguments: bool((arguments[2] >= 50).all()) and of_validation[id(arguments[3])])
    record("request_risks", lambda arguments: of_validation[id(arguments[0])])
    record("threshold_grid", lambda arguments: of_validation[id(arguments[0])])
    record("isolated_risks", lambda arguments: of_validation[id(arguments[0])])
    record("token_kl", lambda arguments: bool((arguments[0] >= 50).all()))
    record("bucket_kl", lambda arguments: bool((arguments[1] >= 50).all()) or of_validation[id(arguments[2])])
    task.calibrate(corpus, TrainOptions(seq_len=64), TrainingCallback(), lambda: False)
    assert task.checkpoint.token_layers is not None
    assert int((task.checkpoint.token_layers[50:] < 3).sum()) == 0  # tokens of the validation text have no statistics
    costs = {(name, True) for name in ("token_risks", "token_table_cost", "request_risks", "prompt_table_cost")}
    train = {(name, False) for name in ("threshold_grid", "isolated_risks", "request_risks", "token_kl", "bucket_kl")}
    assert calls == costs | train
