"""The files of a tokenizer: what each decides, what is refused, and what loading imports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.text.families import GPT2_RULE, byte_vocabulary, families
from tokenizers import Tokenizer, models

from hasten.checkpoints.hub import resolve
from hasten.core.errors import CheckpointError, InvalidRequest
from hasten.text.read_tokenizer import TokenizerWarning
from hasten.text.tokenizer import TextTokenizer

FAMILIES = {family.name: family for family in families()}
LONG = "the cat sat on the mat, " * 40


def load(folder: Path, vocab_size: int = 10_000) -> TextTokenizer:
    tokenizer = TextTokenizer.load(folder, vocab_size)
    assert tokenizer is not None
    return tokenizer


def change(file: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    edit(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def test_offsets_are_the_lengths_of_decoded_prefixes() -> None:
    tokenizer = load(resolve("demo"))
    text = "def naïve(x):\n\treturn '你好 🙂'  # <|im_end|> done\n"
    ids, ends = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    assert ends == sorted(ends) and ends[-1] == len(text.encode())
    for count in range(1, len(ids) + 1):
        prefix = tokenizer.decode(ids[1:count], skip_special_tokens=False)  # without the token that the tokenizer adds
        if "\N{REPLACEMENT CHARACTER}" not in prefix:  # not in the middle of a character
            assert ends[count - 1] == len(prefix.encode())


def test_tokens_are_written_as_the_vocabulary_has_them() -> None:
    tokenizer = load(resolve("demo"))
    names = {token_id: name for name, token_id in json.loads(tokenizer.to_json())["model"]["vocab"].items()}
    ids = tokenizer.encode("def naïve(x)", add_special_tokens=False)
    assert tokenizer.ids_to_tokens(ids) == [names[token_id] for token_id in ids]
    assert tokenizer.ids_to_tokens([0, 9_999]) == ["<|endoftext|>", ""]


@pytest.mark.filterwarnings("ignore::hasten.text.read_tokenizer.TokenizerWarning")
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_bytes_of_tokens_add_up_to_the_text(tmp_path: Path, name: str) -> None:
    tokenizer = load(FAMILIES[name].write(tmp_path / name))
    text = "the cat sat on the mat, 今天 café 🙂 2023"
    ids = tokenizer.encode(text, add_special_tokens=False)
    joined = b"".join(map(tokenizer.token_bytes, ids)).decode()
    assert joined.strip() == tokenizer.decode(ids, skip_special_tokens=False).strip()
    assert tokenizer.token_bytes(9_999) == b""
    for special, token_id in tokenizer.special_token_ids.items():
        assert tokenizer.token_bytes(token_id).decode().strip() == special.strip()


def test_loading_and_decoding_import_no_transformers():
    """It costs seconds, most of them in torch._dynamo and sympy."""
    source = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "from hasten.checkpoints.hub import resolve\n"
        "from hasten.text.tokenizer import TextTokenizer\n"
        "tokenizer = TextTokenizer.load(resolve('demo'), 8192)\n"
        "stream = tokenizer.detokenizer(True)\n"
        "print(''.join(map(stream.push, tokenizer.encode('the cat'))))\n"
        "print([n for n in set(sys.modules) - before if n.split('.')[0] in ('transformers', 'sympy') or '_dynamo' in n])\n"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout == "the cat\n[]\n"


def test_a_saved_truncation_and_a_saved_padding_do_nothing(tmp_path):
    """``max_length`` 0 makes the library itself panic."""
    folder = FAMILIES["llama-3"].write(tmp_path)
    expected = load(folder).encode(LONG)
    for max_length in (8, 0):
        truncation = {"direction": "Right", "max_length": max_length, "strategy": "LongestFirst", "stride": 4}
        padding = {
            "strategy": {"Fixed": 512},
            "direction": "Left",
            "pad_to_multiple_of": 8,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "!",
        }
        change(folder / "tokenizer.json", lambda content: content.update(truncation=truncation, padding=padding))  # noqa: B023
        tokenizer = load(folder)
        assert tokenizer.encode(LONG) == tokenizer.encode_with_offsets(LONG)[0] == expected
        assert tokenizer.encode("cat") == expected[:1] + tokenizer.encode("cat", add_special_tokens=False)


def test_digits_of_the_file_stay_apart_under_a_class_that_joins_them(tmp_path):
    folder = FAMILIES["gpt2-with-digits"].write(tmp_path)
    with pytest.warns(TokenizerWarning, match=r"GPT2Tokenizer splits \"In 2023 .* hasten follows tokenizer.json"):
        tokenizer = load(folder)
    assert len(tokenizer.encode("2023")) == 4


def test_spaces_of_the_file_stay_under_a_class_that_loses_them(tmp_path):
    folder = FAMILIES["llama-2-tokenizer-in-qwen2"].write(tmp_path)
    with pytest.warns(TokenizerWarning, match="Qwen2Tokenizer splits"):
        tokenizer = load(folder)
    assert tokenizer.decode(tokenizer.encode("the cat  sat"), skip_special_tokens=True) == "the cat  sat"


def test_special_tokens_that_the_file_lacks_are_text_and_named(tmp_path):
    folder = FAMILIES["smollm2-fast"].write(tmp_path)
    change(folder / "tokenizer_config.json", lambda values: values.update(bos_token="[BOS]", pad_token="[PAD]"))
    with pytest.warns(TokenizerWarning, match=r"lacks special tokens that tokenizer_config.json names.*: bos_token '\[BOS\]'$"):
        tokenizer = load(folder)
    assert len(tokenizer.encode("[BOS]")) > 1
    assert tokenizer.special_tokens["bos_token"] == "[BOS]"


def test_templates_come_from_files_first_and_may_be_several(tmp_path):
    folder = FAMILIES["llama-3"].write(tmp_path)
    assert load(folder).chat_template == FAMILIES["llama-3"].values["chat_template"]
    (folder / "chat_template.jinja").write_text("{{ 'one' }}")
    assert load(folder).chat_template == "{{ 'one' }}"
    (folder / "chat_templates").mkdir()
    (folder / "chat_templates" / "tool_use.jinja").write_text("{{ 'tools' }}")
    assert load(folder).chat_template == {"default": "{{ 'one' }}", "tool_use": "{{ 'tools' }}"}


def test_vocab_and_merges_without_tokenizer_json(tmp_path):
    byte_vocabulary(GPT2_RULE).save(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    file = FAMILIES["gpt2"].make()
    for text in ("the cat sat in 2023", "  two\n\nlines 我们"):
        assert load(tmp_path).encode(text) == file.encode(text).ids


def test_a_text_that_the_vocabulary_cannot_express_is_refused():
    tokenizer = TextTokenizer(Tokenizer(models.WordLevel({"cat": 0}, unk_token="<unk>")))
    assert tokenizer.encode("cat") == [0]
    for encode in (tokenizer.encode, tokenizer.encode_with_offsets):
        with pytest.raises(InvalidRequest, match="cannot encode"):
            encode("dog")


def test_ids_without_an_embedding_row_are_refused_wherever_they_come_from(tmp_path):
    folder = FAMILIES["llama-3"].write(tmp_path)
    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    load(folder, size)
    with pytest.raises(CheckpointError, match="more tokens than the model"):
        load(folder, size - 1)

    def begin_with(content: dict[str, Any]) -> None:
        content["post_processor"]["processors"][1]["special_tokens"]["<|begin_of_text|>"]["ids"] = [size]

    change(folder / "tokenizer.json", begin_with)
    with pytest.raises(CheckpointError, match="more tokens than the model"):
        load(folder, size)


BROKEN: dict[str, Callable[[dict[str, Any]], object]] = {
    "negative id": lambda content: content["model"]["vocab"].update(a=-1),
    "huge id": lambda content: content["model"]["vocab"].update(a=2**40),
    "merge of nothing": lambda content: content["model"]["merges"].append(["☃", "☃"]),
    "no model": lambda content: content.pop("model"),
    "another model": lambda content: content["model"].update(type="LSTM"),
    "text for a vocabulary": lambda content: content["model"].update(vocab="abc"),
    "broken regex": lambda content: content["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="("),
    "unknown decoder": lambda content: content.update(decoder={"type": "Morse"}),
    "added token without text": lambda content: content["added_tokens"].append({"id": 3}),
    "template without its token": lambda content: content["post_processor"]["processors"][1].update(special_tokens={}),
    "empty charsmap": lambda content: content.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_tokenizer_json_is_one_sentence(fault, tmp_path):
    folder = FAMILIES["llama-3"].write(tmp_path)
    change(folder / "tokenizer.json", BROKEN[fault])
    with pytest.raises(CheckpointError, match=r"the tokenizer in .* cannot be read"):
        load(folder)


@pytest.mark.parametrize("content", (b"", b"{", b"[" * 100_000, b"\xff\xfe", b"null"))
@pytest.mark.parametrize("name", ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json"))
def test_a_file_that_is_no_json_is_one_sentence(name, content, tmp_path):
    folder = FAMILIES["smollm2-fast"].write(tmp_path)
    if name == "vocab.json":
        (folder / "tokenizer.json").unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=str(folder)):
        load(folder)


@pytest.mark.parametrize(
    "values",
    (
        {"eos_token": 5},
        {"eos_token": []},
        {"bos_token": {"contents": "<s>"}},
        {"extra_special_tokens": {"image_token": 7}},
        {"chat_template": 7},
        {"chat_template": ["x"]},
        {"chat_template": [{"name": "default"}]},
    ),
)
def test_a_wrong_value_in_tokenizer_config_is_one_sentence(values, tmp_path):
    folder = FAMILIES["smollm2-fast"].write(tmp_path)
    (folder / "chat_template.jinja").unlink()
    change(folder / "tokenizer_config.json", lambda content: content.update(values))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        load(folder)


def test_an_unreadable_template_is_one_sentence(tmp_path):
    folder = FAMILIES["smollm2-fast"].write(tmp_path)
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja cannot be read"):
        load(folder)


def test_a_folder_without_tokenizer_files_has_none(tmp_path):
    assert TextTokenizer.load(tmp_path, 10) is None
