"""Usage counts each token of the prompt once, by what was read, written and neither."""

from __future__ import annotations

import random

from hasten.core.output import RequestMetrics
from hasten.core.request import PrefixPin
from hasten.serving.anthropic.usage import Usage


def test_each_token_counts_once_as_a_token_by_token_count_has_it() -> None:
    draw = random.Random(1)
    for _ in range(500):
        length, read = draw.randrange(1, 60), draw.choice((0, 0, draw.randrange(0, 60)))
        read = min(read, length)
        ends = sorted(draw.sample(range(read + 1, length + 1), min(draw.randrange(4), length - read)))
        num_hours = draw.randrange(len(ends) + 1)
        pins = [PrefixPin(num_tokens=end, seconds=3600.0 if i < num_hours else 300.0) for i, end in enumerate(ends)]
        expected = {"read": 0, "hour": 0, "minutes": 0, "input": 0}
        for token in range(length):
            later = next((pin for pin in pins if pin.num_tokens > token), None)
            kind = "read" if token < read else "input" if later is None else "hour" if later.seconds == 3600 else "minutes"
            expected[kind] += 1
        draw.shuffle(pins)
        usage = Usage.of(length, RequestMetrics(arrival=0.0, num_pinned_tokens=read, new_pins=tuple(pins))).as_message_usage(9)
        assert usage == {
            "input_tokens": expected["input"],
            "cache_creation_input_tokens": expected["hour"] + expected["minutes"],
            "cache_read_input_tokens": expected["read"],
            "output_tokens": 9,
            "cache_creation": {"ephemeral_5m_input_tokens": expected["minutes"], "ephemeral_1h_input_tokens": expected["hour"]},
            "service_tier": "standard",
        }


def test_a_request_that_no_step_computed_has_input_tokens_alone() -> None:
    assert Usage.of(7, None) == Usage(7)
