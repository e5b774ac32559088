"""A ``tokenizer.model`` gives the token ids and the text of SentencePiece itself."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.text.families import CORPUS

from hasten.core.errors import CheckpointError
from hasten.text.tokenizer import TextTokenizer

pytestmark = pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")  # of SWIG, at import
TEXTS = (
    "Hello the cat in 2023",
    " leading",
    "  two  spaces\n\ttab",
    "我们今天说中文 🙂 é",
    "def f(x):\n    return x",
    "",
    "x  ",
    "ﬁ Å",
    "see <|x|> and<|x|><|x|>  end",
)
LLAMA = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
NO_PREFIX = {**LLAMA, "add_dummy_prefix": False}
OPTIONS = (LLAMA, {"byte_fallback": True}, NO_PREFIX, {**NO_PREFIX, "user_defined_symbols": ["<|x|>"]})


def train(folder: Path, **options: Any) -> Any:
    """Write ``tokenizer.model`` to the folder, and return SentencePiece's processor of it."""
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.split(". ")),
        model_writer=out,
        vocab_size=450,
        hard_vocab_limit=False,
        character_coverage=0.98,
        minloglevel=2,
        **options,
    )
    (folder / "tokenizer.model").write_bytes(out.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())


def load(folder: Path, config: dict[str, Any] | None = None, values: dict[str, Any] | None = None) -> TextTokenizer:
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    if values is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(values))
    tokenizer = TextTokenizer.load(folder, 10_000)
    assert tokenizer is not None
    return tokenizer


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options))
@pytest.mark.parametrize("kind", ("bpe", "unigram"))
def test_token_ids_and_text_are_those_of_sentencepiece(kind, options, tmp_path):
    theirs = train(tmp_path, model_type=kind, **options)
    ours = load(tmp_path)
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text, add_special_tokens=False) == ids
        assert ours.encode(text) == [theirs.bos_id(), *ids]
        if options.get("byte_fallback"):
            assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids)
    assert ours.eos_token_id == theirs.eos_id()


@pytest.mark.parametrize("model_type", ("llama", "mistral", "qwen2", "gemma"))
@pytest.mark.parametrize("tokenizer_class", ("LlamaTokenizer", None))
def test_no_class_and_no_model_type_changes_what_the_file_says(model_type, tokenizer_class, tmp_path):
    theirs = train(tmp_path, model_type="bpe", **LLAMA)
    values = {"tokenizer_class": tokenizer_class, "add_bos_token": False, "add_eos_token": True, "eos_token": "</s>"}
    ours = load(tmp_path, {"model_type": model_type}, values)
    for text in TEXTS:
        assert ours.encode(text) == [*theirs.encode(text), theirs.eos_id()]


def test_tokens_that_were_added_later_have_their_ids(tmp_path):
    size = train(tmp_path, model_type="bpe", **LLAMA).get_piece_size()
    listed = {str(size): {"content": "<|im_start|>", "special": True, "normalized": False}, str(size + 2): {"content": "<tool>"}}
    ours = load(tmp_path, values={"added_tokens_decoder": listed, "eos_token": "<|im_start|>"})
    assert ours.encode("<|im_start|>cat<tool>")[1] == size == ours.eos_token_id
    assert ours.encode("<|im_start|>cat<tool>")[-1] == size + 2
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<end>": size, "<more>": size + 1}))
    ours = load(tmp_path)
    assert ours.encode("<end> <more>")[1] == ours.eos_token_id == size
    assert ours.decode([size, size + 1], skip_special_tokens=True) == "<more>"


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    train(tmp_path, model_type="bpe")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(CheckpointError, match=r'pip install "hasten\[sentencepiece\]"'):
        load(tmp_path)


@pytest.mark.parametrize("content", (b"", b"IQ== 0\nIg== 1\n", b"\nnonsense", b"\n\x00", b"\n\x03\n\x01a" * 3))
def test_a_broken_file_is_one_sentence(content, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load(tmp_path)


@pytest.mark.parametrize("later", ('{"<a>": -1}', '{"<a>": 1000000000}', '{"<a>": "x"}', '{"<a>": null}', "[]", "{"))
def test_broken_added_tokens_are_one_sentence(later, tmp_path):
    train(tmp_path, model_type="bpe")
    (tmp_path / "added_tokens.json").write_text(later)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load(tmp_path)


@pytest.mark.parametrize(
    "options", ({**LLAMA, "user_defined_symbols": ["<|x|>"]}, {**LLAMA, "treat_whitespace_as_suffix": True}), ids="+".join
)
def test_settings_without_a_counterpart_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    train(tmp_path, model_type="bpe", **options)
    with pytest.raises(CheckpointError, match=r"SentencePiece reads .* in another way"):
        load(tmp_path)


def test_runs_of_spaces_that_are_pieces_of_the_user_are_found(tmp_path: Path) -> None:
    """Gemma has such pieces, which have no merges."""
    processor = train(tmp_path, model_type="bpe", **NO_PREFIX, user_defined_symbols=["▁▁"])
    tokenizer = load(tmp_path, values={"add_bos_token": False})
    assert "▁▁" in processor.encode("a  b", out_type=str)
    for text in TEXTS:
        assert tokenizer.encode(text, add_special_tokens=False) == processor.encode(text), text
