"""One function makes the salts of all prefix caches, so tenants share no block in any of them."""

from __future__ import annotations

import ast
import importlib
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import hasten
from hasten import LLM, SamplingParams
from hasten.kv.cache_manager import KvCacheManager
from hasten.kv.prefix_hash import cache_salt, extend_hashes

SOURCE = Path(hasten.__file__).parent
SCHEDULER, SCORERS, DRAFT_MODEL = CALLERS = (
    "hasten.scheduling.scheduler",
    "hasten.engine.scorers",
    "hasten.speculative.drafters.draft_model",
)
PROMPT = {"prompt_token_ids": list(range(100, 140))}  # two full blocks of 16 tokens, and a part of a third


@pytest.fixture(scope="module")
def llm() -> LLM:
    """An engine that has all callers of ``cache_salt``."""
    return LLM(
        "demo", speculative_method="draft_model", draft_model="demo-draft", max_model_len=96, kv_cache_memory="16MiB", threads=1
    )


def cached_tokens(llm: LLM, monkeypatch: pytest.MonkeyPatch, tenants: Sequence[str]) -> dict[str, list[int]]:
    """Generate and score per tenant; return the cached tokens of each ``open``, by calling module."""
    cached: dict[str, list[int]] = {caller: [] for caller in CALLERS}
    original = KvCacheManager.open

    def recording_open(self: KvCacheManager, sequence_id: int, salt: str, hashes: Sequence[bytes]) -> int:
        num_cached = original(self, sequence_id, salt, hashes)
        cached[sys._getframe(1).f_globals["__name__"]].append(num_cached)
        return num_cached

    with monkeypatch.context() as patch:
        patch.setattr(KvCacheManager, "open", recording_open)
        for tenant in tenants:
            params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
            llm.generate([PROMPT], params, use_tqdm=False, cache_salt=tenant)
            llm.score(PROMPT, [{"token_ids": [5, 6]}], cache_salt=tenant)
    return cached


def unique_salts(monkeypatch: pytest.MonkeyPatch, caller: str, tenant: str) -> None:
    """Give every ``cache_salt`` call of ``caller`` its own salt.

    The patch fails if the module does not use the function.
    """
    numbers = itertools.count()
    monkeypatch.setattr(importlib.import_module(caller), "cache_salt", lambda *_: f"{tenant} {next(numbers)}")


def test_every_caller_finds_the_blocks_of_its_tenant(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scorer also finds those of the request before it."""
    found = cached_tokens(llm, monkeypatch, ["a", "a"])
    assert found[SCHEDULER] == [0, 32] and found[SCORERS] == [32, 32]
    assert found[DRAFT_MODEL][1] == 32


def test_tenants_share_no_blocks(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    found = cached_tokens(llm, monkeypatch, ["b", "c"])
    assert found[SCHEDULER] == [0, 0] and found[SCORERS] == [32, 32]
    assert set(found[DRAFT_MODEL]) == {0}


@pytest.mark.parametrize("caller", CALLERS)
def test_another_salt_function_separates_the_blocks_of_each_caller(llm: LLM, monkeypatch: pytest.MonkeyPatch, caller: str) -> None:
    unique_salts(monkeypatch, caller, caller)
    found = cached_tokens(llm, monkeypatch, [caller, caller])
    assert {name for name, counts in found.items() if not any(counts)} == {caller}


def test_no_other_file_makes_a_salt_of_a_tenant() -> None:
    trees = {path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text(encoding="utf8")) for path in SOURCE.rglob("*.py")}
    constants = [(name, node.value) for name, tree in trees.items() for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert {name for name, value in constants if isinstance(value, str) and "tenant:" in value} == {"kv/prefix_hash.py"}


def test_salts_of_different_tenants_or_exit_layers_differ() -> None:
    tenants = ("", "a", "1", "tenant:a", "exit_layer:1/tenant:a", "1/tenant:a")
    assert len({cache_salt(tenant, layer) for tenant in tenants for layer in (None, 1, 2, 11)}) == 4 * len(tenants)


def test_a_hash_depends_on_the_salt_and_on_all_tokens_before() -> None:
    def hashes(salt: str, token_ids: Sequence[int]) -> list[bytes]:
        found: list[bytes] = []
        extend_hashes(found, salt, token_ids, 2)
        return found

    assert hashes("a", [1, 2, 3, 4, 5]) == hashes("a", [1, 2, 3, 4])
    assert hashes("a", [1, 2, 3, 4])[:1] == hashes("a", [1, 2, 9, 9])[:1]
    different = [hashes("a", [1, 2, 3, 4]), hashes("b", [1, 2, 3, 4]), hashes("a", [0, 2, 3, 4]), hashes("a", [3, 4, 1, 2])]
    assert len({block for found in different for block in found}) == 8
