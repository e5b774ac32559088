"""A GGUF file gives the token ids, the texts and the chat template of the tokenizer that it was written from.

The oracles are the original tokenizers: of ``tokenizers`` for byte-level BPE, of SentencePiece for its own models.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter, TokenType
from gguf.vocab import SpecialVocab
from tests.gguf_files import write_gguf
from tests.text.families import LLAMA3_RULE, QWEN2_RULE, families, isolated
from tests.text.gguf_vocabularies import (
    add_tokenizer,
    byte_level_tokens,
    byte_metadata,
    changed,
    sentencepiece_metadata,
    write,
    write_byte_level,
    write_sentencepiece,
)
from tests.text.test_sentencepiece_model import LLAMA, NO_PREFIX, train
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from hasten import LLM, SamplingParams
from hasten.checkpoints.hub import resolve
from hasten.core.errors import CheckpointError
from hasten.text.byte_pair_rules import BYTE_PAIR_RULES
from hasten.text.gguf_tokenizer import gguf_tokenizer
from hasten.text.tokenizer import TextTokenizer

pytestmark = pytest.mark.filterwarnings(
    "ignore:builtin type:DeprecationWarning", "ignore::hasten.text.read_tokenizer.TokenizerWarning"
)
FAMILIES = {family.name: family for family in families()}
PRE = {
    "llama-3": "llama-bpe",
    "deepseek-coder": "deepseek-coder",
    "mistral-nemo": "tekken",
    "mistral-small": "tekken",
    "smollm": "smollm",
    "smollm2-fast": "smollm",
    "qwen2.5-fast": "qwen2",
    "qwen3": "qwen2",
    "qwen3-no-class": "qwen2",
    "qwen3.5": "qwen35",
    "gpt2": "gpt-2",
    "phi-2": "phi-2",
    "starcoder2": "starcoder",
    "granite-3": "refact",
    "pythia": "olmo",
}
PIECES = (
    *(
        "the cat",
        " sat",
        "2023",
        "12345",
        " ",
        "  ",
        "   ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        "don't",
        "WE'LL",
        "café",
        "e\u0301",
        "世界",
    ),
    *("。", "한국", "🙂", "👩\u200d💻", "ﬁ", "<s>", "</s>", "<|im_end|>", "<|endoftext|>", "<think>", "[INST]", "<0x41>", "x", "Ⅻ"),
    *("½", "٣", "’s", "HelloWorld", "camelCase", "://", "//", "\u00a0", "\u3000", "?!", "--", "def f(x):", "    return"),
)


def random_texts(count: int) -> list[str]:
    rng = random.Random(7)
    return ["", *("".join(rng.choices(PIECES, k=rng.randrange(1, 10))) for _ in range(count))]


TEXTS = random_texts(150)
MESSAGES = [{"role": "user", "content": "Hello <|im_end|> 世界"}, {"role": "assistant", "content": "yes"}]


def load(path: Path) -> TextTokenizer:
    tokenizer = TextTokenizer.load(path, 10_000)
    assert tokenizer is not None
    return tokenizer


def assert_same(ours: TextTokenizer, original: TextTokenizer) -> None:
    for text in TEXTS:
        ids = original.encode(text)
        assert ours.encode(text) == ids, text
        assert ours.encode(text, add_special_tokens=False) == original.encode(text, add_special_tokens=False), text
        for skip in (False, True):
            assert ours.decode(ids, skip_special_tokens=skip) == original.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("name", PRE)
def test_byte_level_files_equal_tokenizer_json(name: str, tmp_path: Path) -> None:
    folder = FAMILIES[name].write(tmp_path)
    original, ours = load(folder), load(write_byte_level(folder, PRE[name]))
    assert_same(ours, original)
    named = {n: original.special_tokens[n] for n in ("bos_token", "eos_token") if FAMILIES[name].values.get(n)}
    assert {n: token for n, token in ours.special_tokens.items() if n in named} == named
    assert ours.eos_token_id == (original.eos_token_id if named else None)
    assert ours.chat_template == original.chat_template
    if ours.chat_template is not None:
        assert ours.apply_chat_template(MESSAGES) == original.apply_chat_template(MESSAGES)


@pytest.mark.parametrize(("pre", "rule"), (("deepseek-r1-qwen", QWEN2_RULE), ("smaug-bpe", LLAMA3_RULE)))
def test_a_vocabulary_of_thousands_of_tokens(pre: str, rule: str, tmp_path: Path) -> None:
    """The vocabulary is that of the demo model, with a pattern that has a name in GGUF."""
    tokenizer = Tokenizer.from_file(str(resolve("demo") / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([isolated(rule), ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for file in ("tokenizer_config.json", "chat_template.jinja", "config.json"):
        (tmp_path / file).write_text((resolve("demo") / file).read_text(encoding="utf-8"), encoding="utf-8")
    original, ours = load(tmp_path), load(write_byte_level(tmp_path, pre))
    assert_same(ours, original)
    assert ours.render_chat(MESSAGES) == original.render_chat(MESSAGES)
    assert ours.encode_with_offsets(TEXTS[7]) == original.encode_with_offsets(TEXTS[7])
    stream = ours.detokenizer(True)
    text = "naïve 世界 🙂"
    assert "".join(map(stream.push, ours.encode(text))) == text


@pytest.mark.parametrize("name", ("gpt2", "llama-3", "mistral-nemo", "qwen3"))
def test_transformers_reads_the_same_tokens_from_the_file(name: str, tmp_path: Path) -> None:
    """It adds ``<|endoftext|>`` to vocabularies without it, and does not normalize a text."""
    file = write_byte_level(FAMILIES[name].write(tmp_path / "folder"), PRE[name], "qwen2" if name == "qwen3" else "llama")
    alone = tmp_path / "model.gguf"
    file.rename(alone)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path, gguf_file=alone.name), load(alone)
    texts = [text for text in TEXTS if "<|endoftext|>" not in text and unicodedata.is_normalized("NFC", text)]
    assert len(texts) > 100
    for text in texts:
        assert ours.encode(text, add_special_tokens=False) == theirs(text, add_special_tokens=False)["input_ids"], text


@pytest.mark.parametrize("pre", sorted(set(BYTE_PAIR_RULES) & set(GGUF_PRE_TOKENIZER_SPLITS)))
def test_patterns_split_as_those_of_transformers(pre: str) -> None:
    theirs = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[pre]), "isolated")
    expected = pre_tokenizers.Sequence([theirs, ByteLevel(add_prefix_space=False, use_regex=False)])
    ours = BYTE_PAIR_RULES[pre].pre_tokenizer()
    assert all(ours.pre_tokenize_str(text) == expected.pre_tokenize_str(text) for text in TEXTS)


def test_seed_coder_splits_as_its_tokenizer_json() -> None:
    rule = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
    expected = pre_tokenizers.Sequence([isolated(rule), ByteLevel(add_prefix_space=False, use_regex=False)])
    ours = BYTE_PAIR_RULES["seed-coder"].pre_tokenizer()
    assert all(ours.pre_tokenize_str(text) == expected.pre_tokenize_str(text) for text in TEXTS)


# SentencePiece


@pytest.mark.parametrize("options", (LLAMA, NO_PREFIX, {**NO_PREFIX, "user_defined_symbols": ["▁▁", "<|x|>"]}), ids="+".join)
def test_sentencepiece_files_equal_sentencepiece(options: dict[str, Any], tmp_path: Path) -> None:
    processor = train(tmp_path, model_type="bpe", **options)
    (tmp_path / "tokenizer_config.json").write_text(
        '{"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ bos_token }}x"}'
    )
    prefix = None if options is LLAMA else False
    ours = load(write_sentencepiece(tmp_path, add_space_prefix=prefix))
    controls = ("<s>", "</s>")  # SentencePiece reads them as text
    for text in (text for text in (*TEXTS, "see <|x|> and<|x|><|x|>  end") if not any(token in text for token in controls)):
        ids = processor.encode(text)
        assert ours.encode(text, add_special_tokens=False) == ids, text
        assert ours.encode(text) == [processor.bos_id(), *ids]
        assert ours.decode(ids, skip_special_tokens=True) == processor.decode(ids)
    assert ours.eos_token_id == processor.eos_id()
    assert ours.special_tokens["unk_token"] == "<unk>"
    assert ours.encode("a<s>b</s>", add_special_tokens=False)[-1] == processor.eos_id()
    assert ours.decode([1, *processor.encode("x"), 2], skip_special_tokens=True) == "x"


def test_the_space_prefix_follows_every_special_token(tmp_path: Path) -> None:
    """llama.cpp and the ``tokenizer.json`` of Llama 2 read prompts of chats in this way."""
    processor = train(tmp_path, model_type="bpe", **LLAMA)
    ours = load(write_sentencepiece(tmp_path))
    ids = ours.encode("<s>the cat</s>sat", add_special_tokens=False)
    assert ids == [1, *processor.encode("the cat"), 2, *processor.encode("sat")]


def test_the_order_of_tokens_decides_where_scores_do_not() -> None:
    """Some converters write one score for all tokens."""
    metadata = sentencepiece_metadata()
    assert encode(metadata, "abc") == ["▁ab", "c"]
    for scores in ([-1000.0] * len(metadata["tokenizer.ggml.tokens"]), None):
        assert encode(changed(metadata, scores=scores), "abc") == ["▁a", "bc"]
    merges = ["▁ a", "▁a b", "b c", "a b"]
    assert encode(changed(metadata, merges=merges), "abc") == ["▁ab", "c"]
    assert encode(changed(metadata, merges=merges[::-1]), "abc") == ["▁", "ab", "c"]


# flags, types and templates


def build(metadata: dict[str, Any]) -> Tokenizer:
    found = gguf_tokenizer(metadata, "model.gguf")
    assert found is not None
    return found.tokenizer


def encode(metadata: dict[str, Any], text: str) -> list[str]:
    tokens: list[str] = build(metadata).encode(text, add_special_tokens=False).tokens
    return tokens


@pytest.mark.parametrize("pre", sorted(BYTE_PAIR_RULES))
def test_a_word_that_is_a_token_needs_no_merges_in_some_families(pre: str) -> None:
    """The list is that of llama.cpp, which begins a text with the bos token in the same families."""
    whole = pre in ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken")
    assert encode(byte_metadata(pre), "hello") == (["hello"] if whole else ["he", "l", "l", "o"])
    assert build(byte_metadata(pre)).encode("o").tokens == (["<s>", "o"] if whole else ["o"])


@pytest.mark.parametrize("add_bos", (None, False, True))
@pytest.mark.parametrize("add_eos", (None, False, True))
@pytest.mark.parametrize(("metadata", "default"), ((byte_metadata, False), (sentencepiece_metadata, True)))
def test_tokens_that_begin_and_end_a_text(
    metadata: Callable[..., dict[str, Any]], default: bool, add_bos: bool | None, add_eos: bool | None
) -> None:
    tokenizer = build(metadata(add_bos_token=add_bos, add_eos_token=add_eos))
    first, last = default if add_bos is None else add_bos, bool(add_eos)
    plain = tokenizer.encode("abc", add_special_tokens=False).tokens
    assert tokenizer.encode("abc").tokens == ["<s>"] * first + plain + ["</s>"] * last
    assert tokenizer.encode("").tokens == ["<s>"] * first + ["</s>"] * last


def test_token_types() -> None:
    tokenizer = build(byte_metadata())
    assert tokenizer.encode("he<tool><pad>[PAD262]").tokens[:3] == ["he", "<tool>", "<pad>"]
    assert len(tokenizer.encode("[PAD262]").tokens) == 8  # padding of the table is no token of a text
    added = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    assert added == {"<s>": True, "</s>": True, "<tool>": False, "<pad>": True}
    without = build(byte_metadata(token_type=None))
    assert without.encode("<tool>").tokens == list("<tool>")
    assert without.token_to_id("<tool>") == tokenizer.token_to_id("<tool>")


def test_text_never_merges_into_a_control_token() -> None:
    types = list(sentencepiece_metadata()["tokenizer.ggml.token_type"])
    types[-1] = TokenType.CONTROL
    assert encode(sentencepiece_metadata(), "ab") == ["▁ab"]
    assert encode(sentencepiece_metadata(token_type=list(map(int, types))), "ab") == ["▁a", "b"]


def test_named_special_tokens() -> None:
    found = gguf_tokenizer(byte_metadata(padding_token_id=261, eot_token_id=1, unknown_token_id=2**32 - 1), "model.gguf")
    assert found is not None
    assert found.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "eot_token": "</s>"}
    found = gguf_tokenizer(sentencepiece_metadata(eos_token_id=1), "model.gguf")
    assert found is not None
    assert found.special_tokens == {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "<s>"}


def test_several_chat_templates() -> None:
    templates = {"tokenizer.chat_template": "a", "tokenizer.chat_template.tool_use": "b", "tokenizer.chat_templates": ["tool_use"]}
    found = gguf_tokenizer(byte_metadata() | templates, "model.gguf")
    assert found is not None and found.chat_template == {"default": "a", "tool_use": "b"}
    for value in (3, None, ["a"], "x" * 1_000_001):
        with pytest.raises(CheckpointError, match=r"'tokenizer\.chat_template' in model\.gguf is not a chat template"):
            gguf_tokenizer(byte_metadata() | {"tokenizer.chat_template": value}, "model.gguf")


def test_files_without_a_tokenizer(tmp_path: Path) -> None:
    for model in ("none", "no_vocab"):
        assert gguf_tokenizer({"tokenizer.ggml.model": model}, "model.gguf") is None
    assert gguf_tokenizer({"general.architecture": "llama"}, "model.gguf") is None
    file = write(tmp_path, "no_vocab", ["a"], [TokenType.NORMAL])
    assert TextTokenizer.load(file, 1) is None


def test_more_tokens_than_embedding_rows(tmp_path: Path) -> None:
    file = write_byte_level(FAMILIES["gpt2"].write(tmp_path), "gpt-2")
    size = len(json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"])
    with pytest.raises(CheckpointError, match="more tokens than the model has embedding rows"):
        TextTokenizer.load(file, size)


def test_building_imports_no_transformers() -> None:
    source = (
        "import sys\n"
        "from hasten.text.gguf_tokenizer import gguf_tokenizer\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('transformers', 'torch', 'gguf')])\n"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_file_with_weights_answers_as_the_folder(tmp_path: Path) -> None:
    folder = resolve("demo")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def edit(writer: GGUFWriter) -> None:
        tokens, types = byte_level_tokens(tokenizer, tokenizer.get_vocab_size(with_added_tokens=True))
        special = SpecialVocab(folder, load_merges=True, n_vocab=len(tokens))
        add_tokenizer(writer, "gpt2", tokens, types, special, pre="deepseek-r1-qwen")

    write_gguf(tmp_path / "model.gguf", folder, "F32", edit=edit)
    messages = [{"role": "user", "content": "def add(a, b):"}]
    params = SamplingParams(temperature=0, max_tokens=12)
    texts = []
    for name in ("demo", str(tmp_path / "model.gguf")):
        with LLM(name, dtype="float32", max_model_len=256, kv_cache_memory="16MiB") as llm:
            texts.append((llm.chat(messages, params)[0].outputs[0].text, llm.generate("def add(a, b):", params)[0].outputs[0].text))
    assert texts[0] == texts[1] and texts[0][1]
