"""``tokenizer.json`` decides about token ids and text, for the tokenizers of the well-known model families.

The oracles are ``tokenizers`` reading the file, and transformers' ``AutoTokenizer`` where it reads the file unchanged. A warning
says where it does not.
"""

from __future__ import annotations

import itertools
import os.path
import random
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.text.families import families
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from hasten.text import rebuilt_tokenizer
from hasten.text.read_tokenizer import TokenizerWarning
from hasten.text.tokenizer import TextTokenizer

TEXTS = (
    "Hello, the cat in 2023 and 1,234.56!",
    " leading",
    "  two  spaces\n\n\ttab\r\n    return f'{x}'  \n",
    "我们今天说中文,好吗?한국어",
    "e\u0301 naïve ﬁ 👩\u200d💻 🙂",
    "Don't WE'LL say <think>",
    "<s>hi</s><|im_end|>\n<|endoftext|> x<bos> <|assistant|>  y [INST]z",
    "",
)
FAMILIES = {family.name: family for family in families()}
SIZE = 10_000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@cache
def loaded(name: str, root: Path) -> tuple[TextTokenizer, Tokenizer, Any, list[str]]:
    """Return hasten's tokenizer, the file's, transformers' one, and hasten's warnings."""
    folder = FAMILIES[name].write(root / name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = TextTokenizer.load(folder, SIZE)
    assert ours is not None
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return ours, file, AutoTokenizer.from_pretrained(folder), [str(w.message) for w in caught if w.category is TokenizerWarning]


def test_there_are_forty_pairs_and_more():
    assert len(FAMILIES) >= 40


@pytest.mark.parametrize("name", FAMILIES)
def test_token_ids_and_text_are_those_of_the_file(name, root):
    ours, file, _, _ = loaded(name, root)
    for text in TEXTS:
        for special in (True, False):
            ids = ours.encode(text, add_special_tokens=special)
            assert ids == file.encode(text, add_special_tokens=special).ids
            for skip in (True, False):
                assert ours.decode(ids, skip_special_tokens=skip) == file.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_agrees_or_a_warning_says_where_not(name, root):
    family = FAMILIES[name]
    ours, _, theirs, messages = loaded(name, root)
    differing = [text for text in TEXTS if theirs.encode(text) != ours.encode(text)]
    assert bool(differing) == family.is_rebuilt
    rebuilt = [message for message in messages if "transformers reads other tokens" in message]
    assert len(rebuilt) == family.is_rebuilt
    for message in rebuilt:
        assert f"{type(theirs).__name__} splits" in message and "hasten follows tokenizer.json" in message


@pytest.mark.parametrize("name", FAMILIES)
def test_special_tokens_and_template_are_those_of_transformers(name, root):
    """Tokens that transformers would invent, because the vocabulary lacks them, are left out."""
    ours, file, theirs, _ = loaded(name, root)
    named = {*FAMILIES[name].values, "eos_token"}
    expected = {k: v for k, v in theirs.special_tokens_map.items() if k in named or file.token_to_id(v) is not None}
    assert dict(ours.special_tokens) == expected
    assert ours.chat_template == theirs.chat_template
    if theirs.eos_token_id is not None and theirs.eos_token_id < file.get_vocab_size():
        assert ours.eos_token_id == theirs.eos_token_id


@pytest.mark.parametrize("name", FAMILIES)
def test_streamed_text_is_the_text_of_the_file_at_every_split(name, root):
    """At every split into prompt and completion, and after every token of the completion."""
    ours, file, _, _ = loaded(name, root)
    for text in TEXTS:
        ids = ours.encode(text)
        for skip in (True, False):
            prefixes = [file.decode(ids[:end], skip_special_tokens=skip) for end in range(len(ids) + 1)]
            full, length = prefixes[-1], 0  # of the text that the prompt completes
            for split in range(len(ids) + 1):
                length = max(length, len(os.path.commonprefix([prefixes[split], full])))  # noqa: RUF071
                expected = full[length:]
                stream, streamed = ours.detokenizer(skip, ids[:split]), ""
                for token in ids[split:]:
                    streamed += stream.push(token)
                    assert expected.startswith(streamed)
                assert streamed + stream.flush() == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_streamed_text_of_any_tokens_is_the_text_of_the_file(name, root):
    """Also of tokens that no text gives. A run of byte tokens with a wrong byte is left to ``test_detokenizer``."""
    ours, file, _, _ = loaded(name, root)
    ids = [token for token in range(file.get_vocab_size() + 2) if not f"{file.id_to_token(token)}".startswith("<0x")]
    rng = random.Random(name)
    for length, skip in itertools.product((1, 5, 60), (True, False)):
        prompt, completion = rng.choices(ids, k=rng.choice((0, 3, 40))), rng.choices(ids, k=length)
        prompt_text = file.decode(prompt, skip_special_tokens=skip)
        full = file.decode(prompt + completion, skip_special_tokens=skip)
        expected = full[len(os.path.commonprefix([prompt_text, full])) :]  # noqa: RUF071
        stream, streamed = ours.detokenizer(skip, prompt), ""
        for token in completion:
            streamed += stream.push(token)
            assert expected.startswith(streamed)
        assert streamed + stream.flush() == expected


def test_the_table_of_rebuilding_classes_is_that_of_transformers():
    from transformers.models.auto import tokenization_auto as auto

    for model_type, name in rebuilt_tokenizer.REGISTERED.items():
        theirs = auto.TOKENIZER_MAPPING_NAMES[model_type] or ""
        assert theirs.removesuffix("Fast") == name or (name == "" and theirs in ("TokenizersBackend", "MistralCommonBackend"))
        assert (model_type in rebuilt_tokenizer.REGISTERED_WINS) == (model_type in auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS)


@pytest.mark.parametrize("values", ({}, {"add_prefix_space": True}, {"add_prefix_space": False}, {"legacy": True}))
@pytest.mark.parametrize("name", rebuilt_tokenizer.CLASSES)
def test_a_rebuilding_class_is_that_of_transformers(name, values):
    import transformers

    theirs = getattr(transformers, name)(**values)
    ours = rebuilt_tokenizer.CLASSES[name]
    normalizer = ours.normalizer and ours.normalizer()
    assert str(normalizer) == str(theirs.backend_tokenizer.normalizer)
    assert ours.pre_tokenizer(values).__getstate__() == theirs.backend_tokenizer.pre_tokenizer.__getstate__()
    assert dict(ours.special_tokens) == theirs.special_tokens_map
