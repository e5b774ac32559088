"""``ShareableTokens`` against brute force over all windows, on random prompts with planted common parts."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import pytest

from hasten.caching import shareable_tokens
from hasten.caching.shareable_tokens import ShareableTokens

KEY = b"the tests' key"  # a random one would lose other windows in each run
MANY_SLOTS = 2**26  # virtual memory only; the windows of a test practically never meet in a slot


def count_by_brute_force(earlier: Sequence[Sequence[int]], prompt: Sequence[int], size: int, block_size: int) -> int:
    """Return the tokens in windows of ``size`` that an earlier prompt has anywhere, in blocks, as the definition says."""
    known = {tuple(other[i : i + size]) for other in earlier for i in range(len(other) - size + 1)}
    covered: set[int] = set()
    for i in range(len(prompt) - size + 1):
        if tuple(prompt[i : i + size]) in known:
            covered |= set(range(i, i + size))
    return min(len(covered), max(0, len(prompt) - 1)) // block_size * block_size


def random_prompts(seed: int, size: int) -> list[list[int]]:
    """Return prompts made of parts that recur and of tokens that do not, over a small or a large vocabulary."""
    rng = random.Random(seed)
    vocab_size = rng.choice([2, 5, 150_000])
    parts = [[rng.randrange(vocab_size) for _ in range(rng.randrange(1, 4 * size + 2))] for _ in range(4)]
    prompts = []
    for _ in range(rng.randrange(2, 7)):
        prompt: list[int] = []
        for _ in range(rng.randrange(0, 5)):
            prompt += rng.choice(parts)
            prompt += [rng.randrange(vocab_size) for _ in range(rng.randrange(0, 2 * size))]
        prompts.append(prompt)
    return prompts


@pytest.mark.parametrize("seed", range(150))
def test_it_finds_all_tokens_of_the_definition(seed: int) -> None:
    draw = random.Random(seed)
    block_size, min_window = draw.choice([1, 2, 3, 8, 16]), draw.choice([1, 1, 5])
    size = max(block_size, min_window)
    counter, prompts = ShareableTokens(block_size, MANY_SLOTS, KEY, min_window=min_window), random_prompts(seed, size)
    for number, prompt in enumerate(prompts):
        assert counter.count("", prompt) == count_by_brute_force(prompts[:number], prompt, size, block_size)


@pytest.mark.parametrize("seed", range(30))
def test_a_full_table_finds_less_and_never_more(seed: int) -> None:
    counter = ShareableTokens(4, 32, KEY, min_window=4)
    prompts = [prompt for number in range(6) for prompt in random_prompts(6 * seed + number, 4)]
    for number, prompt in enumerate(prompts):
        assert counter.count("", prompt) <= count_by_brute_force(prompts[:number], prompt, 4, 4)
    last = list(range(12))
    counter.count("", last)
    assert counter.count("", last) >= 4  # the newest windows are there, but for those that share a slot


def test_the_common_part_may_stand_anywhere_and_a_prefix_hit_leaves_a_token() -> None:
    common = list(range(100, 148))  # 3 blocks of 16
    counter = ShareableTokens(16, MANY_SLOTS, KEY)
    assert counter.count("", [1, 2, 3, *common, 4]) == 0
    assert counter.count("", [*common, 5, 6]) == 48
    assert counter.count("", [7, *common[:47], 8]) == 32  # 47 tokens, in whole blocks
    assert counter.count("", common[:16]) == 0  # one block, of which the last token is computed
    assert counter.count("", [*common[:16], 9]) == 16
    assert counter.count("", [*common[:15], 9, 9]) == 0  # shorter than a block
    assert counter.count("", []) == 0


def test_short_runs_that_any_two_texts_have_in_common_do_not_count() -> None:
    """With blocks of one token, every word that recurs would be advice to change the prompt."""
    counter, common = ShareableTokens(1, MANY_SLOTS, KEY), list(range(100, 116))
    counter.count("", [*common, 1])
    assert counter.count("", [2, *common[:15], 3]) == 0
    assert counter.count("", [4, *common, 5]) == 16


def test_a_prompt_is_no_earlier_prompt_of_itself() -> None:
    counter = ShareableTokens(4, MANY_SLOTS, KEY, min_window=4)
    assert counter.count("", [1, 2, 3, 4] * 9) == 0
    assert counter.count("", [1, 2, 3, 4] * 9) == 32


def test_tenants_do_not_count_each_others_prompts() -> None:
    counter, prompt = ShareableTokens(4, MANY_SLOTS, KEY, min_window=4), list(range(40))
    assert counter.count("tenant:red", prompt) == 0
    assert counter.count("tenant:blue", prompt) == 0
    assert counter.count("tenant:red", prompt) == counter.count("tenant:blue", prompt) == 36


def test_clear_forgets_all_prompts() -> None:
    counter, prompt = ShareableTokens(4, 1024, KEY), list(range(40))
    counter.count("", prompt)
    counter.clear()
    assert counter.count("", prompt) == 0


@pytest.mark.parametrize("length", [200, 257, 300])
def test_prompts_of_several_pieces(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows across the boundary of two pieces count like all others."""
    monkeypatch.setattr(shareable_tokens, "_PIECE", 64)
    rng = random.Random(length)
    counter, prompt = ShareableTokens(8, MANY_SLOTS, KEY, min_window=8), [rng.randrange(1000) for _ in range(length)]
    counter.count("", prompt)
    for begin in range(0, length - 8, 5):
        shifted = [*prompt[begin : begin + 8], 5000]
        assert counter.count("", shifted) == 8, begin


def test_each_engine_has_hashes_of_its_own() -> None:
    """With a random key no prompt can be made to collide with one of another tenant."""
    tokens = list(range(32))
    tables = []
    for _ in range(2):
        counter = ShareableTokens(16)
        counter.count("", tokens)
        tables.append(frozenset(counter._table[counter._table != 0].tolist()))
    assert len(tables[0]) == len(tables[1]) == 17
    assert not tables[0] & tables[1]


def test_a_prompt_of_512_tokens_costs_microseconds() -> None:
    """The median is some 30 microseconds; the bound allows a busy machine ten times as many."""
    counter, rng = ShareableTokens(16), random.Random(0)
    prompts = [tuple(rng.randrange(150_000) for _ in range(512)) for _ in range(40)]
    seconds = []
    for prompt in prompts + prompts:
        begin = time.perf_counter()
        counter.count("", prompt)
        seconds.append(time.perf_counter() - begin)
    assert sorted(seconds)[len(seconds) // 2] < 0.0003
