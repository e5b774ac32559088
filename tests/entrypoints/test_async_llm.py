"""``AsyncLLM``: many tasks at once, cancellation, and an error for each task if the engine ends."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hasten import LLM, AsyncLLM, HastenError, InvalidRequest, RequestOutput, SamplingParams
from hasten.caching.stored_result import StoredResult
from hasten.checkpoints.model_digest import ModelDigest, model_digest
from hasten.core.errors import PromptTooLong
from hasten.core.output import RequestRejected
from hasten.core.plan import StepPlan
from hasten.core.structured_outputs import StructuredOutputs
from hasten.entrypoints.engine_client import EngineDied, Event
from hasten.entrypoints.wiring import loaded_digest
from hasten.sampling.guides.grammar_compiler import GrammarCompiler
from hasten.text.tokenizer import TextTokenizer

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
PROMPTS = [{"prompt_token_ids": [3 + i, 4, 5 + 2 * i, 6]} for i in range(10)]
OPTIONS = {"dtype": "float32", "block_size": 4, "kv_cache_memory": "8MiB", "max_num_seqs": 6, "max_model_len": 128}


def run(folder: Path, body: Callable[[AsyncLLM], Awaitable[None]], **options: object) -> None:
    async def session() -> None:
        async with AsyncLLM(str(folder), **{**OPTIONS, **options}) as llm:
            await body(llm)

    asyncio.run(asyncio.wait_for(session(), timeout=120))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for the engine's thread."""
    while not condition():
        await asyncio.sleep(0.001)


def hold_after_one_step(llm: AsyncLLM) -> threading.Event:
    """Let the engine run one step, and no more until the event is set: what a test sends meanwhile meets a running request."""
    engine, go_on = llm._client.loaded.engine, threading.Event()
    step, num_steps = engine.step, 0

    def held_step() -> object:
        nonlocal num_steps
        num_steps += 1
        assert num_steps == 1 or go_on.wait(timeout=60)
        return step()

    engine.step = held_step  # type: ignore[assignment, method-assign]
    return go_on


@contextmanager
def held_step(llm: AsyncLLM) -> Iterator[threading.Event]:
    """Hold the engine's steps within the context; the event says that one has begun."""
    engine, has_begun, go_on = llm._client.loaded.engine, threading.Event(), threading.Event()
    step = engine.step

    def held() -> object:
        has_begun.set()
        assert go_on.wait(timeout=20)
        return step()

    engine.step = held  # type: ignore[assignment, method-assign]
    try:
        yield has_begun
    finally:
        go_on.set()


def num_held_blocks(llm: AsyncLLM) -> int:
    return sum(allocator.num_held for allocator in llm._client.loaded.engine.scheduler.kv.allocators)


def test_many_tasks_get_the_outputs_of_the_synchronous_engine(tiny: Callable[[str], Path]) -> None:
    folder = tiny("llama-gqa")
    expected = [output.outputs for output in LLM(str(folder), **OPTIONS).generate(PROMPTS, GREEDY, use_tqdm=False)]

    async def body(llm: AsyncLLM) -> None:
        outputs = await asyncio.gather(*(llm.generate(prompt, GREEDY) for prompt in PROMPTS))
        assert [output.outputs for output in outputs] == expected
        streamed = [delta async for delta in llm.stream(PROMPTS[0], GREEDY)]
        assert tuple(token for delta in streamed for token in delta.token_ids) == expected[0][0].token_ids

    run(folder, body)


def test_break_cancels_and_frees_the_blocks(tiny: Callable[[str], Path]) -> None:
    async def body(llm: AsyncLLM) -> None:
        endless = GREEDY.replace(max_tokens=120)
        async with aclosing(llm.stream(PROMPTS[0], endless)) as deltas:
            async for delta in deltas:
                assert delta.token_ids
                break
        assert llm._router.open_requests == []  # at once
        await until(lambda: num_held_blocks(llm) == 0 and not llm._client.loaded.engine.has_unfinished_requests)
        assert llm._router.open_requests == []
        # The request ended long before its 120 tokens.
        assert llm._client.loaded.engine.stats.num_sampled_rows < 100

    run(tiny("llama-gqa"), body)


