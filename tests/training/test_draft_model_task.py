"""A trained draft model loads in transformers and learns its target's distribution."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from tests.models.dense import dense_logits, differences
from tests.tiny_models import word_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hasten.checkpoints.formats.draft_ids import read_draft_ids
from hasten.core.errors import CheckpointError, InvalidOption
from hasten.models.load import load_decoder
from hasten.ops.torch.backend import TorchOps
from hasten.training.build_task import build_task
from hasten.training.corpus import Corpus
from hasten.training.draft_score import DraftScore
from hasten.training.options import TrainOptions
from hasten.training.recipes import DraftModelRecipe
from hasten.training.target_model import TargetModel
from hasten.training.train import train

IDS = torch.randint(3, 97, (1, 40), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def trained(model, periodic_text, tmp_path_factory):
    """The folder of a trained draft model, and its result."""
    out = tmp_path_factory.mktemp("draft") / "out"
    result = train(
        str(model), periodic_text, out, DraftModelRecipe(layers=1, hidden=32), TrainOptions(steps=150, batch=4, seq_len=64, lr=0.01)
    )
    return out, result


def test_the_draft_learns_the_targets_distribution(model, trained):
    """The target is a random model, which predicts other tokens than those of the text."""
    out, result = trained
    assert result.state.evaluations[-1]["loss"] < 0.5 * result.state.evaluations[0]["loss"]
    ids = torch.tensor([[10 + position % 7 for position in range(60)]])
    with torch.no_grad():
        draft, target = (AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)(ids).logits[0] for name in (out, model))
    kl = torch.nn.functional.kl_div(draft.log_softmax(-1), target.softmax(-1), reduction="batchmean")
    uniform_kl = torch.nn.functional.kl_div(torch.zeros_like(draft).log_softmax(-1), target.softmax(-1), reduction="batchmean")
    assert float(kl) < 0.5 * float(uniform_kl)


def test_acceptance_compares_with_the_target_and_hard_labels_teach_the_text(model, periodic_text, tmp_path):
    """The first draft learns the text, which its target does not predict. The second learns the first."""
    options = TrainOptions(steps=100, batch=4, seq_len=64, lr=0.01)
    first = train(
        str(model), periodic_text, tmp_path / "first", DraftModelRecipe(layers=1, hidden=32, hard_label_weight=1.0), options
    )
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "first", dtype=torch.float32)
    ids = torch.tensor([[10 + position % 7 for position in range(60)]])
    assert float((reference(ids).logits[0, 7:-1].argmax(-1) == ids[0, 8:]).float().mean()) > 0.98
    assert len(first.score.acceptance) == 4 and first.score.acceptance[0] < 0.3
    second = train(
        str(tmp_path / "first"),
        periodic_text,
        tmp_path / "second",
        DraftModelRecipe(layers=1, hidden=16, hard_label_weight=0.0),
        options,
    )
    assert min(second.score.acceptance) > 0.95


def test_init_from_continues_the_training_of_a_model(model, trained, periodic_text, tmp_path):
    """The first loss is near the last one of that model, far below that of random weights."""
    out, result = trained
    options = TrainOptions(steps=20, batch=4, seq_len=64)
    continued = train(str(model), periodic_text, tmp_path / "continued", DraftModelRecipe(init_from=str(out)), options)
    assert json.loads((tmp_path / "continued" / "training.json").read_text())["lr"] == 0.0003  # random weights need more
    first = continued.state.evaluations[0]["loss"]
    assert first < 1.3 * result.score.mean_loss and 2 * first < result.state.evaluations[0]["loss"]
    assert json.loads((tmp_path / "continued" / "config.json").read_text())["hidden_size"] == 32
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "continued").config.num_hidden_layers == 1


@pytest.mark.parametrize("size", [{"layers": 3}, {"hidden": 128}])
def test_sizes_beside_init_from_are_refused(size):
    ((name, value),) = size.items()
    with pytest.raises(InvalidOption, match=f"{name}={value} and init_from=demo-draft"):
        DraftModelRecipe(init_from="demo-draft", **size)


def test_init_from_another_vocabulary_is_refused_with_both_numbers(model, periodic_text, tmp_path):
    with pytest.raises(InvalidOption, match=r"8192 tokens.*101 tokens"):
        train(
            str(model),
            periodic_text,
            tmp_path / "out",
            DraftModelRecipe(init_from="demo-draft"),
            TrainOptions(steps=1, batch=1, seq_len=64),
        )


def test_the_draft_vocabulary_is_saved_beside_a_full_lm_head(model, periodic_text, tmp_path):
    train(
        str(model),
        periodic_text,
        tmp_path / "out",
        DraftModelRecipe(layers=1, hidden=32, draft_vocab=4),
        TrainOptions(steps=2, batch=1, seq_len=64),
    )
    ids = read_draft_ids(tmp_path / "out", 101)
    assert len(ids) == 4 and set(ids.tolist()) < {0, 1, 2, *range(10, 17)}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").lm_head.weight.shape[0] == 101


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"draft_ids": torch.tensor([3, 2], dtype=torch.int32)}, "rising"),
        ({"draft_ids": torch.tensor([3, 101], dtype=torch.int32)}, "3 to 101"),
        ({"draft_ids": torch.tensor([3.0])}, "float32"),
        ({"draft_ids": torch.tensor([], dtype=torch.int32)}, "0 to 100, rising"),
        ({"ids": torch.tensor([3])}, "got ids"),
        (b"nonsense", "cannot be read"),
    ],
)
def test_a_bad_draft_vocabulary_is_refused(tmp_path, tensors, message):
    if isinstance(tensors, bytes):
        (tmp_path / "draft_ids.safetensors").write_bytes(tensors)
    else:
        save_file(tensors, tmp_path / "draft_ids.safetensors")
    with pytest.raises(CheckpointError, match=message):
        read_draft_ids(tmp_path, 101)


def test_the_tokenizer_is_copied(model, trained):
    out, _ = trained
    text = "w10 w11 w55"
    assert AutoTokenizer.from_pretrained(out)(text)["input_ids"] == AutoTokenizer.from_pretrained(model)(text)["input_ids"]


@pytest.mark.parametrize(
    "name", ["llama-gqa", "llama-mqa-bias", "qwen2-mixed-window", "qwen3-tied-bias", "mistral-window", "gpt2", "gpt2-untied-gelu"]
)
def test_transformers_loads_a_draft_of_every_family(tiny, tmp_path, name):
    folder = tmp_path / "target"
    shutil.copytree(tiny(name), folder)
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    word_tokenizer(vocab_size).save_pretrained(folder)
    target = TargetModel.load(folder)
    task = build_task(DraftModelRecipe(layers=2, hidden=32), target, None, 5)
    with torch.no_grad():
        for parameter in task.model.decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.2)
    task.save(tmp_path / "draft", DraftScore.zero())
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "draft", dtype=torch.float32, attn_implementation="eager").eval()
    loaded = load_decoder(tmp_path / "draft", dtype="float32", ops=TorchOps())
    with torch.no_grad():
        expected = reference(IDS).logits[0]
        assert differences(dense_logits(loaded.decoder, [IDS[0].tolist()]), expected) == []
        assert differences(dense_logits(task.model.decoder, [IDS[0].tolist()]), expected) == []
    assert loaded.spec.vocab_size == target.spec.vocab_size and loaded.spec.tie_word_embeddings


def test_the_loss_mixes_the_target_and_the_text(model):
    target = TargetModel.load(model)
    corpus = Corpus.split([IDS[0].tolist() * 20], 64, 0.1, None)
    batch = corpus.batch(0, 2, 64, 0)
    task = build_task(DraftModelRecipe(layers=1, hidden=32, hard_label_weight=0.25), target, None, 5)
    rows = [row.tolist() for row in batch.ids_BS]
    with torch.no_grad():
        teacher = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()(batch.ids_BS).logits[:, :-1].flatten(0, 1)
        draft = dense_logits(task.model.decoder, rows).view(2, 64, -1)[:, :-1].flatten(0, 1)
        hard = torch.nn.functional.one_hot(batch.ids_BS[:, 1:].flatten(), 101)
        labels = 0.75 * teacher.softmax(-1) + 0.25 * hard
        expected = torch.nn.functional.kl_div(draft.log_softmax(-1), labels, reduction="batchmean")
        torch.testing.assert_close(task.loss(batch), expected)


def test_the_default_draft_fits_heads_of_size_256(tmp_path):
    sizes = {"hidden_size": 512, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64}
    config = LlamaConfig(**sizes, num_hidden_layers=2, vocab_size=101, max_position_embeddings=64)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    task = build_task(DraftModelRecipe(), TargetModel.load(tmp_path), None, 0)
    assert task.model.decoder.spec.hidden_size == 256
