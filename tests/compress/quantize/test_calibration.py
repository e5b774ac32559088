"""Calibration sequences come from the text alone, without replacement, and never in silence from less than was asked for."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from hasten.checkpoints.hub import resolve
from hasten.compress.quantize.calibration import CalibrationWarning, calibration_digest, calibration_ids
from hasten.core.errors import HastenError, InvalidOption
from hasten.quality.documents import CALIBRATION
from hasten.text.tokenizer import TextTokenizer

NUM_WORDS = 5_000


@pytest.fixture(scope="module")
def demo() -> TextTokenizer:
    tokenizer = TextTokenizer.load(resolve("demo"), 8192)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="module")
def words() -> TextTokenizer:
    """Token i is the word ``wi``; the last one ends a text."""
    vocabulary = {f"w{i}": i for i in range(NUM_WORDS)} | {"<eos>": NUM_WORDS}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return TextTokenizer(tokenizer, special_tokens={"eos_token": "<eos>"})


def numbered(folder: Path, sizes: list[int]) -> Path:
    """Write documents of these numbers of words. Every word occurs once."""
    file, first = folder / "text.jsonl", 1
    lines = []
    for size in sizes:
        lines.append(json.dumps({"text": " ".join(f"w{i}" for i in range(first, first + size))}))
        first += size
    file.write_text("\n".join(lines))
    return file


def test_the_shipped_text_is_enough_for_128_sequences(demo: TextTokenizer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (calibration_ids(None, demo, samples=128, seq_len=512, seed=seed, max_positions=4096) for seed in (0, 1))
    assert first.shape == second.shape == (128, 512) and first.dtype == torch.int64
    assert len(set(map(tuple, first.tolist()))) == 128
    assert not set(map(tuple, first.tolist())) & set(map(tuple, second.tolist()))
    assert bool(((first >= 0) & (first < 8192)).all())


def test_a_large_vocabulary_leaves_enough_tokens() -> None:
    """GPT-2's vocabulary makes a token of about 4.5 bytes of such text."""
    num_bytes = sum(len(json.loads(line)["text"].encode()) for line in CALIBRATION.read_text(encoding="utf-8").splitlines())
    assert num_bytes / 4.5 / 512 > 160


def test_sequences_are_parts_of_the_joined_documents(words: TextTokenizer, tmp_path: Path) -> None:
    file = numbered(tmp_path, [50, 7, 120, 33])
    ids = calibration_ids(file, words, samples=6, seq_len=32, seed=3, max_positions=64)
    counts = Counter(ids.flatten().tolist())
    assert ids.shape == (6, 32)
    assert all(count == 1 for token, count in counts.items() if token != NUM_WORDS)  # nothing twice
    ends = {50, 57, 177, 210}
    for row in ids.tolist():
        for token, following in pairwise(row):
            if token != NUM_WORDS:
                assert following == (NUM_WORDS if token in ends else token + 1)


def test_the_seed_decides_alone(words: TextTokenizer, tmp_path: Path) -> None:
    file = numbered(tmp_path, [40] * 50)
    make = {seed: calibration_ids(file, words, samples=20, seq_len=40, seed=seed, max_positions=64) for seed in (0, 7)}
    torch.manual_seed(123)
    again = calibration_ids(file, words, samples=20, seq_len=40, seed=7, max_positions=64)
    assert torch.equal(make[7], again)
    assert not torch.equal(make[0], make[7])
    assert calibration_digest(make[7]) == calibration_digest(again) != calibration_digest(make[0])
    assert calibration_digest(again.view(40, 20)) != calibration_digest(again)
    assert len(calibration_digest(again)) == 64


def test_less_text_gives_fewer_sequences_and_a_warning(words: TextTokenizer, tmp_path: Path) -> None:
    file = numbered(tmp_path, [99, 98])  # 199 tokens with the two ends
    with pytest.warns(CalibrationWarning, match=r"text\.jsonl has 6 sequences of 32 tokens and not 7"):
        ids = calibration_ids(file, words, samples=7, seq_len=32, seed=0, max_positions=32)
    assert ids.shape == (6, 32)


def test_a_long_file_is_read_in_many_places(words: TextTokenizer, tmp_path: Path) -> None:
    """A part of one long text is encoded, and that part is not its beginning."""
    file = tmp_path / "long.txt"
    file.write_text("\n".join(" ".join(f"w{i % NUM_WORDS}" for i in range(line * 10, line * 10 + 10)) for line in range(60_000)))
    encoded = []
    plain = words.encode

    class Counting(TextTokenizer):
        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            encoded.append(text)
            return plain(text, add_special_tokens=add_special_tokens)

    counting = Counting(words._tokenizer, special_tokens=words.special_tokens)
    ids = calibration_ids(file, counting, samples=16, seq_len=128, seed=0, max_positions=128)
    assert ids.shape == (16, 128)
    assert sum(map(len, encoded)) < file.stat().st_size / 20
    assert len(encoded) >= 2 and all(text.endswith("\n") for text in encoded)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "is empty"),
        (b"\xff\xfe\x00", "is not text"),
        (b"w1 w2", "too short for one sequence: got 3 tokens; allowed: at least 8"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(words: TextTokenizer, tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidOption, match=message) as caught:
        calibration_ids(file, words, samples=2, seq_len=8, seed=0, max_positions=8)
    assert str(file) in str(caught.value)


def test_other_refusals(words: TextTokenizer, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="no tokenizer"):
        calibration_ids(None, None, samples=2, seq_len=8, seed=0, max_positions=8)
    with pytest.raises(InvalidOption, match="exceeds the model's context: got 9 tokens; allowed: up to 8"):
        calibration_ids(None, words, samples=2, seq_len=9, seed=0, max_positions=8)
    narrow = TextTokenizer(Tokenizer(models.WordLevel({"a": 0}, unk_token="none")))
    (tmp_path / "a").write_text("b")
    with pytest.raises(HastenError, match="cannot encode"):
        calibration_ids(tmp_path / "a", narrow, samples=1, seq_len=2, seed=0, max_positions=8)
