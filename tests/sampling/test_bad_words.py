"""No text has a bad word in it, however it is cut into tokens, and no other token is masked.

The oracle decodes the sequence with each token of the vocabulary and looks for the word in the text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from tests.exhaustive import repeats
from tests.text.test_detokenizer import SAMPLES, SPECIAL, TEXT, trained
from tests.text_models import text_checkpoint
from tokenizers import Tokenizer

from hasten import LLM, InvalidRequest, SamplingParams
from hasten.sampling import token_texts
from hasten.sampling.bad_word_set import BadWordSet
from hasten.sampling.chain import Chain
from hasten.sampling.row import SamplingRow
from hasten.text import vocabulary_bytes as vocabulary
from hasten.text.tokenizer import TextTokenizer

KINDS = ("byte-level", "byte-fallback", "metaspace", "wordpiece")
REPLACEMENT = "\ufffd"
STEPS = 16


def random_words(rng: random.Random) -> tuple[str, ...]:
    """Return parts of texts, some of which begin or end inside a term or in a space."""
    words = []
    for _ in range(rng.randrange(1, 4)):
        text = rng.choice((TEXT, *SAMPLES))
        start = rng.randrange(len(text))
        words.append(text[start : start + rng.choice((1, 2, 3, 4, 6, 12))])
    return tuple(words)


def words_tokens(tokenizer: Tokenizer, words: Sequence[str], rng: random.Random) -> list[int]:
    """Return tokens that a model fond of these words would choose: every cut of them into tokens, byte tokens included."""
    size = tokenizer.get_vocab_size()
    pieces = {word[i:j] for word in words for i in range(len(word)) for j in range(i + 1, len(word) + 1)}
    token_ids = [i for piece in pieces for i in tokenizer.encode(piece, add_special_tokens=False).ids]
    token_ids += [i for i in range(size) if any(tokenizer.decode([i]).strip() == piece.strip() for piece in pieces)]
    token_ids += [i for byte in "".join(words).encode() if (i := tokenizer.token_to_id(f"<0x{byte:02X}>")) is not None]
    return [*token_ids, *(rng.randrange(size) for _ in range(3))]


def spelled(tokenizer: Tokenizer, words: Sequence[str], rng: random.Random) -> list[int]:
    """Return the byte tokens of a word, or its letters as tokens."""
    word = rng.choice(words)
    names = [f"<0x{byte:02X}>" for byte in word.encode()] if rng.random() < 0.7 else list(word.replace(" ", "▁"))
    return [i for name in names if (i := tokenizer.token_to_id(name)) is not None]


def occurrences(text: str, words: Sequence[str]) -> int:
    return sum(text.startswith(word, i) for word in words for i in range(len(text)))


def generate(
    kind: str, seed: int, process: Callable[[torch.Tensor, SamplingRow], torch.Tensor] | None = None, *, exact: bool = False
) -> None:
    """Generate with a model that is fond of the bad words; assert that the text has none of them.

    ``exact``: assert in each step that the masked tokens are those that would complete a word.
    """
    rng, tokenizer = random.Random(f"{kind} {seed}"), trained(kind)
    words = random_words(rng)
    skip = rng.random() < 0.7
    text = TextTokenizer(tokenizer)
    chain = Chain.with_bad_words(text.bad_words)
    fond = words_tokens(tokenizer, words, rng)
    prompt = [*tokenizer.encode("the cat").ids, *(rng.choice(fond) for _ in range(rng.randrange(3)))]
    params = SamplingParams(bad_words=words, skip_special_tokens=skip)
    token_ids, size = list(prompt), tokenizer.get_vocab_size()
    plan: list[int] = []
    detokenizer, shown = text.detokenizer(skip, prompt), ""
    for _ in range(STEPS):
        row = SamplingRow(params, token_ids, len(prompt), (), 0)
        logits_V = torch.zeros(size)
        logits_V = (chain.process(logits_V[None], [row]) if process is None else process(logits_V[None], row))[0]
        masked = set((logits_V == -torch.inf).nonzero()[:, 0].tolist())
        if exact:
            check_masked(tokenizer, token_ids, words, skip, masked)
        plan = plan if plan and plan[0] not in masked else spelled(tokenizer, words, rng) if rng.random() < 0.3 else []
        allowed = [i for i in (plan[:1] or fond) if i not in masked] or [i for i in range(size) if i not in masked]
        if not allowed:
            break
        token_ids.append(rng.choice(allowed))
        plan = plan[1:]
        shown += detokenizer.push(token_ids[-1])
    shown += detokenizer.flush()
    assert not any(word in shown for word in words if REPLACEMENT not in word), (words, shown, token_ids)


def check_masked(tokenizer: Tokenizer, token_ids: list[int], words: Sequence[str], skip: bool, masked: set[int]) -> None:
    words = [word for word in words if REPLACEMENT not in word]
    size = tokenizer.get_vocab_size()
    before = occurrences(tokenizer.decode(token_ids, skip_special_tokens=skip), words)
    texts = tokenizer.decode_batch([[*token_ids, i] for i in range(size)], skip_special_tokens=skip)
    for token_id, text in enumerate(texts):
        if occurrences(text, words) > before:
            assert token_id in masked, (words, text)
        elif REPLACEMENT not in text:  # bytes that are no text may be masked with the token that spoils them
            assert token_id not in masked, (words, text)


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_has_a_bad_word(kind: str) -> None:
    for seed in range(repeats("bad words")):
        generate(kind, seed)


@pytest.mark.parametrize("kind", KINDS)
def test_the_masked_tokens_are_those_that_complete_a_word(kind: str) -> None:
    for seed in range(repeats("bad words") // 12):
        generate(kind, seed, exact=True)


# ---------------------------------------------------------------- planted faults


def fails(kind: str, **given: object) -> bool:
    try:
        for seed in range(60):
            generate(kind, seed, exact=seed % 4 == 3, **given)  # type: ignore[arg-type]
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_words_as_two_sequences_of_token_ids_are_not_enough(kind: str) -> None:
    tokenizer = trained(kind)

    def process(logits_RV: torch.Tensor, row: SamplingRow) -> torch.Tensor:
        texts = [text for word in row.params.bad_words for text in (word, " " + word)]
        ids = tuple(tuple(ids) for text in texts if (ids := tokenizer.encode(text, add_special_tokens=False).ids))
        return Chain().process(logits_RV, [row._replace(params=row.params.replace(bad_words=(), bad_words_ids=ids))])

    assert fails(kind, process=process)


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "words inside a token are forgotten": lambda patch: patch.setattr(
        token_texts.TokenTexts, "containing", lambda self, word: token_texts.np.array([], dtype="int64")
    ),
    "rests of words are forgotten": lambda patch: patch.setattr(
        token_texts.TokenTexts, "starting_with", lambda self, prefix: token_texts.np.array([], dtype="int64")
    ),
    "the text so far is a byte short": lambda patch: patch.setattr(
        token_texts.TokenTexts, "tail", lambda self, ids, count, tail=token_texts.TokenTexts.tail: tail(self, ids, count - 1)[1:]
    ),
    "byte tokens are their names": lambda patch: patch.setattr(vocabulary, "byte_of", lambda name: None),
    "a token too many": lambda patch: patch.setattr(
        BadWordSet,
        "completing_tokens",
        lambda self, ids, real=BadWordSet.completing_tokens: token_texts.np.append(real(self, ids), 300),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[fault](monkeypatch)
    assert fails("byte-fallback")


# ---------------------------------------------------------------- tokens that do not appear in the text


def masked_tokens(tokenizer: Tokenizer, prompt: str, params: SamplingParams, eos: tuple[int, ...] = ()) -> set[str | None]:
    text = TextTokenizer(tokenizer)
    row = SamplingRow(params, text.encode(prompt), 1, eos, 0)
    logits_RV = Chain.with_bad_words(text.bad_words).process(torch.zeros(1, tokenizer.get_vocab_size()), [row])
    return {tokenizer.id_to_token(i) for i in (logits_RV[0] == -torch.inf).nonzero()[:, 0].tolist()}


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_a_token_that_ends_the_output_completes_no_word(kind: str) -> None:
    tokenizer = trained(kind)
    end, turn = (tokenizer.token_to_id(token) for token in SPECIAL[1:])
    params = SamplingParams(bad_words=("/s", "f turn"), skip_special_tokens=False)
    assert masked_tokens(tokenizer, "the", params) == {"</s>", "<|end of turn|>"}
    assert masked_tokens(tokenizer, "the", params, (end,)) == {"<|end of turn|>"}
    assert masked_tokens(tokenizer, "the", params.replace(ignore_eos=True), (end,)) == {"</s>", "<|end of turn|>"}
    assert masked_tokens(tokenizer, "the", params.replace(stop_token_ids=(turn,)), (end,)) == set()
    shown = params.replace(stop_token_ids=(turn,), include_stop_str_in_output=True)
    assert masked_tokens(tokenizer, "the", shown, (end,)) == {"<|end of turn|>"}
    assert masked_tokens(tokenizer, "the", params.replace(skip_special_tokens=True)) == set()
    assert masked_tokens(tokenizer, "the", params.replace(stop_token_ids=(turn,), bad_words_ids=((turn,),))) == {
        "</s>",
        "<|end of turn|>",
    }


@pytest.fixture(scope="module", params=["byte-level", "byte-fallback"])
def text_llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """Return a tiny model with the first tokens of a trained tokenizer."""
    checkpoint = text_checkpoint(trained(request.param), tmp_path_factory.mktemp(request.param))
    return LLM(str(checkpoint), kv_cache_memory="8MiB", threads=1)


def test_a_model_never_writes_a_bad_word(text_llm: LLM) -> None:
    params = SamplingParams(max_tokens=40, seed=3, n=4, ignore_eos=True)
    plain = [output.text for output in text_llm.generate("the cat", params, use_tqdm=False)[0].outputs]
    letters = sorted({letter for text in plain for letter in text if letter.isalpha()})
    pairs = sorted({text[i : i + 2] for text in plain for i in range(len(text) - 1) if REPLACEMENT not in text[i : i + 2]})
    assert len(letters) > 8
    for words in ([*letters[::2]], pairs[:60]):
        for one in (params, params.replace(beam_width=4, seed=None, n=4, max_tokens=12)):
            outputs = text_llm.generate("the cat", one.replace(bad_words=tuple(words)), use_tqdm=False)[0].outputs
            assert not [(word, output.text) for output in outputs for word in words if word in output.text]


def test_a_stop_string_or_bad_word_that_is_a_special_token_counts_while_these_are_skipped(text_llm: LLM) -> None:
    tokenizer = text_llm.tokenizer
    turn = tokenizer.special_token_ids["<|end of turn|>"]
    settings = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logit_bias={turn: 60.0})
    (free,) = text_llm.generate("the cat", settings, use_tqdm=False)[0].outputs
    assert free.token_ids == (turn,) * 8 and free.text == ""
    for include in (False, True):
        stopped = settings.replace(stop=("<|end of turn|>", "zzz"), include_stop_str_in_output=include)
        (output,) = text_llm.generate("the cat", stopped, use_tqdm=False)[0].outputs
        assert (output.token_ids, output.text, output.finish_reason, output.stop_reason) == ((turn,), "", "stop", turn)
        shown = stopped.replace(skip_special_tokens=False)
        (output,) = text_llm.generate("the cat", shown, use_tqdm=False)[0].outputs
        assert (output.text, output.stop_reason) == ("<|end of turn|>" * include, "<|end of turn|>")
    for skip in (False, True):
        banned = settings.replace(bad_words=("<|end of turn|>",), skip_special_tokens=skip)
        (output,) = text_llm.generate("the cat", banned, use_tqdm=False)[0].outputs
        assert turn not in output.token_ids
    (beam,) = text_llm.generate("the cat", settings.replace(beam_width=2, stop=("<|end of turn|>",)), use_tqdm=False)[0].outputs
    assert beam.stop_reason == turn


def test_texts_that_are_not_unicode_are_refused() -> None:
    for settings in ({"stop": ("a\ud800",)}, {"bad_words": ("\udfff",)}):
        with pytest.raises(InvalidRequest, match="each Unicode text"):
            SamplingParams.from_dict(settings)
