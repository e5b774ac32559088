"""The KV budget against the real engine, which counts preemptions."""

from __future__ import annotations

import pytest

from hasten import LLM
from hasten.advise.memory import EngineSizes, kv_budget, memory_use
from hasten.advise.model_shape import Precision, read_shape
from hasten.advise.storage import block_bytes
from hasten.advise.work import Lengths
from hasten.entrypoints.workload import Workload

# (prompt, output): outputs end within a block, at its end and just after it.
LENGTHS = [(20, 60), (33, 96), (16, 49), (5, 76)]


def run(llm: LLM, count: int, lengths: Lengths) -> tuple[int, int]:
    """Return the preemptions, and the most requests that ran at once."""
    running = []
    workload = Workload(num_prompts=count, input_len=lengths.prompt, output_len=lengths.output)
    engine = llm.engine
    for request in workload.requests(llm.describe()["vocab_size"], count, engine.clock()):
        engine.add(request)
    while engine.has_unfinished_requests:
        engine.step()
        running.append(engine.scheduler.num_running)
    return engine.stats.requests.num_preemptions, max(running)


@pytest.mark.parametrize("name", ["llama-gqa", "qwen3-gqa", "gpt2"])
@pytest.mark.parametrize(("prompt", "output"), LENGTHS)
def test_the_promised_requests_run_without_preemption_and_one_more_preempts(tiny, name, prompt, output):
    lengths, precision = Lengths(prompt=prompt, output=output), Precision()
    shape = read_shape(str(tiny(name)), precision)
    memory = round(31.5 * block_bytes(shape.groups, 16, shape.storage.kv_bytes))
    budget = kv_budget(shape, lengths, EngineSizes(max_num_seqs=64), memory)
    assert 1 < budget.requests < 64
    options = {"kv_cache_memory": memory, "max_model_len": 160, "max_num_seqs": 64, "speculative_method": "off", "threads": 1}
    with LLM(str(tiny(name)), **options) as llm:
        assert llm.describe()["kv_blocks"] == budget.num_blocks
        preemptions, running = run(llm, budget.requests, lengths)
        assert (preemptions, running) == (0, budget.requests)
        assert run(llm, budget.requests + 1, lengths)[0] > 0


@pytest.mark.parametrize("name", ["mistral-window", "qwen2-mixed-window"])
def test_the_promise_holds_for_windows(tiny, name):
    """Blocks that leave a window are free again, so that the promise is a lower bound there."""
    lengths, sizes = Lengths(prompt=20, output=90), EngineSizes(max_num_batched_tokens=64)
    shape = read_shape(str(tiny(name)), Precision())
    memory = 40 * block_bytes(shape.groups, 16, shape.storage.kv_bytes)
    budget = kv_budget(shape, lengths, sizes, memory)
    assert budget.requests > 1
    options = {"kv_cache_memory": memory, "max_num_batched_tokens": 64, "max_model_len": 160}
    with LLM(str(tiny(name)), **options, speculative_method="off", threads=1) as llm:
        assert run(llm, budget.requests, lengths)[0] == 0


def test_windows_bound_what_a_request_holds(tiny):
    """A sequence holds its window, a step's tokens and a block, however long it is."""
    shape, sizes = read_shape(str(tiny("mistral-window")), Precision(), is_here=False), EngineSizes(max_num_batched_tokens=16)
    memory = 100 * block_bytes(shape.groups, 16, shape.storage.kv_bytes)
    short, long = (kv_budget(shape, Lengths(prompt=20, output=length), sizes, memory) for length in (30, 200))
    assert (short.blocks_per_request, long.blocks_per_request) == (3, 3)  # ceil((7 - 1 + 16) / 16) + 1
    assert long.longest_context == shape.spec.max_positions


def test_a_budget_names_its_limit_and_its_longest_context(tiny):
    shape = read_shape(str(tiny("llama-gqa")), Precision(), is_here=False)
    block = block_bytes(shape.groups, 16, shape.storage.kv_bytes)
    assert block == 16 * 3 * 2 * 2 * 16 * 4  # slots, layers, keys and values, heads, dim, float32
    lengths = Lengths(prompt=30, output=30)
    budget = kv_budget(shape, lengths, EngineSizes(max_num_seqs=2), 100 * block)
    assert (budget.requests, budget.is_limited_by_memory, budget.longest_context) == (2, False, 256)
    budget = kv_budget(shape, lengths, EngineSizes(), 9 * block)
    assert (budget.requests, budget.is_limited_by_memory, budget.longest_context) == (2, True, 144)
    assert kv_budget(shape, lengths, EngineSizes(), 3 * block).requests == 0
    assert kv_budget(shape, lengths, EngineSizes(), 0).longest_context == 0
    assert kv_budget(shape, Lengths(prompt=200, output=57), EngineSizes(), 1000 * block).requests == 0  # longer than the context


def test_memory_adds_up(tiny):
    shape = read_shape(str(tiny("qwen3-mixed-window")), Precision(), is_here=False)
    use = memory_use(shape, Lengths(prompt=100, output=29), EngineSizes(max_num_batched_tokens=16))
    token = 2 * 2 * 16 * 4  # keys and values, heads, dim, float32; in each of 4 layers
    assert use.kv_per_token == 4 * token
    assert use.kv_per_request == 2 * 8 * 16 * token + 2 * 3 * 16 * token  # 128 tokens in full layers, 3 blocks in windowed ones
    assert use.weights == shape.storage.weight_bytes
    assert use.activations > 0
