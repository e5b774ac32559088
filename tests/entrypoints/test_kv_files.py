"""``save_kv``, ``load_kv`` and ``clear_kv``: the outputs with loaded blocks are those without, bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors import safe_open
from tests.exhaustive import repeats
from tests.fuzz.file_mutations import mutate
from tests.small_disk import small_disk

from hasten import LLM, RequestOutput, SamplingParams
from hasten.checkpoints.model_digest import ModelDigest, model_digest
from hasten.core.errors import CapacityError, HastenError, InvalidOption, InvalidRequest, KvFileError
from hasten.entrypoints import kv_files
from hasten.entrypoints.kv_files import KvFiles
from hasten.entrypoints.wiring import loaded_digest, result_cache_setup
from hasten.ops.cpu.cpu import supported_isas
from hasten.ops.cpu.library import NativeLibrary, native_library

GREEDY = SamplingParams(temperature=0, max_tokens=12, logprobs=3, ignore_eos=True)
DEMO = {"kv_cache_memory": "16MiB", "max_model_len": 256, "threads": 1}
TINY = {"kv_cache_memory": "4MiB", "max_model_len": 128, "block_size": 4, "dtype": "float32", "threads": 1}
PREFIX = [(i * 37) % 90 + 5 for i in range(50)]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "cache"))


def ids(token_ids: list[int]) -> dict[str, list[int]]:
    return {"prompt_token_ids": token_ids}


def answer(llm: LLM, token_ids: list[int], tenant: str = "") -> RequestOutput:
    return llm.generate(ids(token_ids), GREEDY, use_tqdm=False, cache_salt=tenant)[0]


def nothing_is_cached(llm: LLM) -> bool:
    kv = llm.engine.scheduler.kv
    kv.check()
    return kv.num_cached == 0 and not any(allocator.num_held for allocator in kv.allocators)


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "demo": ("demo", DEMO),
    "int8 KV": ("demo", {**DEMO, "kv_cache_dtype": "int8"}),
    "quantised": ("demo", {**DEMO, "quantization": "int8", "block_size": 5}),
    "exits": ("demo", {**DEMO, "exits": "demo-exits"}),
    "draft model": ("demo", {**DEMO, "speculative_method": "draft_model", "draft_model": "demo-draft"}),
    "torch": ("demo", {**DEMO, "backend": "torch"}),
    "small steps": ("llama-gqa", {**TINY, "max_num_batched_tokens": 8, "max_num_seqs": 2}),
    "window": ("mistral-window", TINY),
    "window, small steps": ("mistral-window", {**TINY, "max_num_batched_tokens": 5, "max_num_seqs": 2}),
    "two groups": ("qwen3-mixed-window", TINY),
    "two groups, torch": ("qwen3-mixed-window", {**TINY, "backend": "torch"}),
}


@pytest.mark.parametrize("name", MODELS)
def test_outputs_after_loading_are_those_without(name: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    model, options = MODELS[name]
    folder = model if model == "demo" else str(tiny(model))
    block_size = options.get("block_size", 16)
    prompt = [*PREFIX, 3, 4, 5]
    with LLM(folder, **options) as llm:
        saved = llm.save_kv(ids(PREFIX), tmp_path / "x")
        assert saved.num_tokens == len(PREFIX) // block_size * block_size
        assert saved.num_bytes == (tmp_path / "x").stat().st_size
        expected = answer(llm, prompt)  # after an ordinary hit in the prefix cache
    if options.get("backend") != "torch":  # whose products round differently for another number of rows
        with LLM(folder, **{**options, "prefix_caching": False}) as llm:
            assert answer(llm, prompt).outputs == expected.outputs
    with LLM(folder, **options) as llm:
        loaded = llm.load_kv(tmp_path / "x")
        assert (loaded.num_tokens, loaded.num_new_blocks) == (saved.num_tokens, saved.num_blocks)
        found = answer(llm, prompt)
        assert found.metrics.num_cached_tokens == saved.num_tokens
        assert found.outputs == expected.outputs
        assert llm.load_kv(tmp_path / "x").num_new_blocks == 0
        llm.engine.scheduler.kv.check()


def test_other_numbers_in_the_blocks_change_the_outputs(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """The control of the test above: requests do read what was loaded."""
    with LLM(str(tiny("llama-gqa")), **TINY) as llm:
        expected = answer(llm, PREFIX)
        llm.save_kv(ids(PREFIX), tmp_path / "x")
        llm.clear_kv()
        pool = type(llm._loaded.kv.pool)
        write = pool.write_blocks
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pool, "write_blocks", lambda self, layer, blocks, data: write(self, layer, blocks, data.flip(0)))
            llm.load_kv(tmp_path / "x")
        assert answer(llm, PREFIX).outputs != expected.outputs


@pytest.mark.parametrize("model", ["llama-gqa", "mistral-window", "qwen3-mixed-window"])
def test_loading_fills_the_holes_of_a_cached_prefix(model: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    with LLM(str(tiny(model)), **TINY) as llm:
        llm.save_kv(ids(PREFIX), tmp_path / "x")
        expected = answer(llm, [*PREFIX, 3]).outputs
        llm.clear_kv()
        llm.load_kv(tmp_path / "x")
        kv = llm.engine.scheduler.kv
        for allocator in kv.allocators:
            for block in list(allocator._cached)[::2]:
                allocator.free_cached(block)
        assert 0 < llm.load_kv(tmp_path / "x").num_new_blocks < kv.num_cached
        found = answer(llm, [*PREFIX, 3])
        assert (found.outputs, found.metrics.num_cached_tokens) == (expected, 48)


def test_all_full_blocks_are_saved_also_the_one_at_the_end(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    with LLM(str(tiny("llama-gqa")), **TINY) as llm:
        assert [llm.save_kv(ids(PREFIX[:n]), tmp_path / "x").num_tokens for n in (4, 7, 8)] == [4, 4, 8]
        with safe_open(tmp_path / "x", framework="pt") as file:
            assert file.get_tensor("token_ids").tolist() == PREFIX[:8]
        with pytest.raises(InvalidRequest, match=r"the prompt does not fill a KV block.*got 3 tokens; allowed: from 4 tokens"):
            llm.save_kv(ids(PREFIX[:3]), tmp_path / "y")
        assert not (tmp_path / "y").exists()


def test_a_cached_prompt_is_not_computed_again(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LLM(str(tiny("llama-gqa")), **TINY) as llm:
        llm.save_kv(ids(PREFIX), tmp_path / "x")
        monkeypatch.setattr(llm.engine, "_runner", None)  # any step would raise
        llm.save_kv(ids(PREFIX[:30]), tmp_path / "y")
        assert (tmp_path / "y").stat().st_size < (tmp_path / "x").stat().st_size


def test_a_file_is_loaded_for_the_tenant_of_the_call(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    with LLM(str(tiny("llama-gqa")), **TINY) as llm:
        llm.save_kv(ids(PREFIX), tmp_path / "x", cache_salt="saver")
        assert answer(llm, PREFIX, "a").metrics.num_cached_tokens == 0
    with LLM(str(tiny("llama-gqa")), **TINY) as llm:
        llm.load_kv(tmp_path / "x", cache_salt="a")
        cached = {tenant: answer(llm, PREFIX, tenant).metrics.num_cached_tokens for tenant in ("b", "", "saver", "a")}
        assert cached == {"b": 0, "": 0, "saver": 0, "a": 48}
        for call in (lambda: llm.save_kv(ids(PREFIX), tmp_path / "x", cache_salt=3), lambda: llm.load_kv("x", cache_salt=None)):
            with pytest.raises(InvalidRequest, match="cache_salt is not a text"):
                call()


def test_blocks_of_an_early_exit_are_not_saved(tmp_path: Path) -> None:
    """Those of a request that exits early are cached under another salt, or not at all."""
    early = SamplingParams(temperature=0, max_tokens=4, exit_rule="fixed", exit_layer=1)
    with LLM("demo", **DEMO) as llm:
        llm.save_kv(ids(PREFIX), tmp_path / "expected")
    with LLM("demo", **DEMO) as llm:
        llm.generate(ids(PREFIX), early, use_tqdm=False)
        llm.save_kv(ids(PREFIX), tmp_path / "found")
    assert (tmp_path / "found").read_bytes() == (tmp_path / "expected").read_bytes()


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"block_size": 8}, ["block_size"]),
        ({"dtype": "bfloat16"}, ["dtype", "kv_cache_dtype"]),
        ({"kv_cache_dtype": "int8"}, ["kv_cache_dtype"]),
        ({"quantization": "int8"}, ["quantization"]),
        ({"backend": "torch"}, ["kernels"]),
    ],
)
def test_a_file_of_another_engine_is_refused_with_both_values(
    changes: dict[str, Any], fields: list[str], tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = str(tiny("llama-gqa"))
    with LLM(folder, **TINY) as llm:
        llm.save_kv(ids(PREFIX), tmp_path / "x")
        own = json.loads(header(tmp_path / "x"))["__metadata__"]
    with LLM(folder, **{**TINY, **changes}) as llm:
        with pytest.raises(KvFileError, match="holds KV blocks of another model or engine") as caught:
            llm.load_kv(tmp_path / "x")
        assert nothing_is_cached(llm)
        llm.save_kv(ids(PREFIX), tmp_path / "y")
    other = json.loads(header(tmp_path / "y"))["__metadata__"]
    assert caught.value.got == ", ".join(f"{name}={own[name]}" for name in fields)
    assert caught.value.allowed == ", ".join(f"{name}={other[name]}" for name in fields)


def test_a_file_of_another_model_is_refused_with_both_digests(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    same = shutil.copytree(tiny("llama-gqa"), tmp_path / "same")
    other = shutil.copytree(tiny("llama-gqa"), tmp_path / "other")
    content = bytearray((other / "model.safetensors").read_bytes())
    content[-1] ^= 1  # one bit of one weight
    (other / "model.safetensors").write_bytes(content)
    with LLM(str(tiny("llama-gqa")), **TINY) as llm:
        llm.save_kv(ids(PREFIX), tmp_path / "x")
    with LLM(str(same), **TINY) as llm:
        assert llm.load_kv(tmp_path / "x").num_tokens == 48
    with LLM(str(other), **TINY) as llm, pytest.raises(KvFileError, match=r"saved from .*llama-gqa, holds") as caught:
        llm.load_kv(tmp_path / "x")
    digests = [text.removeprefix("weights=") for text in (caught.value.got or "", caught.value.allowed or "")]
    assert len(set(digests)) == 2
    assert all(len(digest) == 64 for digest in digests)


def test_a_model_whose_files_changed_since_it_was_loaded_is_not_saved(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("llama-gqa"), tmp_path / "model")
    with LLM(str(folder), **TINY) as llm:
        os.utime(folder / "model.safetensors", (1, 1))
        with pytest.raises(HastenError, match="have changed since it was loaded"):
            llm.save_kv(ids(PREFIX), tmp_path / "x")


def test_a_file_of_another_version_or_build_is_refused(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, library = str(tiny("llama-gqa")), tmp_path / "_native.so"
    with LLM(folder, **TINY) as llm:
        llm.save_kv(ids(PREFIX), tmp_path / "x")
    library.write_bytes(b"another build")
    monkeypatch.setattr(result_cache_setup, "LIBRARY_FILE", library)
    monkeypatch.setattr(kv_files, "__version__", "9")
    with LLM(folder, **TINY) as llm, pytest.raises(KvFileError, match="another model or engine") as caught:
        llm.load_kv(tmp_path / "x")
    assert caught.value.allowed == f"library={hashlib.sha256(b'another build').hexdigest()}, hasten=9"


def test_a_config_that_changed_since_the_model_was_loaded_is_not_that_of_its_blocks(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny("llama-gqa"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    with LLM(str(folder), **TINY) as llm:
        (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 77.0}))
        with pytest.raises(HastenError, match="have changed since it was loaded"):
            llm.save_kv(ids(PREFIX), tmp_path / "x")


def test_requests_do_not_wait_while_the_files_of_a_model_are_hashed(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LLM(str(tiny("llama-gqa")), **TINY) as llm:
        is_locked: list[bool] = []

        def digest(*arguments: Any) -> ModelDigest:
            is_locked.append(llm._shared._lock.is_mine)
            return model_digest(*arguments)

        monkeypatch.setattr(loaded_digest, "model_digest", digest)
        llm.save_kv(ids(PREFIX), tmp_path / "x")
        llm.load_kv(tmp_path / "x")
        assert is_locked == [False]


ISAS = supported_isas(library) if isinstance(library := native_library(), NativeLibrary) else []
SAVE = (
    "import json, sys; from hasten import LLM; options, ids = map(json.loads, sys.argv[1:3]); "
    "LLM('demo', **options).save_kv({'prompt_token_ids': ids}, sys.argv[3])"
)


def test_a_file_of_another_instruction_set_is_refused(tmp_path: Path) -> None:
    isa, other = (ISAS[0], ISAS[-1]) if ISAS[1:] else ("torch", "avx2")
    environment = {**os.environ, "HASTEN_CPU_ISA": other if ISAS[1:] else "none"}
    subprocess.run(
        [sys.executable, "-c", SAVE, json.dumps(DEMO), json.dumps(PREFIX), str(tmp_path / "x")], check=True, env=environment
    )
    with LLM("demo", **DEMO) as llm:
        with pytest.raises(KvFileError, match="holds KV blocks of another model or engine") as caught:
            llm.load_kv(tmp_path / "x")
        assert nothing_is_cached(llm)
    assert (caught.value.got, caught.value.allowed) == (f"kernels=native {other}", f"kernels=native {isa}")


def header(path: Path) -> bytes:
    content = path.read_bytes()
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


def test_damaged_files_are_one_error_and_load_nothing(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder, rng = tmp_path / "damaged", random.Random(31)
    with LLM(str(tiny("qwen3-mixed-window")), **TINY) as llm:
        llm.save_kv(ids(PREFIX), tmp_path / "x.safetensors")
        llm.clear_kv()
        content = (tmp_path / "x.safetensors").read_bytes()
        refused = 0
        for number in range(repeats("kv files")):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            file = folder / "x.safetensors"
            if number % 2:  # a byte anywhere
                place = rng.randrange(len(content))
                file.write_bytes(content[:place] + bytes([content[place] ^ rng.randrange(1, 256)]) + content[place + 1 :])
                what = f"byte {place}"
            else:
                file.write_bytes(content)
                what = mutate(folder, rng)
            if os.path.isfile(file) and file.read_bytes() == content:
                continue
            with pytest.raises(HastenError) as caught:
                llm.load_kv(file)
            assert "\n" not in str(caught.value), what
            assert nothing_is_cached(llm), what
            refused += 1
        assert refused > repeats("kv files") * 0.9
        llm.load_kv(tmp_path / "x.safetensors")
        assert not nothing_is_cached(llm)


def test_a_prefix_that_does_not_fit_is_refused_with_both_numbers(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = str(tiny("llama-gqa"))
    with LLM(folder, **TINY) as llm:
        llm.save_kv(ids(PREFIX), tmp_path / "x")
    refused = pytest.raises(CapacityError, match="got 48 tokens; allowed: up to 47")
    with LLM(folder, **{**TINY, "max_model_len": 48}) as llm, refused:
        llm.load_kv(tmp_path / "x")
    small = 60 // 4 * llm_block_bytes(folder)
    with LLM(folder, **{**TINY, "max_model_len": 60, "kv_cache_memory": small}) as llm:
        stream = llm.stream(ids([7] * 30), SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
        next(stream)
        free = llm.engine.scheduler.kv.allocators[0].num_available
        with pytest.raises(CapacityError, match=rf"got 12 blocks of 4 tokens; allowed: up to {free}\."):
            llm.load_kv(tmp_path / "x")
        assert len(list(stream)) > 0  # the running request goes on
        assert llm.load_kv(tmp_path / "x").num_new_blocks == 12


def llm_block_bytes(folder: str) -> int:
    with LLM(folder, **TINY) as llm:
        facts = llm.describe()
        return int(facts["kv_bytes"] // facts["kv_blocks"])


def test_clear_kv_drops_one_prefix_or_all(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    with LLM(str(tiny("llama-gqa")), **TINY) as llm:
        other = [100 - token for token in PREFIX]
        llm.save_kv(ids(PREFIX), tmp_path / "x", cache_salt="a")
        llm.save_kv(ids(other), tmp_path / "y")
        assert llm.clear_kv(ids(PREFIX)) == 0
        assert llm.clear_kv(ids(PREFIX), cache_salt="a") == 12
        assert answer(llm, PREFIX, "a").metrics.num_cached_tokens == 0
        assert llm.clear_kv(ids([*other, 3])) == 12
        assert answer(llm, other).metrics.num_cached_tokens == 0
        with pytest.raises(InvalidRequest, match="without a prompt, the blocks of one tenant cannot be told"):
            llm.clear_kv(cache_salt="a")
        assert llm.clear_kv() > 12
        assert nothing_is_cached(llm)


def test_a_running_request_keeps_its_blocks(tiny: Callable[[str], Path]) -> None:
    with LLM(str(tiny("llama-gqa")), **TINY) as llm:
        expected = answer(llm, PREFIX).outputs[0].token_ids
        llm.clear_kv()
        deltas = llm.stream(ids(PREFIX), GREEDY)
        token_ids = list(next(deltas).token_ids)
        assert llm.clear_kv(ids(PREFIX)) == 0
        for delta in deltas:
            token_ids += delta.token_ids
        assert tuple(token_ids) == expected
        assert llm.clear_kv(ids(PREFIX)) == 12


def test_streams_stay_open_while_files_are_saved_and_loaded(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    with LLM(str(tiny("llama-gqa")), **TINY) as llm:
        expected = answer(llm, PREFIX[::-1]).outputs[0].token_ids
        deltas = llm.stream(ids(PREFIX[::-1]), GREEDY)
        token_ids = list(next(deltas).token_ids)
        llm.save_kv(ids(PREFIX), tmp_path / "x")
        llm.clear_kv()
        token_ids += next(deltas).token_ids
        llm.load_kv(tmp_path / "x")
        for delta in deltas:
            token_ids += delta.token_ids
        assert tuple(token_ids) == expected


def test_loading_needs_the_prefix_cache(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    with LLM(str(tiny("llama-gqa")), **{**TINY, "prefix_caching": False}) as llm:
        assert llm.save_kv(ids(PREFIX), tmp_path / "x").num_tokens == 48
        with pytest.raises(InvalidOption, match="loaded KV blocks need the prefix cache"):
            llm.load_kv(tmp_path / "x")


def test_logits_that_are_not_finite_are_not_saved(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    with LLM(str(tiny("llama-gqa")), **{**TINY, "backend": "torch"}) as llm:
        decoder = llm.engine._runner._runner._runner._decoder  # type: ignore[attr-defined]
        with torch.no_grad():
            decoder.get_parameter("layers.1.mlp.up.format.weight")[0] = float("nan")
        with pytest.raises(HastenError, match="not finite"):
            llm.save_kv(ids(PREFIX), tmp_path / "x")
        assert nothing_is_cached(llm)
    assert not (tmp_path / "x").exists()


def test_an_interrupt_leaves_no_file_and_no_block(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    with LLM(str(tiny("llama-gqa")), **{**TINY, "max_num_batched_tokens": 8, "max_num_seqs": 2}) as llm:
        calls: list[None] = []
        KvFiles(llm._loaded, lambda: calls.append(None)).save(llm.engine, PREFIX, tmp_path / "x", "")
        assert len(calls) == 6 + 1 + 3  # steps of the prompt, their end, and the layers
        (tmp_path / "x").unlink()
        for num_before in range(len(calls)):
            llm.clear_kv()
            interrupt = Mock(side_effect=[*[None] * num_before, KeyboardInterrupt])
            with pytest.raises(KeyboardInterrupt):
                KvFiles(llm._loaded, interrupt).save(llm.engine, PREFIX, tmp_path / "x", "")
            llm.engine.scheduler.kv.check()
            assert not any(allocator.num_held for allocator in llm.engine.scheduler.kv.allocators)
            assert not list(tmp_path.glob("*x*"))
            assert not list(tmp_path.glob(".*x*"))


def test_an_interrupt_or_an_error_while_loading_leaves_no_block(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    with LLM(str(tiny("qwen3-mixed-window")), **TINY) as llm:
        llm.save_kv(ids(PREFIX), tmp_path / "x")
        llm.clear_kv()
        calls: list[None] = []
        KvFiles(llm._loaded, lambda: calls.append(None)).load(llm.engine, tmp_path / "x", "")
        assert len(calls) == sum(len(group.layers) for group in llm.engine.scheduler.kv.groups)
        for num_before in range(len(calls)):
            for error in (KeyboardInterrupt, MemoryError):
                llm.clear_kv()
                with pytest.raises(error):
                    KvFiles(llm._loaded, Mock(side_effect=[*[None] * num_before, error])).load(llm.engine, tmp_path / "x", "")
                assert nothing_is_cached(llm)
                assert not any(thread.name.startswith("ThreadPool") for thread in threading.enumerate()), "layers are still written"


def test_a_full_disk_is_one_sentence(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    with LLM(str(tiny("llama-gqa")), **TINY) as llm:
        with small_disk(4096), pytest.raises(CapacityError, match=r"x cannot be written: got File too large\. Free space there"):
            llm.save_kv(ids(PREFIX), tmp_path / "x")
        assert not list(tmp_path.glob("*x*"))
        for path in (3, None, ""):
            with pytest.raises(InvalidOption, match="the path of a KV file is not a path"):
                llm.save_kv(ids(PREFIX), path)  # type: ignore[arg-type]
