"""Promises P3 and P9, bit by bit on the native kernels: an output depends only on its request."""

from __future__ import annotations

import random

import pytest

from hasten import LLM, RequestOutput, SamplingParams
from tests.exhaustive import repeats

BATCHES, POOL, NEW_TOKENS = repeats("batches"), 24, 10  # of all batches, each format and way to run gets a ninth
# Three of the formats that are batch-invariant; tests/runners/backends/test_native.py has all.
FORMATS = [{"dtype": "float32"}, {"quantization": "int8"}, {"quantization": "int4", "kv_cache_dtype": "int8"}]


def requests(vocab_size: int) -> list[tuple[dict[str, list[int]], SamplingParams]]:
    """Return greedy and sampled requests; some of the prompts of 1 to 70 tokens share a prefix."""
    draw = random.Random(5)
    prefix = [draw.randrange(16, vocab_size) for _ in range(40)]
    result = []
    for i in range(POOL):
        prompt = prefix[: draw.randint(0, 40)] + [draw.randrange(16, vocab_size) for _ in range(draw.randint(1, 30))]
        settings = {"temperature": 0.0} if i % 2 else {"temperature": 0.9, "top_p": 0.95, "seed": i, "repetition_penalty": 1.1}
        params = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=2, **settings)
        result.append(({"prompt_token_ids": prompt}, params))
    return result


def demo_llm(**options: object) -> LLM:
    return LLM("demo", max_model_len=256, kv_cache_memory="64MiB", **{"dtype": "float32", "threads": 2, **options})


@pytest.fixture(scope="module", params=FORMATS, ids=["float32", "int8", "int4"])
def weights(request: pytest.FixtureRequest) -> dict[str, str]:
    return dict(request.param)


@pytest.fixture(scope="module")
def single_outputs(weights: dict[str, str]) -> list[RequestOutput]:
    """Return each request's output without batching, chunks, prefix cache or threads."""
    llm = demo_llm(prefix_caching=False, **{**weights, "threads": 1})
    return [llm.generate(prompt, params)[0] for prompt, params in requests(llm.describe()["vocab_size"])]


def assert_same(found: RequestOutput, expected: RequestOutput) -> None:
    (completion,), (expected_completion,) = found.outputs, expected.outputs
    assert completion.token_ids == expected_completion.token_ids
    assert completion.logprobs is not None and expected_completion.logprobs is not None
    for logprob, reference in zip(completion.logprobs, expected_completion.logprobs, strict=True):
        assert (logprob.logprob, logprob.top) == (reference.logprob, reference.top)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="batched"),
        pytest.param({"max_num_batched_tokens": 16, "max_num_seqs": 8}, id="chunked"),
        pytest.param({"prefix_caching": False, "threads": 1}, id="no-cache"),
    ],
)
def test_outputs_in_random_batches_equal_those_of_single_requests(
    single_outputs: list[RequestOutput], weights: dict[str, str], options: dict[str, object]
) -> None:
    llm = demo_llm(**{**weights, **options})
    pool = requests(llm.describe()["vocab_size"])
    draw = random.Random(str(options))
    for _ in range(BATCHES // 9):
        chosen = [draw.randrange(POOL) for _ in range(draw.randint(1, 12))]
        outputs = llm.generate([pool[i][0] for i in chosen], [pool[i][1] for i in chosen], use_tqdm=False)
        for i, output in zip(chosen, outputs, strict=True):
            assert_same(output, single_outputs[i])


def test_preempted_requests_have_the_same_outputs(single_outputs: list[RequestOutput], weights: dict[str, str]) -> None:
    llm = demo_llm(max_num_seqs=8, prefix_caching=False, **weights)
    pool = requests(llm.describe()["vocab_size"])
    draw = random.Random(3)
    input_processor, engine = llm._loaded.input_processor, llm.engine
    for i, (prompt, params) in enumerate(pool):
        engine.add(input_processor.request(str(i), prompt, params, arrival=0.0))
    outputs = {}
    while engine.has_unfinished_requests:
        if engine.scheduler.num_running and draw.random() < 0.6:
            engine.scheduler._preempt(draw.choice(engine.scheduler._running))
        outputs |= {int(delta.request_id): delta.output for delta in engine.step() if delta.output is not None}
    assert sum(output.metrics.num_preemptions for output in outputs.values()) > 10
    for i, output in outputs.items():
        assert_same(output, single_outputs[i])


def test_the_noise_of_a_completion_does_not_depend_on_n() -> None:
    """The noise of a completion depends on its index only."""
    llm = demo_llm()
    params = SamplingParams(n=4, seed=11, temperature=1.0, max_tokens=12, ignore_eos=True)
    four = llm.generate("import os\n", params)[0].outputs
    two = llm.generate("import os\n", params.replace(n=2))[0].outputs
    assert [completion.token_ids for completion in four[:2]] == [completion.token_ids for completion in two]
    assert len({completion.token_ids for completion in four}) == 4


def test_the_reported_seed_reproduces_the_output() -> None:
    llm = demo_llm()
    first = llm.generate("import os\n", SamplingParams(max_tokens=12))[0]
    again = llm.generate("import os\n", SamplingParams(max_tokens=12, seed=first.seed))[0]
    other = llm.generate("import os\n", SamplingParams(max_tokens=12))[0]
    assert again.outputs[0].token_ids == first.outputs[0].token_ids != other.outputs[0].token_ids
