"""``Workload``, and the times and counts of ``measure`` on an engine whose clock the test advances."""

import pytest

from hasten import LLM
from hasten.bench.report import make_report
from hasten.core.errors import InvalidOption
from hasten.entrypoints.workload import Workload, measure


@pytest.fixture
def llm(tiny) -> LLM:
    """Return a model whose steps take one second each on the engine's clock."""
    model = LLM(str(tiny("llama-gqa")), kv_cache_memory="8MiB", max_num_seqs=2)
    engine, time = model.engine, [0.0]
    step = engine.step

    def one_second_step():
        time[0] += 1.0
        return step()

    engine.clock, engine.step = lambda: time[0], one_second_step
    return model


def test_times_include_the_wait_for_a_free_sequence_slot(llm):
    """Three requests of three tokens, two at a time: steps 1 to 3 and 4 to 6."""
    (run,) = measure(llm, Workload(num_prompts=3, input_len=10, output_len=3), repeats=1, warmup=0)
    assert run.seconds == 6
    assert sorted(run.ttft) == [1, 1, 4]
    assert sorted(run.e2e) == [3, 3, 6]
    assert run.itl == (1,) * 6
    assert (run.prompt_tokens, run.output_tokens, run.cached_tokens) == (30, 9, 0)


def test_rates_are_tokens_divided_by_seconds(llm):
    workload = Workload(num_prompts=3, input_len=10, output_len=3)
    progress = []
    runs = measure(llm, workload, repeats=2, warmup=1, progress=progress.append)
    report = make_report("throughput", llm.describe(), workload, runs)
    assert (progress, len(runs), report["repeats"]) == ([1, 2, 3], 2, 2)
    assert report["output_tokens_per_second"] == {"median": 1.5, "min": 1.5, "max": 1.5}
    assert report["total_tokens_per_second"]["median"] == 39 / 6
    assert report["ttft"] == {"p50": 1, "p90": 4, "p99": 4, "mean": 2}


def test_a_shared_prefix_is_a_prefix_cache_hit(llm):
    """Four prompts share one block of 16 tokens, which is computed once."""
    (run,) = measure(llm, Workload(num_prompts=4, input_len=20, output_len=2, shared_len=16), repeats=1, warmup=0)
    assert run.cached_tokens == 3 * 16


def test_prompts_have_the_given_lengths():
    prompts = Workload(num_prompts=5, input_len=12, output_len=3, shared_len=4).prompts(50, 0)
    assert [len(prompt) for prompt in prompts] == [12] * 5
    assert len({prompt[:4] for prompt in prompts}) == 1
    assert len({prompt[4:] for prompt in prompts}) == 5
    assert all(0 <= token < 50 for prompt in prompts for token in prompt)


def test_prompts_differ_between_runs_and_repeat_with_the_seed():
    workload = Workload(num_prompts=2, input_len=8, output_len=1, shared_len=4, seed=3)
    assert workload.prompts(1000, 0) == workload.prompts(1000, 0)
    assert len({workload.prompts(1000, repeat)[0][:4] for repeat in range(3)}) == 3
    assert Workload(num_prompts=2, input_len=8, output_len=1, seed=4).prompts(1000, 0) != workload.prompts(1000, 0)


@pytest.mark.parametrize("wrong", [{"num_prompts": 0}, {"input_len": 0}, {"output_len": -1}, {"shared_len": 8}, {"shared_len": -1}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidOption, match=f"{next(iter(wrong))}"):
        Workload(**{"num_prompts": 1, "input_len": 8, "output_len": 1, **wrong})
