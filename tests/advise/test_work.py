"""Work in closed form against brute force over masks and over single steps."""

from __future__ import annotations

import itertools

import pytest

from hasten.advise.work import AttentionWork, Lengths, Work, decode, prefill, request, step
from hasten.core.errors import InvalidOption

WINDOWS = (None, 1, 4, 100)


def brute_attention(sequences, window, cache) -> AttentionWork:
    """Count the pairs of a mask, and the keys that have a pair."""
    visible = full = keys = all_keys = written = 0
    for new, before in sequences:
        seen = set()
        for query in range(before, before + new):
            own = [key for key in range(query + 1) if window is None or key > query - window]
            visible += len(own)
            seen |= set(own)
        full += new * (before + new)
        keys, all_keys, written = keys + len(seen), all_keys + before + new, written + new * cache
    return AttentionWork(visible, full, keys, all_keys, written)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("sequences", [[(1, 0)], [(7, 0)], [(1, 9), (5, 3), (12, 0)], [(3, 4)] * 8])
def test_a_step_counts_the_pairs_of_its_mask(sequences, window):
    work = step(sequences, (window,))
    assert work.attention_of(window) == brute_attention(sequences, window, cache=True)
    assert (work.steps, work.head_steps, work.logit_rows) == (1, 1, len(sequences))
    assert work.tokens == sum(new for new, _ in sequences)


@pytest.mark.parametrize(("prompt", "output", "batch"), list(itertools.product((1, 5, 9), (1, 2, 7), (1, 3))))
def test_a_request_is_the_sum_of_its_steps(prompt, output, batch):
    lengths = Lengths(prompt=prompt, output=output, batch=batch)
    cached = [step([(prompt, 0)] * batch, WINDOWS), *(step([(1, prompt + i)] * batch, WINDOWS) for i in range(output - 1))]
    uncached = [step([(prompt + i, 0)] * batch, WINDOWS, cache=False) for i in range(output)]
    assert as_numbers(request(lengths, WINDOWS)) == as_numbers(add(cached))
    assert as_numbers(request(lengths, WINDOWS, cache=False)) == as_numbers(add(uncached))


def test_prefill_and_decode_are_steps():
    assert as_numbers(prefill(3, 10, WINDOWS)) == as_numbers(step([(10, 0)] * 3, WINDOWS))
    assert as_numbers(decode(3, 10, WINDOWS)) == as_numbers(step([(1, 10)] * 3, WINDOWS))
    assert as_numbers(decode(3, 10, WINDOWS, tokens=5)) == as_numbers(step([(5, 10)] * 3, WINDOWS, logit_rows=15))


def test_a_step_without_logits_reads_no_head():
    work = step([(8, 0)], logit_rows=0)
    assert (work.head_steps, work.logit_rows) == (0, 0)


@pytest.mark.parametrize(("name", "value"), [("batch", 0), ("prompt", -1), ("output", 2**40)])
def test_an_impossible_number_is_named(name, value):
    with pytest.raises(InvalidOption, match=rf"{name}={value}"):
        Lengths(**{name: value})


def add(works: list[Work]) -> Work:
    total = works[0]
    for work in works[1:]:
        total += work
    return total


def as_numbers(work: Work) -> tuple:
    return work.steps, work.head_steps, work.tokens, work.logit_rows, work.attention
