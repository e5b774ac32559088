"""A draft model is a model: transformers loads it, and it learns to say what its target says."""

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
from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import CheckpointError, InvalidOption
from hasten.models.family import find_family
from hasten.models.load import load_decoder
from hasten.ops.torch.backend import TorchOps
from hasten.training.corpus import Corpus
from hasten.training.draft_model.config import draft_config
from hasten.training.draft_model.recipe import DraftModelRecipe
from hasten.training.draft_score import DraftScore
from hasten.training.options import TrainOptions
from hasten.training.target_model import TargetModel
from hasten.training.train import train

IDS = torch.randint(3, 97, (1, 40), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def trained(model, periodic, tmp_path_factory):
    out = tmp_path_factory.mktemp("draft") / "out"
    outcome = train(
        str(model), periodic, out, DraftModelRecipe(layers=1, hidden=32), TrainOptions(steps=150, batch=4, seq_len=64, lr=0.01)
    )
    return out, outcome


def test_it_learns_what_the_target_says(model, trained):
    """Not the text: the target is a random model, and says something else after every word of it."""
    out, outcome = trained
    assert outcome.state.evaluations[-1]["loss"] < 0.5 * outcome.state.evaluations[0]["loss"]
    ids = torch.tensor([[10 + place % 7 for place in range(60)]])
    with torch.no_grad():
        ours, theirs = (AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)(ids).logits[0] for name in (out, model))
    divergence = torch.nn.functional.kl_div(ours.log_softmax(-1), theirs.softmax(-1), reduction="batchmean")
    flat = torch.nn.functional.kl_div(torch.zeros_like(ours).log_softmax(-1), theirs.softmax(-1), reduction="batchmean")
    assert float(divergence) < 0.5 * float(flat)


def test_agreement_is_with_the_target_and_the_text_alone_can_be_learned(model, periodic, tmp_path):
    """A model that learns only the text, which its target does not say, and a second one that learns from the first."""
    options = TrainOptions(steps=100, batch=4, seq_len=64, lr=0.01)
    first = train(str(model), periodic, tmp_path / "first", DraftModelRecipe(layers=1, hidden=32, hard_label_weight=1.0), options)
    reader = AutoModelForCausalLM.from_pretrained(tmp_path / "first", dtype=torch.float32)
    ids = torch.tensor([[10 + place % 7 for place in range(60)]])
    assert float((reader(ids).logits[0, 7:-1].argmax(-1) == ids[0, 8:]).float().mean()) > 0.98
    assert len(first.score.acceptance) == 4 and first.score.acceptance[0] < 0.3
    second = train(
        str(tmp_path / "first"),
        periodic,
        tmp_path / "second",
        DraftModelRecipe(layers=1, hidden=16, hard_label_weight=0.0),
        options,
    )
    assert min(second.score.acceptance) > 0.95


def test_it_goes_on_from_a_model_that_is_given(model, trained, periodic, tmp_path):
    """It begins about where that one ended, which random weights do not; its shape is its own."""
    out, outcome = trained
    options = TrainOptions(steps=20, batch=4, seq_len=64)
    further = train(str(model), periodic, tmp_path / "further", DraftModelRecipe(init_from=str(out)), options)
    assert json.loads((tmp_path / "further" / "training.json").read_text())["lr"] == 0.0003  # random weights need more
    first = further.state.evaluations[0]["loss"]
    assert first < 1.3 * outcome.score.mean_loss and 2 * first < outcome.state.evaluations[0]["loss"]
    assert json.loads((tmp_path / "further" / "config.json").read_text())["hidden_size"] == 32
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "further").config.num_hidden_layers == 1


@pytest.mark.parametrize("size", [{"layers": 3}, {"hidden": 128}])
def test_sizes_beside_a_start_are_refused(size):
    ((name, value),) = size.items()
    with pytest.raises(InvalidOption, match=f"{name}={value} beside init_from=demo-draft"):
        DraftModelRecipe(init_from="demo-draft", **size)


def test_a_start_of_another_vocabulary_is_refused_with_both_numbers(model, periodic, tmp_path):
    with pytest.raises(InvalidOption, match=r"8192 tokens.*101 tokens"):
        train(
            str(model),
            periodic,
            tmp_path / "out",
            DraftModelRecipe(init_from="demo-draft"),
            TrainOptions(steps=1, batch=1, seq_len=64),
        )


def test_the_tokens_to_guess_from_lie_beside_a_whole_model(model, periodic, tmp_path):
    train(
        str(model),
        periodic,
        tmp_path / "few",
        DraftModelRecipe(layers=1, hidden=32, draft_vocab=4),
        TrainOptions(steps=2, batch=1, seq_len=64),
    )
    ids = read_draft_ids(tmp_path / "few", 101)
    assert len(ids) == 4 and set(ids.tolist()) < {0, 1, 2, *range(10, 17)}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "few").lm_head.weight.shape[0] == 101


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"draft_ids": torch.tensor([3, 2], dtype=torch.int32)}, "rising"),
        ({"draft_ids": torch.tensor([3, 101], dtype=torch.int32)}, "3 to 101"),
        ({"draft_ids": torch.tensor([3.0])}, "float32"),
        ({"draft_ids": torch.tensor([], dtype=torch.int32)}, "0 to 100, rising"),
        ({"ids": torch.tensor([3])}, "got ids"),
        (b"nonsense", "cannot be read"),
    ],
)
def test_tokens_to_guess_from_that_are_none_are_refused(tmp_path, tensors, words):
    if isinstance(tensors, bytes):
        (tmp_path / "draft_ids.safetensors").write_bytes(tensors)
    else:
        save_file(tensors, tmp_path / "draft_ids.safetensors")
    with pytest.raises(CheckpointError, match=words):
        read_draft_ids(tmp_path, 101)


