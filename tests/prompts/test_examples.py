"""Example files, and selections compared with brute force."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hasten import LLM, SamplingParams
from hasten.core.errors import HastenError, InvalidOption, InvalidRequest
from hasten.prompts.examples import Example, ExamplePool, read_examples
from hasten.prompts.library import TemplateLibrary
from hasten.prompts.select_examples import select_examples

FEW_SHOT = TemplateLibrary().find("few_shot")


def write(folder: Path, *lines: str) -> Path:
    file = folder / "examples.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


# ---------------------------------------------------------------- files


def test_columns_are_input_and_output_or_the_templates_variables(tmp_path: Path) -> None:
    pool = read_examples(write(tmp_path, '{"output": "4", "input": "2 + 2"}', "", '{"input": "天", "output": ""}', ""))
    assert pool.examples == ({"input": "2 + 2", "output": "4"}, {"input": "天", "output": ""})
    assert (pool.input_columns, pool.input_texts, pool.labels) == (("input",), ["2 + 2", "天"], [("4",), ("",)])
    own = read_examples(write(tmp_path, '{"question": "q", "place": "p", "answer": "a"}'), ["place", "question", "other"])
    assert (own.input_columns, own.input_texts, own.labels) == (("question", "place"), ["q\np"], [("a",)])


RIGHT = '{"input": "a", "output": "b"}'


@pytest.mark.parametrize(
    ("lines", "variables", "pattern"),
    [
        ([RIGHT, "{"], ["input"], "line 2 of .*: this is not JSON"),
        ([RIGHT, "[1]"], ["input"], "line 2 of .*: this is not an example"),
        (["[" * 100_000], ["input"], "line 1 of .*: this is not JSON"),
        ([RIGHT, '{"input": "a", "ouput": "b"}'], ["input"], r"line 2 of .*column 'output' is missing.*Did you mean 'output'"),
        (
            [RIGHT, '{"input": "a", "output": "b", "id": "1"}'],
            ["input"],
            "line 2 of .*column 'id' has no meaning.*columns input, output",
        ),
        ([RIGHT, '{"input": "a", "output": 4}'], ["input"], "line 2 of .*column 'output' is not a text: got 4"),
        ([RIGHT, '{"input": "\\ud800", "output": "4"}'], ["input"], "line 2 of .*column 'input' is not a text"),
        (['{"q": "a", "a": "b"}'], ["question"], "line 1 of .*no column is a variable of the template.*variables question"),
        (['{"q": "a", "r": "b"}'], ["q", "r"], "every column is a variable"),
        (['{"q": "a", "r": "b"}', '{"q": "a", "s": "b"}'], ["q"], "line 2 of .*column 'r' is missing"),
        (["", " "], ["input"], "is empty"),
    ],
)
def test_wrong_lines_are_named(lines: list[str], variables: list[str], pattern: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match=pattern):
        read_examples(write(tmp_path, *lines), variables)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", Path("/dev/zero"), Path("x\0")):
        with pytest.raises(InvalidOption, match="cannot be read"):
            read_examples(path)


# ---------------------------------------------------------------- selection


def make_pool(count: int, labels: Sequence[str] = ("a", "b", "c"), seed: int = 0) -> ExamplePool:
    generator = random.Random(seed)
    return ExamplePool(
        tuple({"input": "x" * generator.randrange(1, 40) + f" {i}", "output": generator.choice(labels)} for i in range(count))
    )


def vector(text: str) -> list[float]:
    generator = random.Random(text)
    return [generator.gauss(0, 1) for _ in range(8)]


def embed(texts: Sequence[str]) -> Tensor:
    return torch.tensor([vector(text) for text in texts])


def size(examples: Sequence[Example]) -> int:
    """Tokens of a prompt with these examples, for the tests: its characters."""
    return 10 + sum(len(example["input"]) + len(example["output"]) for example in examples)


QUERIES: list[Example] = [{"input": f"query {i}"} for i in range(5)]


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


@pytest.mark.parametrize("k", [1, 3, 20])
def test_similar_equals_brute_force(k: int) -> None:
    pool = make_pool(20)
    selected = select_examples(pool, QUERIES, k, "similar", embed=embed)
    best = []
    for query in QUERIES:
        scores = [cosine(vector(example["input"]), vector(query["input"])) for example in pool.examples]
        best.append(sorted(range(20), key=lambda i: -scores[i])[:k])
    counts = Counter(itertools.chain(*best))
    assert selected == [[pool.examples[i] for i in sorted(indices, key=lambda i: (-counts[i], i))] for indices in best]


def test_equal_similarities_keep_the_order_of_the_file() -> None:
    pool = ExamplePool(tuple({"input": "same", "output": str(i)} for i in range(6)))
    (selected,) = select_examples(pool, QUERIES[:1], 3, "similar", embed=embed)
    assert [example["output"] for example in selected] == ["0", "1", "2"]


def test_random_is_seeded_shared_by_all_queries_and_grows_at_its_end() -> None:
    pool = make_pool(30)
    first = select_examples(pool, QUERIES, 5, seed=3)
    assert first == select_examples(pool, QUERIES, 5, seed=3)
    assert all(examples == first[0] for examples in first) and len(first) == 5
    assert select_examples(pool, QUERIES[:1], 8, seed=3)[0][:5] == first[0]
    assert len({example["input"] for example in first[0]}) == 5
    assert first != select_examples(pool, QUERIES, 5, seed=4)
    drawn = Counter(example["input"] for seed in range(600) for example in select_examples(pool, QUERIES[:1], 5, seed=seed)[0])
    assert len(drawn) == 30 and max(abs(count - 100) for count in drawn.values()) < 5 * math.sqrt(100)


@pytest.mark.parametrize("k", range(1, 13))
@pytest.mark.parametrize("seed", [0, 1])
def test_balanced_counts_differ_by_one_at_most(k: int, seed: int) -> None:
    pool = make_pool(60, seed=seed)
    selected = select_examples(pool, QUERIES, k, "balanced", seed=seed)
    counts = Counter(example["output"] for example in selected[0])
    expected = [k // 3 + (i < k % 3) for i in range(3)]
    assert sorted((counts[label] for label in "abc"), reverse=True) == expected
    assert all(examples == selected[0] for examples in selected)
    assert len({example["input"] for example in selected[0]}) == k
    for cut in range(k + 1):  # also any beginning is balanced, as a budget may cut it
        beginning = Counter(example["output"] for example in selected[0][:cut])
        assert max(beginning[label] for label in "abc") - min(beginning[label] for label in "abc") <= 1


def test_balance_that_the_file_cannot_give_is_an_error() -> None:
    pool = ExamplePool(tuple({"input": str(i), "output": "a" if i else "b"} for i in range(6)))
    assert len(select_examples(pool, QUERIES[:1], 2, "balanced")[0]) == 2
    with pytest.raises(InvalidRequest, match="too few examples for a balanced selection: got 1 of 'b', 2 labels and 4 examples"):
        select_examples(pool, QUERIES[:1], 4, "balanced")
    (within_budget,) = select_examples(pool, QUERIES[:1], 6, "balanced", count_tokens=size, max_tokens=1000)
    assert sorted(example["output"] for example in within_budget) in (["a", "b"], ["a", "a", "b"])


@pytest.mark.parametrize("method", ["random", "similar", "balanced"])
@pytest.mark.parametrize("max_tokens", [10, 13, 30, 60, 100, 10_000])
def test_a_budget_is_never_exceeded_and_none_more_fits(method: Any, max_tokens: int) -> None:
    pool = make_pool(20, seed=max_tokens)
    settings: dict[str, Any] = {"embed": embed, "seed": 1}
    free = select_examples(pool, QUERIES, 6, method, **settings)
    selected = select_examples(pool, QUERIES, 6, method, **settings, count_tokens=size, max_tokens=max_tokens)
    for examples, unlimited in zip(selected, free, strict=True):
        assert size(examples) <= max_tokens
        if max_tokens == 10_000:
            assert examples == unlimited
        if len(examples) < 6:
            rest = [example for example in pool.examples if example not in examples]
            if method == "balanced":  # of the label whose turn it is
                counts = Counter(example["output"] for example in examples)
                order = list(dict.fromkeys(example["output"] for example in select_examples(pool, QUERIES, 3, method, seed=1)[0]))
                turn = min(order, key=lambda label: counts[label])
                rest = [example for example in rest if example["output"] == turn]
            assert all(size([*examples, example]) > max_tokens for example in rest)


def test_a_budget_keeps_the_order_of_similar_examples() -> None:
    pool = make_pool(20)
    free = select_examples(pool, QUERIES, 20, "similar", embed=embed)
    selected = select_examples(pool, QUERIES, 20, "similar", embed=embed, count_tokens=size, max_tokens=100)
    for examples, everything in zip(selected, free, strict=True):
        assert 0 < len(examples) < 20
        assert examples == [example for example in everything if example in examples]


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ({"k": 0}, "number of examples is out of range: got 0; allowed: 1 to 4"),
        ({"k": 5}, "got 5; allowed: 1 to 4"),
        ({"k": True}, "got True"),
        ({"k": 1, "method": "radnom"}, "unknown method.*Did you mean 'random'"),
        ({"k": 1, "method": 5}, "unknown method"),
        ({"k": 1, "method": "similar"}, "need embeddings"),
        ({"k": 1, "method": "similar", "embed": lambda texts: torch.zeros(9, 2)}, r"per text: got the shape \(9, 2\) for 4 texts"),
        ({"k": 1, "method": "similar", "embed": lambda texts: [[math.nan]] * 4}, "vector of finite numbers per text"),
        ({"k": 1, "max_tokens": 5}, "max_tokens needs count_tokens"),
        (
            {"k": 1, "max_tokens": 5, "count_tokens": size},
            "exceeds its token budget: got 10 tokens without examples; allowed: up to 5",
        ),
        ({"k": 1, "queries": [{"inptu": "x"}]}, r"queries\[0\] lacks the column input: got the columns \['inptu'\]"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], pattern: str) -> None:
    with pytest.raises(HastenError, match=pattern):
        select_examples(make_pool(4), **{"queries": QUERIES, **arguments})


# ---------------------------------------------------------------- on the demo model

TOPICS = {"file": "open the file and read its lines", "list": "append a value to the list", "text": "split the text at spaces"}
DEMO_POOL = ExamplePool(
    tuple({"input": f"# {sentence}, case {i}", "output": topic} for i in range(8) for topic, sentence in TOPICS.items())
)
DEMO_QUERIES: list[Example] = [{"input": f"# {sentence}, please"} for sentence in [*TOPICS.values()] * 2]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("demo", threads=1, max_model_len=512, kv_cache_memory="32MiB", block_size=4)


def cached_share(llm: LLM, selections: Sequence[Sequence[Example]]) -> float:
    """Return the share of prompt tokens that the prefix cache gives, from an empty cache."""
    llm.reset_prefix_cache()
    greedy = SamplingParams(temperature=0, max_tokens=1)
    total = cached = 0
    for examples, query in zip(selections, DEMO_QUERIES, strict=True):
        (output,) = llm.generate(FEW_SHOT.render({**query, "examples": examples}), greedy, use_tqdm=False)
        total += output.metrics.num_prompt_tokens
        cached += output.metrics.num_cached_tokens
    return cached / total


def test_shared_examples_in_a_shared_order_are_cached(llm: LLM) -> None:
    shared = select_examples(DEMO_POOL, DEMO_QUERIES, 6, seed=1)
    shuffled = [random.Random(i).sample(examples, 6) for i, examples in enumerate(shared)]
    own = [select_examples(DEMO_POOL, [query], 6, seed=i)[0] for i, query in enumerate(DEMO_QUERIES)]
    assert cached_share(llm, shared) > 0.6  # five of six prompts take over their examples
    assert cached_share(llm, shuffled) < 0.3
    assert cached_share(llm, own) < 0.3


def test_similar_examples_in_the_order_of_use_are_cached_more_than_by_similarity(llm: LLM) -> None:
    selected = select_examples(DEMO_POOL, DEMO_QUERIES, 6, "similar", embed=llm.embed)
    embeddings = llm.embed(DEMO_POOL.input_texts)
    for query, examples in zip(DEMO_QUERIES, selected, strict=True):
        scores = (embeddings @ llm.embed([query["input"]])[0]).tolist()
        sixth = sorted(scores)[-6]
        assert all(scores[DEMO_POOL.examples.index(dict(example))] >= sixth - 1e-6 for example in examples)
    shuffled = [random.Random(i).sample(examples, 6) for i, examples in enumerate(selected)]
    assert cached_share(llm, selected) > cached_share(llm, shuffled) + 0.1


def test_a_token_budget_of_the_models_tokenizer_is_kept(llm: LLM) -> None:
    query = DEMO_QUERIES[0]

    def num_tokens(examples: Sequence[Example]) -> int:
        return len(llm.tokenizer.encode(FEW_SHOT.render({**query, "examples": examples})))

    for budget in (60, 100):
        (examples,) = select_examples(DEMO_POOL, [query], 24, count_tokens=num_tokens, max_tokens=budget)
        assert 0 < len(examples) < 24 and num_tokens(examples) <= budget
        rest = [example for example in DEMO_POOL.examples if example not in examples]
        assert all(num_tokens([*examples, example]) > budget for example in rest)
