"""``measure_speed``: the rate of plain decoding, on an engine whose steps the test times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hasten.core.errors import InvalidOption
from hasten.engine.engine import Engine
from hasten.entrypoints.decode_speed import measure_speed


class StepTimes:
    """The clock of the engines that are made from now on: step i takes ``seconds[i]``, or one second after the list's end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds: list[float] = []
        self.num_steps = 0
        init, step = Engine.__init__, Engine.step

        def init_with_clock(engine: Engine, *arguments: Any, **options: Any) -> None:
            init(engine, *arguments, **options)
            engine.clock = lambda: sum(self.seconds[: self.num_steps]) + max(0, self.num_steps - len(self.seconds))

        def counted_step(engine: Engine) -> Any:
            self.num_steps += 1
            return step(engine)

        monkeypatch.setattr(Engine, "__init__", init_with_clock)
        monkeypatch.setattr(Engine, "step", counted_step)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> StepTimes:
    return StepTimes(monkeypatch)


def test_the_rate_leaves_out_the_prefill_and_the_first_run(tiny: Callable[[str], Path], steps: StepTimes) -> None:
    """Runs of five tokens: a prefill of 100 s, then 4 s per token in the discarded run, and 2, 1 and 0.5 s in the others."""
    steps.seconds = [100.0, *[4.0] * 4, 100.0, *[2.0] * 4, 100.0, *[1.0] * 4, 100.0, *[0.5] * 4]
    speed = measure_speed(str(tiny("llama-gqa")), {"kv_cache_memory": "4MiB"}, prompt_tokens=10, num_tokens=5, repeats=3)
    assert steps.num_steps == 4 * 5
    assert speed.runs == (0.5, 1.0, 2.0)
    assert (speed.median, speed.as_dict()) == (1.0, {"median": 1.0, "min": 0.5, "max": 2.0})


def test_the_rates_of_a_batch_add_up(tiny: Callable[[str], Path], steps: StepTimes) -> None:
    """Three requests, of which each step of 2 s gives one token each: 1.5 tokens per second."""
    steps.seconds = [100.0, *[4.0] * 4, 100.0, *[2.0] * 4]
    options = {"kv_cache_memory": "4MiB"}
    speed = measure_speed(str(tiny("llama-gqa")), options, batch=3, prompt_tokens=10, num_tokens=5, repeats=1)
    assert steps.num_steps == 2 * 5 and speed.runs == (1.5,)


def test_neither_drafts_nor_an_end_of_sequence_shortens_a_run(tiny: Callable[[str], Path], steps: StepTimes) -> None:
    options = {"speculative_method": "prompt_lookup", "kv_cache_memory": "4MiB"}
    speed = measure_speed(str(tiny("llama-gqa")), options, prompt_tokens=4, num_tokens=200, repeats=1)
    assert steps.num_steps == 2 * 200
    assert speed.runs == (1.0,)


@pytest.mark.parametrize("wrong", [{"num_tokens": 1}, {"num_tokens": "9"}, {"prompt_tokens": 0}, {"repeats": 0}, {"batch": 0}])
def test_wrong_numbers_are_refused(tiny: Callable[[str], Path], wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match="out of range"):
        measure_speed(str(tiny("llama-gqa")), {"kv_cache_memory": "4MiB"}, **wrong)
