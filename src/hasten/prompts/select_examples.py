"""``select_examples``: the examples that a prompt shows, for each of some queries.

Examples stand before the query, so equal ones in equal order are computed once for all queries (prefix cache)::

    random, balanced    A B C | query 1        the same examples in the same order for every query
                        A B C | query 2
    similar             A B D | query 1        those that more queries have come first
                        A B E | query 2

Similar examples: Liu et al., 2022, "What Makes Good In-Context Examples for GPT-3?", arXiv 2101.06804.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal, get_args

from hasten.core.errors import InvalidRequest, nearest, show
from hasten.prompts.examples import Example, ExamplePool

if TYPE_CHECKING:
    from torch import Tensor

Method = Literal["random", "similar", "balanced"]
METHODS: tuple[Method, ...] = get_args(Method)
Embed = Callable[[Sequence[str]], "Tensor"]  # one vector per text, such as ``LLM.embed``
CountTokens = Callable[[Sequence[Example]], int]  # tokens of the prompt with these examples
_Fits = Callable[[Sequence[int]], bool]  # whether the examples of these indices are within the budget


def select_examples(
    pool: ExamplePool,
    queries: Sequence[Example],
    k: int,
    method: Method = "random",
    *,
    seed: int = 0,
    embed: Embed | None = None,
    count_tokens: CountTokens | None = None,
    max_tokens: int | None = None,
) -> list[list[Example]]:
    """Return up to ``k`` examples for each query, in the order in which the prompt shows them.

    - ``random``: drawn without replacement, by ``seed``. Without a budget, a larger ``k`` adds examples at the end.
    - ``balanced``: each label in turn, drawn by ``seed``, so that their numbers differ by one at most.
    - ``similar``: those whose inputs have the largest cosine similarity to the query's, by ``embed``.

    ``max_tokens`` bounds ``count_tokens``; only with it are there fewer than ``k``. An example that exceeds it is passed over, so
    that in the end no other one fits (``balanced``: no other one of the label whose turn it is). Raises ``InvalidRequest``.
    """
    _check(pool, queries, k, method)
    fits = _budget(pool, count_tokens, max_tokens)
    if method == "similar":
        if embed is None:
            raise InvalidRequest("similar examples need embeddings", remedy="Pass embed=llm.embed")
        chosen = _most_similar(pool, queries, k, embed, fits)
    else:
        generator = random.Random(seed)
        shared = _balanced(pool, k, generator, fits) if method == "balanced" else _take(_shuffled(pool, generator), k, fits)
        chosen = [shared] * len(queries)
    return [[pool.examples[i] for i in indices] for indices in chosen]


def _check(pool: ExamplePool, queries: Sequence[Example], k: object, method: object) -> None:
    if method not in METHODS:
        raise InvalidRequest("unknown method to select examples", got=show(method), remedy=nearest(method, METHODS))
    if type(k) is not int or not 1 <= k <= len(pool.examples):
        raise InvalidRequest("the number of examples is out of range", got=show(k), allowed=f"1 to {len(pool.examples)}")
    for number, query in enumerate(queries):
        missing = [name for name in pool.input_columns if name not in query]
        if missing:
            raise InvalidRequest(f"queries[{number}] lacks the column {missing[0]}", got=f"the columns {show(list(query))}")


def _budget(pool: ExamplePool, count_tokens: CountTokens | None, max_tokens: int | None) -> _Fits | None:
    if max_tokens is None:
        return None
    if count_tokens is None:
        raise InvalidRequest("max_tokens needs count_tokens")
    if (least := count_tokens([])) > max_tokens:
        got = f"{least} tokens without examples"
        raise InvalidRequest("the prompt exceeds its token budget", got=got, allowed=f"up to {max_tokens}")
    return lambda indices: count_tokens([pool.examples[i] for i in indices]) <= max_tokens


def _take(ranking: Iterable[int], k: int, fits: _Fits | None, key: Callable[[int], tuple[int, int]] | None = None) -> list[int]:
    """Return the first ``k`` of the ranking that fit, in its order or by ``key``."""
    chosen: list[int] = []
    for i in ranking:
        candidate = [*chosen, i] if key is None else sorted([*chosen, i], key=key)
        if fits is None or fits(candidate):
            chosen = candidate
        if len(chosen) == k:
            break
    return chosen


def _shuffled(pool: ExamplePool, generator: random.Random) -> list[int]:
    return generator.sample(range(len(pool.examples)), len(pool.examples))


def _balanced(pool: ExamplePool, k: int, generator: random.Random, fits: _Fits | None) -> list[int]:
    labels = pool.labels
    remaining: dict[tuple[str, ...], list[int]] = {label: [] for label in labels}
    for i in _shuffled(pool, generator):
        remaining[labels[i]].append(i)
    chosen: list[int] = []
    for label in itertools.cycle(remaining):
        if len(chosen) == k:
            break
        if not remaining[label] and fits is None:
            raise InvalidRequest(
                "a label has too few examples for a balanced selection",
                got=f"{labels.count(label)} of {show(' '.join(label))}, {len(remaining)} labels and {k} examples",
                remedy="Ask for fewer examples, or add some of this label",
            )
        index = next((i for i in remaining[label] if fits is None or fits([*chosen, i])), None)
        if index is None:
            break
        remaining[label].remove(index)
        chosen.append(index)
    return chosen


def _most_similar(pool: ExamplePool, queries: Sequence[Example], k: int, embed: Embed, fits: _Fits | None) -> list[list[int]]:
    pool_PE = _unit_vectors(pool.input_texts, embed)
    queries_QE = _unit_vectors([pool.input_text(query) for query in queries], embed)

    def ranking(query_E: Tensor, length: int | None = None) -> list[int]:
        similarities_P = (pool_PE @ query_E).round(decimals=5)  # equal texts differ by rounding; they keep the pool's order
        order: list[int] = similarities_P.argsort(descending=True, stable=True)[:length].tolist()
        return order

    nearest_QK = [ranking(query_E, k) for query_E in queries_QE]
    num_queries = Counter(i for indices in nearest_QK for i in indices)

    def by_use(i: int) -> tuple[int, int]:
        return -num_queries[i], i

    if fits is None:
        return [sorted(indices, key=by_use) for indices in nearest_QK]
    return [_take(ranking(query_E), k, fits, by_use) for query_E in queries_QE]


def _unit_vectors(texts: Sequence[str], embed: Embed) -> Tensor:
    import torch
    from torch.nn import functional as F

    vectors_NE = torch.as_tensor(embed(texts), dtype=torch.float32, device="cpu")
    if vectors_NE.shape[:1] != (len(texts),) or vectors_NE.dim() != 2 or not vectors_NE.isfinite().all():
        got = f"the shape {tuple(vectors_NE.shape)} for {len(texts)} texts"
        raise InvalidRequest("embed does not return one vector of finite numbers per text", got=got)
    return F.normalize(vectors_NE)