def test_a_cancelled_task_ends_its_request_and_no_other(tiny: Callable[[str], Path]) -> None:
    folder = tiny("llama-gqa")
    expected = LLM(str(folder), **OPTIONS).generate(PROMPTS[1], GREEDY.replace(max_tokens=60))[0].outputs

    async def body(llm: AsyncLLM) -> None:
        go_on = hold_after_one_step(llm)
        cancelled = asyncio.create_task(llm.generate(PROMPTS[0], GREEDY.replace(max_tokens=120)))
        kept = asyncio.create_task(llm.generate(PROMPTS[1], GREEDY.replace(max_tokens=60)))
        await until(lambda: num_held_blocks(llm) > 0)
        cancelled.cancel()
        await asyncio.sleep(0)  # the cancelled task sends its abort
        go_on.set()
        assert (await kept).outputs == expected
        await until(lambda: num_held_blocks(llm) == 0)
        with pytest.raises(asyncio.CancelledError):
            await cancelled

    run(folder, body)


def test_invalid_requests_are_refused_before_and_in_the_engine(tiny: Callable[[str], Path]) -> None:
    async def body(llm: AsyncLLM) -> None:
        with pytest.raises(InvalidRequest, match="the prompt is empty"):
            await llm.generate({"prompt_token_ids": []}, GREEDY)
        with pytest.raises(InvalidRequest, match=r"more sequences than may run at a time: got 9; allowed: up to max_num_seqs=6"):
            await llm.generate(PROMPTS[0], SamplingParams(n=9, max_tokens=4))  # the engine checks this
        with pytest.raises(PromptTooLong, match="do not fit the context"):
            await llm.generate(PROMPTS[0], SamplingParams(max_tokens=126))
        assert (await llm.generate(PROMPTS[0], GREEDY)).finished

    run(tiny("llama-gqa"), body)


JUNK = [
    None,
    -1,
    2**70,
    10**400,
    float("nan"),
    float("inf"),
    "x",
    "\ud800",
    b"x",
    [],
    [None],
    {},
    {"a": 1},
    True,
    ("\ud800",),
    object(),
]


def test_no_field_of_a_request_ends_the_engine(tiny: Callable[[str], Path]) -> None:
    """Junk in any field is refused or served, and the next valid request is exact."""
    folder = tiny("llama-gqa")
    fields = [field.name for field in dataclasses.fields(SamplingParams)]
    expected = LLM(str(folder), **OPTIONS).generate(PROMPTS[0], GREEDY)[0].outputs

    async def attempt(llm: AsyncLLM, settings: dict[str, object], **named: object) -> str:
        try:
            params = SamplingParams.from_dict({"max_tokens": 2, **settings})
            prompt = named.pop("prompt", PROMPTS[1])
            return str((await llm.generate(prompt, params, **named)).error)
        except InvalidRequest as error:
            return str(error)

    async def body(llm: AsyncLLM) -> None:
        outcomes = []
        for junk in JUNK:
            outcomes += [await attempt(llm, {name: junk}) for name in fields]
            outcomes += [await attempt(llm, {"beam_width": 3, name: junk}) for name in ("n", "early_stopping", "logprobs")]
            outcomes += [await attempt(llm, {}, **{name: junk}) for name in ("priority", "cache_salt", "prompt")]
            outcomes.append(await attempt(llm, {}, prompt={"prompt_token_ids": junk}))
            assert (await llm.generate(PROMPTS[0], GREEDY)).outputs == expected
        refused = [outcome for outcome in outcomes if outcome != "None"]
        assert len(refused) > 0.7 * len(outcomes)
        assert num_held_blocks(llm) == 0

    run(folder, body, scheduling_policy="priority")


