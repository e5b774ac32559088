"""An engine in a thread and one in a process of its own: the same answers, the same errors, and an end that all callers see."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import CancelledError, Future
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest

from hasten import LLM, AsyncLLM, HastenError, InvalidRequest, PrefixPin, SamplingParams
from hasten.core.errors import CheckpointError, InvalidOption, PromptTooLong
from hasten.core.structured_outputs import StructuredOutputs
from hasten.entrypoints.engine_client import EngineDied, PendingCall
from hasten.entrypoints.engine_process import __main__ as program
from hasten.entrypoints.engine_process.channel import BrokenChannel, Channel
from hasten.entrypoints.engine_process.messages import CALL_TYPES, FROM_ENGINE, TO_ENGINE, CallMessage, ResultMessage

OPTIONS: dict[str, Any] = {"max_model_len": 256, "kv_cache_memory": "16MiB", "threads": 1, "seed": 3}
GREEDY = SamplingParams(temperature=0, max_tokens=12)
PROMPTS = [f"def function_{i}(value):\n" for i in range(6)]
TRANSPORTS = pytest.mark.parametrize("transport", ["thread", "process"])


@pytest.fixture(scope="module")
def plain() -> LLM:
    return LLM("demo", **OPTIONS)


@asynccontextmanager
async def opened(transport: Any, **options: Any) -> AsyncIterator[AsyncLLM]:
    llm = await asyncio.to_thread(lambda: AsyncLLM("demo", transport=transport, **{**OPTIONS, **options}))
    async with llm:
        yield llm


def run(body: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 120))


async def idle(llm: AsyncLLM) -> dict[str, Any]:
    """Return the statistics once no request runs."""
    while (stats := await llm.stats())["requests"]["running"] + stats["requests"]["waiting"]:
        await asyncio.sleep(0.005)
    return stats


@TRANSPORTS
def test_answers_equal_those_of_llm(plain: LLM, transport: str) -> None:
    sampled = SamplingParams(seed=5, max_tokens=12, n=2, logprobs=2, stop=("zzz",), logit_bias={7: -1.5})
    guided = SamplingParams(temperature=0, max_tokens=20, structured_outputs=StructuredOutputs(choice=("yes", "no é")))
    settings = [GREEDY, sampled, guided]
    expected = [plain.generate(PROMPTS, each, use_tqdm=False) for each in settings]

    async def body() -> None:
        async with opened(transport) as llm:
            for params, outputs in zip(settings, expected, strict=True):
                found = await asyncio.gather(*(llm.generate(prompt, params) for prompt in PROMPTS))
                assert [each.outputs for each in found] == [each.outputs for each in outputs]
                assert [each.prompt for each in found] == PROMPTS
            deltas = [delta async for delta in llm.stream(PROMPTS[0], GREEDY)]
            assert "".join(delta.text for delta in deltas) == expected[0][0].outputs[0].text
            assert deltas[-1].output is not None and deltas[-1].output.outputs == expected[0][0].outputs
            assert llm.default_sampling_params() == plain.default_sampling_params()
            assert llm.describe().keys() == plain.describe().keys() and llm.max_model_len == OPTIONS["max_model_len"]
            assert (llm.pid == os.getpid()) == (transport == "thread")

    run(body)


@TRANSPORTS
def test_chat_equals_that_of_llm(plain: LLM, transport: str) -> None:
    messages = [{"role": "user", "content": "Say what a stack is."}]
    params = SamplingParams(temperature=0, max_tokens=8)
    expected = plain.chat(messages, params, use_tqdm=False)[0]

    async def body() -> None:
        async with opened(transport) as llm:
            prepared = await llm.prepare_chat(messages)
            assert prepared.token_ids == expected.prompt_token_ids
            for asked in (messages, prepared):
                found = await llm.chat(asked, params)
                assert found.outputs == expected.outputs
                text = "".join([delta.text async for delta in llm.stream_chat(asked, params)])
                assert text == expected.outputs[0].text
            assert await llm.encode(PROMPTS[0]) == tuple(plain.tokenizer.encode(PROMPTS[0]))

    run(body)


@TRANSPORTS
def test_scores_choices_and_pins_equal_those_of_llm(plain: LLM, transport: str) -> None:
    texts = ["    return value\n", "    pass\n", {"token_ids": [5, 6]}]
    scores, choice = plain.score(PROMPTS[0], texts), plain.choose(PROMPTS[0], texts, normalize="sum")

    async def body() -> None:
        async with opened(transport) as llm:
            others = [asyncio.create_task(llm.generate(prompt, GREEDY.replace(max_tokens=40))) for prompt in PROMPTS]
            assert await llm.score(PROMPTS[0], texts) == scores
            assert await llm.choose(PROMPTS[0], texts, normalize="sum") == choice
            await asyncio.gather(*others)
            pin = await llm.pin_kv(PROMPTS[0] * 4, 60, cache_salt="tenant")
            assert pin["num_tokens"] >= 16
            await llm.generate("x", GREEDY, pins=[PrefixPin(num_tokens=1, seconds=1)])
            assert await llm.unpin_kv(PROMPTS[0] * 4, cache_salt="another") == 0
            assert await llm.unpin_kv(PROMPTS[0] * 4, cache_salt="tenant") == 1
            assert await llm.reset_prefix_cache() > 0
            with pytest.raises(InvalidOption, match="no result cache"):
                await llm.reset_result_cache()

    run(body)


@TRANSPORTS
def test_prompt_logprobs_are_the_scores_of_the_prompt(plain: LLM, transport: str) -> None:
    token_ids = plain.tokenizer.encode("import os\n\n\nclass Stack:\n    def push(self, value):\n" * 6)
    # An independent way to the same numbers: each token as the continuation of the first one.
    expected = plain.score({"prompt_token_ids": token_ids[:1]}, [{"token_ids": token_ids[1:]}])[0]

    async def body() -> None:
        async with opened(transport) as llm:
            others = [asyncio.create_task(llm.generate(prompt, GREEDY.replace(max_tokens=40))) for prompt in PROMPTS]
            first, *rest = await llm.prompt_logprobs({"prompt_token_ids": token_ids}, 3)
            assert first is None
            assert [each.token_id for each in rest if each] == token_ids[1:]
            assert [each.logprob for each in rest if each] == pytest.approx(list(expected.logprobs), abs=1e-5)
            for each in rest:
                assert each is not None
                assert [value for _, value in each.top] == sorted((value for _, value in each.top), reverse=True)
                assert (each.rank <= 3) == (each.token_id in dict(each.top)) and len(each.top) == 3
            assert await llm.prompt_logprobs({"prompt_token_ids": [9]}) == (None,)
            with pytest.raises(InvalidRequest, match="top is out of range"):
                await llm.prompt_logprobs("a", 1000)
            await asyncio.gather(*others)
            stats = await idle(llm)
            assert stats["kv"]["held_blocks"] == 0

    run(body)


@TRANSPORTS
def test_scoring_lets_other_requests_go_on(transport: str) -> None:
    """Eight long scorings and a stream: the stream ends long before the last of them."""

    async def body() -> None:
        async with opened(transport, max_num_batched_tokens=16, max_num_seqs=4) as llm:
            token_ids = [5 + i % 40 for i in range(250)]  # 16 steps of its own
            scorings = [asyncio.create_task(llm.prompt_logprobs({"prompt_token_ids": token_ids})) for _ in range(8)]
            await asyncio.sleep(0)
            output = await llm.generate("x", GREEDY.replace(ignore_eos=True))
            assert output.metrics.num_output_tokens == 12
            assert not scorings[-1].done()
            results = await asyncio.gather(*scorings)
            assert all(result == results[0] for result in results)

    run(body)


@TRANSPORTS
def test_statistics_wait_for_no_scoring(transport: str) -> None:
    """A server takes an engine that answers none for stopped."""

    async def body() -> None:
        async with opened(transport, max_num_batched_tokens=16, max_num_seqs=4) as llm:
            token_ids = [5 + i % 40 for i in range(250)]  # 16 steps each
            scorings = [asyncio.create_task(llm.prompt_logprobs({"prompt_token_ids": token_ids})) for _ in range(8)]
            await asyncio.sleep(0)
            await llm.stats()
            assert not scorings[1].done()
            await asyncio.gather(*scorings)

    run(body)


@TRANSPORTS
def test_leaving_a_stream_frees_its_blocks(transport: str) -> None:
    async def body() -> None:
        async with opened(transport) as llm:
            async with aclosing(llm.stream(PROMPTS[0], SamplingParams(max_tokens=200, ignore_eos=True))) as deltas:
                async for _ in deltas:
                    break
            task = asyncio.create_task(llm.generate(PROMPTS[1], SamplingParams(max_tokens=200, ignore_eos=True)))
            await asyncio.sleep(0.02)
            task.cancel()
            stats = await idle(llm)
            assert stats["kv"]["held_blocks"] == 0
            assert stats["requests"]["finished"]["abort"] >= 1

    run(body)


@TRANSPORTS
def test_errors_are_the_same(transport: str, tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(transport) as llm:
            with pytest.raises(PromptTooLong, match="leaves no room"):
                await llm.generate("x " * 400, GREEDY)
            with pytest.raises(InvalidRequest, match="structured_outputs"):
                await llm.generate("a", SamplingParams(structured_outputs=StructuredOutputs(regex="(")))
            with pytest.raises(CheckpointError):
                await llm.load_soft_prompt(tmp_path)
            with pytest.raises(InvalidRequest, match="does not fill a KV block"):
                await llm.save_kv("a", tmp_path / "file")
            saved = await llm.save_kv(PROMPTS[0] * 4, tmp_path / "file")
            await llm.clear_kv()
            assert (await llm.load_kv(tmp_path / "file")).num_tokens == saved.num_tokens
            assert (await llm.generate("a", GREEDY)).outputs[0].text  # it goes on

    run(body)


@TRANSPORTS
def test_the_result_cache_answers_behind_the_transport(transport: str, tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(transport, result_cache=f"sqlite:{tmp_path / 'results'}") as llm:
            first = await llm.generate(PROMPTS[0], GREEDY)
            again = await llm.generate(PROMPTS[0], GREEDY)
            assert again.metrics.from_result_cache and again.outputs == first.outputs
            assert not (await llm.generate(PROMPTS[0], GREEDY, use_result_cache=False)).metrics.from_result_cache
            stats = (await llm.stats())["result_cache"]
            assert stats["hits"] == 1 and stats["passed"] == {"not_wanted": 1}
            assert await llm.reset_result_cache() == 1
            assert not (await llm.generate(PROMPTS[0], GREEDY)).metrics.from_result_cache

    run(body)


@TRANSPORTS
def test_a_model_that_cannot_be_loaded_is_one_error(transport: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        AsyncLLM(str(tmp_path), transport=transport)
    with pytest.raises(InvalidOption, match="unknown transport"):
        AsyncLLM("demo", transport="telepathy")  # type: ignore[arg-type]


def test_a_killed_process_ends_every_request_at_once() -> None:
    async def body() -> None:
        async with opened("process") as llm:
            tasks = [asyncio.create_task(llm.generate(p, SamplingParams(max_tokens=200, ignore_eos=True))) for p in PROMPTS]
            async with aclosing(llm.stream(PROMPTS[0], SamplingParams(max_tokens=200, ignore_eos=True))) as deltas:
                await anext(deltas)
                os.kill(llm.pid, signal.SIGSTOP)  # so that a call is under way
                call = asyncio.create_task(llm.stats())
                await asyncio.sleep(0.05)
                assert not call.done()
                begin = time.monotonic()
                os.kill(llm.pid, signal.SIGKILL)
                with pytest.raises(HastenError, match="SIGKILL"):
                    async for _ in deltas:
                        pass
            results = await asyncio.gather(*tasks, call, return_exceptions=True)
            assert time.monotonic() - begin < 2
            assert all(isinstance(result, HastenError) and "SIGKILL" in str(result) for result in results)
            assert llm.has_ended
            with pytest.raises(HastenError, match="the engine has ended"):
                await llm.generate("a", GREEDY)

    run(body)


def test_a_stopped_process_blocks_no_caller() -> None:
    """More bytes than the socket holds go to a process that does not read; the event loop stays free, and closing kills it."""

    async def body() -> None:
        llm = await asyncio.to_thread(lambda: AsyncLLM("demo", transport="process", **OPTIONS))
        os.kill(llm.pid, signal.SIGSTOP)
        prompt = {"prompt_token_ids": [300 + i for i in range(200)]}
        tasks = [asyncio.create_task(llm.generate(prompt, GREEDY)) for _ in range(2000)]
        begin = time.monotonic()
        await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.sleep(0.01)
        assert time.monotonic() - begin < 5
        os.kill(llm.pid, signal.SIGKILL)
        await llm.close()
        assert all(isinstance(each, HastenError) for each in await asyncio.gather(*tasks, return_exceptions=True))

    run(body)


def test_the_process_ends_with_its_caller() -> None:
    code = (
        "import os, signal, sys; from hasten import AsyncLLM\n"
        f"llm = AsyncLLM('demo', transport='process', **{OPTIONS!r})\n"
        "print(llm.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    caller = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False)
    pid, deadline = int(caller.stdout), time.monotonic() + 30
    while os.path.exists(f"/proc/{pid}") and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    "data",
    [
        msgpack.packb(["deltas", [{"request_id": 5}]]),
        msgpack.packb(["result", {"number": "one", "value": 1}]),
        msgpack.packb(["unknown", None]),
        msgpack.packb("deltas"),
        b"\xc1",
        b"",
    ],
    ids=["wrong type", "wrong number", "unknown kind", "no list", "no msgpack", "nothing"],
)
def test_a_message_of_the_wrong_form_is_refused(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(struct.pack(">Q", len(data)) + data)
    with ours, theirs, pytest.raises(BrokenChannel):
        Channel(ours, TO_ENGINE, FROM_ENGINE).receive()


def test_a_message_beyond_the_limit_is_not_read() -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(struct.pack(">Q", 1 << 40))
    with ours, theirs, pytest.raises(BrokenChannel, match="bytes"):
        Channel(ours, TO_ENGINE, FROM_ENGINE).receive()


def test_arguments_of_calls_are_checked() -> None:
    with pytest.raises(ValueError, match="int"):
        CALL_TYPES["prompt_logprobs"].read_arguments({"token_ids": ["x"], "top": 1})
    with pytest.raises(KeyError):
        CALL_TYPES["prompt_logprobs"].read_arguments({"top": 1})


def test_a_message_that_cannot_be_sent_ends_alone() -> None:
    """Integers of msgpack have 64 bits. The thread that sends must outlive others, or every later request would wait for ever."""

    async def body() -> None:
        async with opened("process") as llm:
            with pytest.raises(HastenError, match="cannot be sent this: got OverflowError"):
                await llm._call("prompt_logprobs", token_ids=(2**70,), top=1)
            request = dataclasses.replace(llm._request("a", GREEDY), priority=2**70)
            with pytest.raises(InvalidRequest, match="cannot be sent this: got OverflowError"):
                async for _ in llm._stream(request):
                    pass
            assert (await llm.generate(PROMPTS[0], GREEDY)).finished

    run(body)


def test_a_result_of_the_wrong_form_ends_its_call_alone() -> None:
    async def body() -> None:
        async with opened("process") as llm:
            client, result = llm._client, Future[int]()
            result.set_running_or_notify_cancel()
            client._calls[1000] = ("unpin", result)
            client._deliver("result", ResultMessage(1000, "many"))
            assert "wrong form: got the result of unpin" in str(result.exception(timeout=0))
            assert (await llm.generate(PROMPTS[0], GREEDY)).finished

    run(body)


def test_a_result_that_cannot_be_sent_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        result = Future[dict[str, int]]()
        host: Any = SimpleNamespace(call=lambda name: PendingCall(result, lambda: None))
        program._call(Channel(theirs, FROM_ENGINE, TO_ENGINE), host, {}, CallMessage(7, "statistics", {}))
        result.set_result({"requests": 2**70})
        ours.settimeout(10)
        message = Channel(ours, TO_ENGINE, FROM_ENGINE).receive()
        assert message is not None and message[0] == "error"
        assert message[1].number == 7 and message[1].error.kind == "OverflowError"


def test_a_call_whose_caller_left_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        result = Future[Any]()
        host: Any = SimpleNamespace(call=lambda name: PendingCall(result, lambda: None))
        program._call(Channel(theirs, FROM_ENGINE, TO_ENGINE), host, {}, CallMessage(7, "statistics", {}))
        result.set_exception(CancelledError())
        ours.settimeout(10)
        message = Channel(ours, TO_ENGINE, FROM_ENGINE).receive()
        assert message is not None and message[1].error.kind == "CancelledError"
        assert not caplog.records


def test_a_process_that_ends_at_once_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end of the socket closes with a message that it has not read, which resets the connection."""
    false = shutil.which("false")
    assert false is not None
    monkeypatch.setattr(sys, "executable", false)
    for _ in range(5):
        with pytest.raises(HastenError, match="ended while it loaded the model: got its process ended with exit code 1"):
            AsyncLLM("demo", transport="process", **OPTIONS)


def test_a_bug_at_the_delivery_ends_the_engine() -> None:
    async def body() -> None:
        async with opened("process") as llm:
            client = llm._client
            deliver = client._on_events

            def broken(events: list[Any], abort: Callable[[str], None]) -> None:
                if not isinstance(events[0], EngineDied):
                    raise KeyError("a bug")
                deliver(events, abort)

            client._on_events = broken
            with pytest.raises(HastenError, match="the engine has ended: got KeyError: 'a bug'"):
                await llm.generate(PROMPTS[0], GREEDY)

    run(body)
