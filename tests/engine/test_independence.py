"""Promises P3 and P9, bit by bit on the native kernels: what a request gets depends on nothing but the request."""

from __future__ import annotations

import random

import pytest

from hasten import LLM, RequestOutput, SamplingParams
from tests.exhaustive import repeats

BATCHES, POOL, NEW_TOKENS = repeats("batches"), 24, 10  # a ninth of the batches for each format and way to run
# WeightFormatFactory whose rows are promised to be the same bits in any batch.
FORMATS = [{"dtype": "float32"}, {"quantization": "int8"}, {"quantization": "int4", "kv_cache_dtype": "int8"}]


def requests(vocab_size: int) -> list[tuple[dict[str, list[int]], SamplingParams]]:
    """Half greedy, half drawn with a seed; prompts of 1 to 70 tokens, some with a common beginning."""
    draw = random.Random(5)
    stem = [draw.randrange(16, vocab_size) for _ in range(40)]
    made = []
    for i in range(POOL):
        prompt = stem[: draw.randint(0, 40)] + [draw.randrange(16, vocab_size) for _ in range(draw.randint(1, 30))]
        settings = {"temperature": 0.0} if i % 2 else {"temperature": 0.9, "top_p": 0.95, "seed": i, "repetition_penalty": 1.1}
        params = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=2, **settings)
        made.append(({"prompt_token_ids": prompt}, params))
    return made


def demo(**options: object) -> LLM:
    return LLM("demo", max_model_len=256, kv_cache_memory="64MiB", **{"dtype": "float32", "threads": 2, **options})


@pytest.fixture(scope="module", params=FORMATS, ids=["float32", "int8", "int4"])
def weights(request: pytest.FixtureRequest) -> dict[str, str]:
    return dict(request.param)


@pytest.fixture(scope="module")
def alone(weights: dict[str, str]) -> list[RequestOutput]:
    """Each request by itself, its prompt computed in one piece, on one thread."""
    llm = demo(prefix_caching=False, **{**weights, "threads": 1})
    return [llm.generate(prompt, params)[0] for prompt, params in requests(llm.describe()["vocab_size"])]


def assert_same(found: RequestOutput, expected: RequestOutput) -> None:
    mine, right = found.outputs[0], expected.outputs[0]
    assert mine.token_ids == right.token_ids
    assert mine.logprobs is not None and right.logprobs is not None
    for a, b in zip(mine.logprobs, right.logprobs, strict=True):
        assert (a.logprob, a.top) == (b.logprob, b.top)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="batched"),
        pytest.param({"max_num_batched_tokens": 16, "max_num_seqs": 8}, id="chunked"),
        pytest.param({"prefix_caching": False, "threads": 1}, id="no-cache"),
    ],
)
def test_random_batches_give_what_each_request_gives_alone(
    alone: list[RequestOutput], weights: dict[str, str], options: dict[str, object]
) -> None:
    llm = demo(**{**weights, **options})
    pool = requests(llm.describe()["vocab_size"])
    draw = random.Random(str(options))
    for _ in range(BATCHES // 9):
        chosen = [draw.randrange(POOL) for _ in range(draw.randint(1, 12))]
        outputs = llm.generate([pool[i][0] for i in chosen], [pool[i][1] for i in chosen], use_tqdm=False)
        for i, output in zip(chosen, outputs, strict=True):
            assert_same(output, alone[i])


def test_preempted_requests_give_the_same(alone: list[RequestOutput], weights: dict[str, str]) -> None:
    llm = demo(max_num_seqs=8, prefix_caching=False, **weights)
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
        assert_same(output, alone[i])


def test_answer_i_of_n_is_drawn_as_if_alone() -> None:
    """The noise of an answer depends on its index, not on how many answers there are."""
    llm = demo()
    params = SamplingParams(n=4, seed=11, temperature=1.0, max_tokens=12, ignore_eos=True)
    four = llm.generate("import os\n", params)[0].outputs
    two = llm.generate("import os\n", params.replace(n=2))[0].outputs
    assert [answer.token_ids for answer in four[:2]] == [answer.token_ids for answer in two]
    assert len({answer.token_ids for answer in four}) == 4


def test_the_reported_seed_draws_the_answer_again() -> None:
    llm = demo()
    first = llm.generate("import os\n", SamplingParams(max_tokens=12))[0]
    again = llm.generate("import os\n", SamplingParams(max_tokens=12, seed=first.seed))[0]
    other = llm.generate("import os\n", SamplingParams(max_tokens=12))[0]
    assert again.outputs[0].token_ids == first.outputs[0].token_ids != other.outputs[0].token_ids