def test_priority_orders_waiting_requests(tiny: Callable[[str], Path]) -> None:
    async def body(llm: AsyncLLM) -> None:
        finished: list[str] = []

        async def one(name: str, priority: int) -> None:
            await llm.generate(PROMPTS[0], GREEDY.replace(max_tokens=40), priority=priority)
            finished.append(name)

        go_on = hold_after_one_step(llm)
        first = asyncio.create_task(one("first", 0))
        await until(lambda: num_held_blocks(llm) > 0)
        low, high = asyncio.create_task(one("low", 5)), asyncio.create_task(one("high", -5))
        await asyncio.sleep(0)  # both tasks send their requests
        go_on.set()
        await asyncio.gather(first, low, high)
        assert finished == ["first", "high", "low"]

    run(tiny("llama-gqa"), body, scheduling_policy="priority", max_num_seqs=1)


def test_waiting_tasks_get_an_error_when_the_engine_dies(tiny: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    async def body(llm: AsyncLLM) -> None:
        def broken() -> None:
            raise KeyError("a bug")

        llm._client.loaded.engine.step = broken  # type: ignore[assignment, method-assign]
        for _ in range(2):  # a task that waits when the engine dies, and one that comes later
            with pytest.raises(HastenError, match="the engine has ended: got KeyError: 'a bug'"):
                await llm.generate(PROMPTS[0], GREEDY)

    run(tiny("llama-gqa"), body)


def test_a_step_that_fails_during_a_scoring_ends_the_engine(tiny: Callable[[str], Path]) -> None:
    """The scoring must not swallow the fault: the requests of that step would wait for ever."""

    async def body(llm: AsyncLLM) -> None:
        def broken() -> None:
            raise KeyError("a bug")

        with held_step(llm) as has_begun:
            task = asyncio.create_task(llm.generate(PROMPTS[0], GREEDY))
            await asyncio.to_thread(has_begun.wait)
            scoring = asyncio.create_task(llm.score(PROMPTS[0], [{"token_ids": [5, 6]}]))
            await until(lambda: not llm._client._commands.empty())
            llm._client._requests.step = broken  # type: ignore[assignment, method-assign]
        for waiting in (task, scoring):
            with pytest.raises(HastenError, match="the engine has ended: got KeyError: 'a bug'"):
                await waiting

    run(tiny("llama-gqa"), body)


def test_a_stored_result_that_cannot_be_replayed_ends_its_request(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The thread that looks up results has no caller that would see its error."""

    def broken(*_: object) -> None:
        raise KeyError("a bug")

    async def body(llm: AsyncLLM) -> None:
        await llm.generate(PROMPTS[0], GREEDY)
        monkeypatch.setattr(StoredResult, "replay", broken)
        with pytest.raises(InvalidRequest, match="KeyError: 'a bug'"):
            await asyncio.wait_for(llm.generate(PROMPTS[0], GREEDY), 20)

    run(tiny("llama-gqa"), body, result_cache=f"sqlite:{tmp_path / 'results'}")


def test_a_refusal_does_not_wait_for_a_call(tiny: Callable[[str], Path]) -> None:
    async def body(llm: AsyncLLM) -> None:
        client, refused = llm._client, threading.Event()
        deliver = client._on_events

        def note(events: list[Event], abort: Callable[[str], None]) -> None:
            deliver(events, abort)
            if any(isinstance(event, RequestRejected) for event in events):
                refused.set()

        client._on_events = note
        client.loaded = dataclasses.replace(
            client.loaded, soft_prompts=SimpleNamespace(load=lambda folder: refused.wait(timeout=5))
        )
        with held_step(llm) as has_begun:
            task = asyncio.create_task(llm.generate(PROMPTS[0], GREEDY))
            await asyncio.to_thread(has_begun.wait)
            rejected = asyncio.create_task(llm.generate(PROMPTS[0], SamplingParams(n=9, max_tokens=4)))
            await until(lambda: not client._commands.empty())
            call = client.call("load_soft_prompt", folder="a")
        assert await asyncio.wrap_future(call.result) is True, "the refusal came after the call"
        with pytest.raises(InvalidRequest, match="more sequences"):
            await rejected
        await task

    run(tiny("llama-gqa"), body)


def test_close_ends_running_requests(tiny: Callable[[str], Path]) -> None:
    async def session() -> None:
        llm = AsyncLLM(str(tiny("llama-gqa")), **OPTIONS)
        go_on = hold_after_one_step(llm)
        task = asyncio.create_task(llm.generate(PROMPTS[0], GREEDY.replace(max_tokens=120)))
        await until(lambda: num_held_blocks(llm) > 0)
        closed = asyncio.create_task(llm.close())
        await until(lambda: llm._client._is_closed)
        go_on.set()
        await closed
        with pytest.raises(HastenError, match="it was closed"):
            await task
        await llm.close()

    asyncio.run(asyncio.wait_for(session(), timeout=60))


def test_the_event_loop_runs_while_a_long_prompt_is_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer waits for the loop, which would be a deadlock if it ran in the loop."""
    encode, loop_ran = TextTokenizer.encode, threading.Event()

    def held_encode(self: TextTokenizer, text: str, **settings: bool) -> list[int]:
        assert loop_ran.wait(timeout=60)
        return encode(self, text, **settings)

    async def body(llm: AsyncLLM) -> None:
        loop_ran.set()
        expected = await llm.generate("x" * 2500, GREEDY)
        monkeypatch.setattr(TextTokenizer, "encode", held_encode)
        for call in (llm.generate("x" * 2500, GREEDY), anext(llm.stream_chat([{"role": "user", "content": "hi"}], GREEDY))):
            loop_ran.clear()
            task = asyncio.create_task(call)
            await asyncio.sleep(0)
            loop_ran.set()
            answer = await task
            assert not isinstance(answer, RequestOutput) or answer.outputs == expected.outputs

    async def session() -> None:
        async with AsyncLLM("demo", dtype="float32", kv_cache_memory="64MiB") as llm:
            await body(llm)

    asyncio.run(asyncio.wait_for(session(), timeout=120))


def test_kv_files_are_saved_and_loaded_between_the_steps_of_requests(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "cache"))
    folder, prompt = tiny("llama-gqa"), {"prompt_token_ids": list(range(20, 60))}
    expected = LLM(str(folder), **OPTIONS).generate([prompt, *PROMPTS], GREEDY, use_tqdm=False)

    hashing: set[str] = set()

    def digest(*arguments: Any) -> ModelDigest:
        hashing.add(threading.current_thread().name)
        return model_digest(*arguments)

    monkeypatch.setattr(loaded_digest, "model_digest", digest)

    async def body(llm: AsyncLLM) -> None:
        tasks = [asyncio.create_task(llm.generate(prompt, GREEDY)) for prompt in PROMPTS]
        saved = await llm.save_kv(prompt, tmp_path / "x", cache_salt="a")
        assert hashing and not hashing & {"hasten-engine", "MainThread"}, "requests would wait for the hash of the model's files"
        assert await llm.clear_kv(prompt, cache_salt="a") == 10
        loaded = await llm.load_kv(tmp_path / "x", cache_salt="a")
        assert (loaded.num_tokens, loaded.num_new_blocks) == (saved.num_tokens, 10) == (40, 10)
        outputs = [await llm.generate(prompt, GREEDY, cache_salt="a"), *await asyncio.gather(*tasks)]
        assert [output.outputs for output in outputs] == [output.outputs for output in expected]
        assert outputs[0].metrics.num_cached_tokens == 36  # one token is left to compute
        assert (await llm.generate(prompt, GREEDY, cache_salt="b")).metrics.num_cached_tokens == 0
        for wrong in (llm.load_kv(tmp_path / "missing"), llm.save_kv(PROMPTS[0], tmp_path / "y", cache_salt=3)):
            with pytest.raises(HastenError):
                await wrong
        assert await llm.clear_kv() > 10

    run(folder, body)


@pytest.mark.parametrize("end", ["cancel", "close"])
def test_saving_ends_with_its_task_and_with_the_engine(
    end: str, tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "cache"))
    prompt = {"prompt_token_ids": list(range(20, 60))}

    async def body(llm: AsyncLLM) -> None:
        engine, is_running, go_on = llm._client.loaded.engine, threading.Event(), threading.Event()
        run, num_steps = engine._runner.run, 0

        def held_run(plan: StepPlan) -> object:
            nonlocal num_steps
            num_steps += 1
            is_running.set()
            assert go_on.wait(timeout=60)
            return run(plan)

        monkeypatch.setattr(engine._runner, "run", held_run)
        task = asyncio.create_task(llm.save_kv(prompt, tmp_path / "x"))
        await until(is_running.is_set)
        if end == "cancel":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            go_on.set()
            assert (await llm.stats())["kv"]["held_blocks"] == 0
            assert num_steps == 1, "the prompt has five steps"
            assert (await llm.generate(prompt, GREEDY)).outputs[0].finish_reason == "length"
        else:
            closing = asyncio.create_task(llm.close())
            await until(lambda: llm._client._is_closed)
            go_on.set()
            await closing
            with pytest.raises(HastenError, match="the engine has ended"):
                await task
            assert num_steps == 1
        assert not list(tmp_path.glob("*x*"))

    run(tiny("llama-gqa"), body, max_num_batched_tokens=8)