def test_the_tokenizer_comes_along(model, trained):
    out, _ = trained
    text = "w10 w11 w55"
    assert AutoTokenizer.from_pretrained(out)(text)["input_ids"] == AutoTokenizer.from_pretrained(model)(text)["input_ids"]


@pytest.mark.parametrize(
    "name", ["llama-gqa", "llama-mqa-bias", "qwen2-mixed-window", "qwen3-tied-bias", "mistral-window", "gpt2", "gpt2-untied-gelu"]
)
def test_every_family_is_saved_as_transformers_reads_it(tiny, tmp_path, name):
    folder = tmp_path / "target"
    shutil.copytree(tiny(name), folder)
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    word_tokenizer(vocab_size).save_pretrained(folder)
    target = TargetModel.load(folder)
    task = DraftModelRecipe(layers=2, hidden=32).build(target, None, 5)
    with torch.no_grad():
        for parameter in task.decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.2)
    task.save(tmp_path / "draft", DraftScore.nothing())
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "draft", dtype=torch.float32, attn_implementation="eager").eval()
    loaded = load_decoder(tmp_path / "draft", dtype="float32", ops=TorchOps())
    with torch.no_grad():
        theirs = reference(IDS).logits[0]
        assert differences(dense_logits(loaded.decoder, [IDS[0].tolist()]), theirs) == []
        assert differences(dense_logits(task.decoder, [IDS[0].tolist()]), theirs) == []
    assert loaded.spec.vocab_size == target.spec.vocab_size and loaded.spec.tied


def test_the_loss_mixes_the_target_and_the_text(model):
    target = TargetModel.load(model)
    corpus = Corpus.split([IDS[0].tolist() * 20], 64, 0.1, None)
    batch = corpus.batch(0, 2, 64, 0)
    task = DraftModelRecipe(layers=1, hidden=32, hard_label_weight=0.25).build(target, None, 5)
    rows = [row.tolist() for row in batch.ids_BW]
    with torch.no_grad():
        teacher = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()(batch.ids_BW).logits[:, :-1].flatten(0, 1)
        ours = dense_logits(task.decoder, rows).view(2, 64, -1)[:, :-1].flatten(0, 1)
        text = torch.nn.functional.one_hot(batch.ids_BW[:, 1:].flatten(), 101)
        wanted = 0.75 * teacher.softmax(-1) + 0.25 * text
        expected = torch.nn.functional.kl_div(ours.log_softmax(-1), wanted, reduction="batchmean")
        torch.testing.assert_close(task.loss(batch), expected)


@pytest.mark.parametrize(("layers", "hidden"), [(1, 24), (1, 128), (9, 32)])
def test_what_is_no_smaller_model_is_refused(tiny, layers, hidden):
    config = Checkpoint.open(tiny("llama-gqa")).config
    with pytest.raises(InvalidOption, match=rf"hidden={hidden}.*up to 3 layers, and multiples of 16.*up to 64"):
        draft_config(config, layers=layers, hidden=hidden)


@pytest.mark.parametrize(("head", "hidden"), [(256, 256), (96, 96), (80, 160), (64, 128), (16, 128), (128, 128), (48, 144)])
def test_the_size_that_nobody_chose_is_whole_heads_near_128(tiny, head, hidden):
    """Against a search of all multiples; the refusal of a chosen one names its option."""
    config = {**Checkpoint.open(tiny("llama-gqa")).config, "hidden_size": 8 * head, "head_dim": head}
    assert min(range(head, 8 * head + 1, head), key=lambda size: abs(size - 128)) == hidden
    small = draft_config(config, layers=1, hidden=None)
    assert (small["hidden_size"], small["num_attention_heads"]) == (hidden, hidden // head)
    with pytest.raises(InvalidOption, match=rf"multiples of {head} .* --layers and --hidden"):
        draft_config(config, layers=1, hidden=hidden + 1)


def test_a_draft_of_default_size_is_made_for_large_heads(tmp_path):
    """A model of heads of 256, as transformers makes it."""
    sizes = {"hidden_size": 512, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64}
    config = LlamaConfig(**sizes, num_hidden_layers=2, vocab_size=101, max_position_embeddings=64)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    task = DraftModelRecipe().build(TargetModel.load(tmp_path), None, 0)
    assert task.decoder.spec.hidden_size == 256


def test_the_shape_stays_in_proportion(tiny):
    config = Checkpoint.open(tiny("llama-gqa")).config
    small = draft_config(config, layers=1, hidden=32)
    spec = find_family(small).spec(small)
    (layer,) = spec.layers
    assert (layer.attention.num_heads, layer.attention.num_kv_heads, layer.attention.head_dim) == (2, 1, 16)
    assert (spec.hidden_size, layer.mlp.intermediate_size, spec.vocab_size) == (32, 64, 101)
