"""Where a model drafts for itself: by hand, and by simulated rounds."""

from __future__ import annotations

import random

from hasten.speculative.drafters.self_speculation import best_exit_layer


def test_the_best_depth_is_worth_its_layers() -> None:
    def cost(depth: int) -> float:
        return depth / 8

    # One draft each: 1.5 tokens for 1.25 steps, 1.8 for 1.75.
    assert best_exit_layer({2: 0.5, 6: 0.8}, cost, max_tokens=1) == 2
    # 1.1 for 1.25, 1.9 for 1.75.
    assert best_exit_layer({2: 0.1, 6: 0.9}, cost, max_tokens=1) == 6
    # 1.5 for 1.25 = 1.2; two drafts of the other: 2.71 for 2 = 1.355, one of it 1.9 for 1.5.
    assert best_exit_layer({2: 0.5, 4: 0.9}, cost, max_tokens=1) == 4
    # A dear vocabulary makes drafts of the low exit dear as well: 1.5 for 1.65 against 1.9 for 1.9.
    assert best_exit_layer({2: 0.5, 4: 0.9}, lambda depth: depth / 8 + 0.4, max_tokens=1) == 4


def test_simulated_rounds_agree() -> None:
    """Tokens a second of rounds that are played, for random exits; the choice is never beaten by more than the noise."""
    draw = random.Random(0)
    for _ in range(20):
        agreements = {depth: draw.random() ** 0.5 for depth in (2, 3, 5, 7)}
        words = draw.random() / 4

        def cost(depth: int, words: float = words) -> float:
            return (depth / 8 + words) / (1 + words)

        played = {depth: max(rate(draw, right, cost(depth), count) for count in range(1, 7)) for depth, right in agreements.items()}
        assert played[best_exit_layer(agreements, cost)] > 0.95 * max(played.values())


def rate(draw: random.Random, right: float, cost: float, count: int, rounds: int = 2000) -> float:
    tokens = 0
    for _ in range(rounds):
        tokens += 1
        for _ in range(count):
            if draw.random() >= right:
                break
            tokens += 1
    return tokens / (rounds * (1 + count * cost))