def test_calls_fail_when_the_engine_has_ended(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    async def body(llm: AsyncLLM) -> None:
        go_on = hold_after_one_step(llm)
        task = asyncio.create_task(llm.generate(PROMPTS[0], GREEDY))
        await until(lambda: llm._client.loaded.engine.has_unfinished_requests)
        call = asyncio.create_task(llm.clear_kv())
        closing = asyncio.create_task(llm.close())
        await until(lambda: llm._client._is_closed)
        go_on.set()
        results = await asyncio.gather(task, call, closing, return_exceptions=True)
        assert isinstance(results[0], HastenError)
        assert isinstance(results[1], (HastenError, int))  # it came before the end, or after it
        with pytest.raises(HastenError, match="the engine has ended"):
            await llm.clear_kv()

    run(tiny("llama-gqa"), body)


def test_calls_that_the_engine_does_not_reach_fail(tiny: Callable[[str], Path]) -> None:
    async def body(llm: AsyncLLM) -> None:
        client = llm._client
        client._thread = threading.Thread()  # that never runs, as one that has died
        waiting = client.call("statistics").result
        cancelled = client.call("statistics").result
        assert cancelled.cancel()
        client._end(EngineDied(""))
        with pytest.raises(HastenError, match="the engine has ended"):
            waiting.result(timeout=0)
        with pytest.raises(HastenError, match="the engine has ended"):
            client.call("statistics").result.result(timeout=0)
        client._thread = None

    run(tiny("llama-gqa"), body)


def test_slow_grammars_delay_no_other_request(monkeypatch: pytest.MonkeyPatch) -> None:
    released, started = threading.Event(), threading.Semaphore(0)
    vet = GrammarCompiler._vet

    def slow_vet(self: GrammarCompiler, form: StructuredOutputs) -> str:
        if form.regex != "known":
            started.release()
            assert released.wait(60)
        return vet(self, form)

    def params(regex: str) -> SamplingParams:
        return SamplingParams(max_tokens=16, structured_outputs=StructuredOutputs(regex=regex))

    async def session() -> None:
        async with AsyncLLM("demo", max_model_len=128, kv_cache_memory="8MiB", threads=1) as llm:
            await llm.generate("a", params("known"))
            monkeypatch.setattr(GrammarCompiler, "_vet", slow_vet)
            slow = [asyncio.create_task(llm.generate("a", params(f"slow{i}"))) for i in range(3)]
            try:
                assert await asyncio.to_thread(started.acquire, timeout=60)
                chat = llm.stream_chat([{"role": "user", "content": "a"}], SamplingParams(max_tokens=2))
                assert [delta async for delta in chat][-1].output is not None
                output = await llm.generate("a", params("known"))
                assert output.outputs[0].text == "known"
                assert not any(task.done() for task in slow)
            finally:
                released.set()
            assert [output.outputs[0].is_complete for output in await asyncio.gather(*slow)] == [True] * 3

    asyncio.run(asyncio.wait_for(session(), 100))
