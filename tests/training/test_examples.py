"""Examples of a file: what counts as output, how they are split, and wrong lines."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from tests.text.families import Family, sentencepiece, tokens
from tests.tiny_models import word_tokenizer

from hasten.core.errors import InvalidOption
from hasten.text.tokenizer import TextTokenizer
from hasten.training.corpus import Batch
from hasten.training.examples import Example, Examples, read_examples


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> TextTokenizer:
    tokenizer = TextTokenizer.load(model, 101)
    assert tokenizer is not None
    return tokenizer


def write(folder: Path, *lines: object) -> Path:
    file = folder / "task.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return file


def rows(batch: Batch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the tokens before the output and the output of each example."""
    assert batch.is_output_BS is not None
    found = []
    for ids, mask in zip(batch.ids_BS.tolist(), batch.is_output_BS.tolist(), strict=True):
        begin, end = mask.index(True), len(mask) - mask[::-1].index(True)
        assert all(mask[begin:end]) and not any(ids[end:])
        found.append((tuple(ids[:begin]), tuple(ids[begin:end])))
    return found


def test_a_line_is_an_input_and_an_output_that_ends(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    file = write(tmp_path, {"input": "w5 w6", "output": "w7", "other": 1}, "", {"input": "w8", "output": "w9 w3"})
    assert read_examples(file, tokenizer, 32) == [Example([5, 6, 7, 2], 2), Example([8, 9, 3, 2], 1)]


def test_an_output_has_the_tokens_that_it_has_after_its_input(tmp_path: Path) -> None:
    """A tokenizer of SentencePiece puts a space before a text that stands alone."""
    made = sentencepiece()()
    folder = Family("llama2", lambda: made, values=tokens("<s>", "</s>", unk_token="<unk>")).write(tmp_path / "model")
    tokenizer = TextTokenizer.load(folder, made.get_vocab_size())
    assert tokenizer is not None
    pairs = [("count = 7\n", "return count"), ("The capital is", " Paris")]
    file = write(tmp_path, *({"input": first, "output": second} for first, second in pairs))
    assert [example.ids[:-1] for example in read_examples(file, tokenizer, 64)] == [made.encode(a + b).ids for a, b in pairs]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 of .* is no example"),
        ("[1]", "line 2 of .* is no example"),
        ({"input": "w5"}, "line 2 of .* is no example"),
        ({"input": "w5", "output": 3}, "line 2 of .* is no example"),
        ({"input": " ", "output": "w5"}, "line 2 of .* is no example"),
        ('{"input": "w5", "output": "\\ud800"}', "line 2 of .* is no example"),
        ("[" * 100_000, "line 2 of .* is no example"),
        (
            {"input": "w5 " * 30, "output": "w6 w6"},
            "line 2 of .* got 30 of input and 3 of output; .* up to 32",
        ),
    ],
)
def test_a_wrong_line_is_named(line: object, message: str, tmp_path: Path, tokenizer: TextTokenizer) -> None:
    with pytest.raises(InvalidOption, match=message) as caught:
        read_examples(write(tmp_path, {"input": "w5", "output": "w6"}, line), tokenizer, 32)
    assert len(str(caught.value)) < 500


def examples(count: int, copies: int = 1) -> list[Example]:
    return [Example([3 + i % 90, *range(5, 6 + i % 4), 2], 1 + i % 2) for i in range(count) for _ in range(copies)]


def test_every_example_is_in_one_part_and_an_epoch_reads_each_once() -> None:
    listed = examples(40, copies=2)
    split = Examples.split(listed, 0.25)
    train, validation, held_out = split.counts.tolist()
    assert train + validation + held_out == 80 and validation >= 10 and held_out >= 10 and train >= 56
    parts = [
        [row for step in range(train) for row in rows(split.batch(step, 1, 32, 7))],
        [row for batch in split.validation_batches(3, 32, 1000) for row in rows(batch)],
        [row for batch in split.held_out_batches(4) for row in rows(batch)],
    ]
    expected = Counter((tuple(e.ids[: e.num_input]), tuple(e.ids[e.num_input :])) for e in listed)
    assert sum((Counter(part) for part in parts), Counter()) == expected
    assert not set(parts[0]) & set(parts[1]) and not set(parts[0]) & set(parts[2]) and not set(parts[1]) & set(parts[2])
    assert [len(part) for part in parts] == [train, validation, held_out]


def test_batches_depend_on_seed_and_step_and_not_on_the_order_of_the_file() -> None:
    listed = examples(30)
    split, other = Examples.split(listed, 0.2), Examples.split(listed[::-1], 0.2)
    for step in range(12):
        first, again = (each.batch(step, 4, 32, 7) for each in (split, other))
        assert torch.equal(first.ids_BS, again.ids_BS) and first.seed == again.seed
    assert rows(split.batch(0, 8, 32, 7)) != rows(split.batch(0, 8, 32, 8))
    restored = Examples(**split.tensors())
    assert rows(restored.batch(3, 4, 32, 7)) == rows(split.batch(3, 4, 32, 7))


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(InvalidOption, match="got 6 examples, 2 different ones"):
        Examples.split(examples(2, copies=3), 0.05)
    assert Examples.split(examples(4), 0.05).counts.tolist() == [1, 1, 2]


def test_the_words_of_the_model_are_those_of_the_tests() -> None:
    assert word_tokenizer(101).encode("w5") == [5]
