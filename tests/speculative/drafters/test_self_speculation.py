"""The best exit layer for self-speculation: worked out by hand, and against simulated rounds."""

from __future__ import annotations

import random

from hasten.speculative.drafters.self_speculation import best_exit_layer


def test_the_best_exit_layer_gives_the_most_tokens_per_second() -> None:
    def cost(layer: int) -> float:
        return layer / 8

    # One draft token: layer 2 gives 1.5 tokens in 1.25 steps, layer 6 gives 1.8 in 1.75.
    assert best_exit_layer({2: 0.5, 6: 0.8}, cost, max_tokens=1) == 2
    # 1.1 tokens in 1.25 steps against 1.9 in 1.75.
    assert best_exit_layer({2: 0.1, 6: 0.9}, cost, max_tokens=1) == 6
    # Layer 2: 1.5 / 1.25 = 1.2 tokens a step. Layer 4: 1.9 / 1.5 = 1.267 with one draft token, 2.71 / 2 = 1.355 with two.
    assert best_exit_layer({2: 0.5, 4: 0.9}, cost, max_tokens=1) == 4
    # An expensive lm_head makes the low exit expensive too: 1.5 tokens in 1.65 steps against 1.9 in 1.9.
    assert best_exit_layer({2: 0.5, 4: 0.9}, lambda layer: layer / 8 + 0.4, max_tokens=1) == 4


def test_no_exit_layer_is_better_in_simulated_rounds() -> None:
    """With random acceptance rates, the choice is within the noise of the best exit layer."""
    draw = random.Random(0)
    for _ in range(20):
        acceptance_rates = {layer: draw.random() ** 0.5 for layer in (2, 3, 5, 7)}
        lm_head_cost = draw.random() / 4

        def cost(layer: int, lm_head_cost: float = lm_head_cost) -> float:
            return (layer / 8 + lm_head_cost) / (1 + lm_head_cost)

        simulated = {
            layer: max(tokens_per_step(draw, rate, cost(layer), count) for count in range(1, 7))
            for layer, rate in acceptance_rates.items()
        }
        assert simulated[best_exit_layer(acceptance_rates, cost)] > 0.95 * max(simulated.values())


def tokens_per_step(draw: random.Random, rate: float, cost: float, num_draft_tokens: int, rounds: int = 2000) -> float:
    tokens = 0
    for _ in range(rounds):
        tokens += 1
        for _ in range(num_draft_tokens):
            if draw.random() >= rate:
                break
            tokens += 1
    return tokens / (rounds * (1 + num_draft_tokens * cost))
