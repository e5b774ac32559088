"""``LLM.generate_sections``: each section is what its prompt alone gives, in order, and nothing is left behind."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.text.test_detokenizer import trained
from tests.text_models import text_checkpoint

from hasten import LLM, InvalidRequest, SamplingParams
from hasten.core.plan import RunnerOutput, StepPlan
from hasten.core.result import FinishReason
from hasten.entrypoints.sections.output import SectionDelta, SectionsOutput
from hasten.entrypoints.sections.section_prompts import NEXT_HEADING

OPTIONS: dict[str, Any] = {"dtype": "float32", "block_size": 4, "kv_cache_memory": "8MiB", "max_model_len": 512, "threads": 1}
QUESTION = "What are the main parts of a plan?"
HEADINGS = ["Goals", "Means", "Time", "Compare the two", "Conclusion"]
WAITS_FOR = [(), (), (), (1, 2), (0, 1, 2, 3)]
GREEDY = SamplingParams(temperature=0)
SEEDED = SamplingParams(temperature=0.9, top_p=0.95, seed=11)
TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Llama with a byte-level tokenizer and no chat template."""
    checkpoint = text_checkpoint(trained("byte-level"), tmp_path_factory.mktemp("sections"))
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    return str(checkpoint)


@pytest.fixture(scope="module")
def tiny_llm(folder: str) -> LLM:
    return LLM(folder, **OPTIONS)


@pytest.fixture(scope="module")
def demo() -> LLM:
    return LLM("demo", dtype="float32", max_model_len=512, kv_cache_memory="64MiB", threads=1)


def alone(llm: LLM, output: SectionsOutput, params: SamplingParams, tokens: int = TOKENS) -> list[tuple[str, tuple[int, ...]]]:
    """Decode each section by itself, after the same prompt."""
    found = []
    for section in output.sections:
        own = params.replace(max_tokens=tokens, stop=(NEXT_HEADING,), seed=params.seed and params.seed + section.index)
        (request,) = llm.generate({"prompt_token_ids": section.prompt_token_ids}, own, use_tqdm=False)
        found.append((request.outputs[0].text, request.outputs[0].token_ids))
    return found


def is_idle(llm: LLM) -> bool:
    held = [allocator.num_held for allocator in llm.engine.scheduler.kv.allocators]
    return not llm.engine.has_unfinished_requests and not llm._shared._inboxes and not any(held)


def joined(output: SectionsOutput) -> str:
    return "\n\n".join(f"## {section.heading}\n{section.text}" for section in output.sections)


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("prefix_caching", [True, False])
def test_each_section_is_what_it_is_alone(folder: str, params: SamplingParams, prefix_caching: bool) -> None:
    llm = LLM(folder, **OPTIONS, prefix_caching=prefix_caching)
    output = llm.generate_sections(QUESTION, params, skeleton=HEADINGS, section_tokens=TOKENS)
    assert [section.waits_for for section in output.sections] == WAITS_FOR
    assert [(section.text, section.token_ids) for section in output.sections] == alone(llm, output, params)
    assert output.text == joined(output) and output.errors == ()
    assert (output.plain_reason, output.skeleton, output.max_parallel) == (None, tuple(HEADINGS), 3)
    assert is_idle(llm)


def test_the_demo_with_its_chat_template(demo: LLM) -> None:
    """The question is the user's message; skeleton and heading begin the assistant's answer."""
    output = demo.generate_sections("What are the parts of asyncio?", GREEDY, skeleton=HEADINGS, section_tokens=16)
    assert [(each.text, each.token_ids) for each in output.sections] == alone(demo, output, GREEDY, 16)
    tokenizer = demo.tokenizer
    rendered = tokenizer.render_chat([{"role": "user", "content": "What are the parts of asyncio?"}])
    skeleton = "".join(f"{number}. {heading}\n" for number, heading in enumerate(HEADINGS, 1)) + "\n"
    text = tokenizer.decode(output.sections[0].prompt_token_ids, skip_special_tokens=False)
    assert text == f"{rendered}{skeleton}## Goals\n"
    written = tokenizer.decode(output.sections[3].prompt_token_ids, skip_special_tokens=False)
    earlier = "".join(f"## {each.heading}\n{each.text}\n\n" for each in output.sections[1:3])
    assert written == f"{rendered}{skeleton}{earlier}## Compare the two\n"


def test_the_prefix_is_shared_up_to_the_heading(folder: str) -> None:
    llm = LLM(folder, **OPTIONS)
    output = llm.generate_sections(QUESTION, GREEDY, skeleton=["Goals", "Means", "Time"], section_tokens=TOKENS)
    prompts = [section.prompt_token_ids for section in output.sections]
    shared = output.num_shared_tokens
    assert len({prompt[:shared] for prompt in prompts}) == 1 and shared > 40
    heading = [len(llm.tokenizer.encode(f"## {name}\n")) for name in ("Goals", "Means", "Time")]
    assert [len(prompt) - shared for prompt in prompts] == heading
    first, *others = (section.metrics.num_cached_tokens for section in output.sections)
    assert first == 0 and all(cached >= shared // 4 * 4 for cached in others)
    computed = sum(map(len, prompts)) - output.num_cached_tokens
    assert computed == output.num_prompt_tokens - output.num_cached_tokens < shared + 3 * (max(heading) + 4)
    assert output.num_output_tokens == 3 * TOKENS


def test_the_stream_is_the_text_in_order_while_later_sections_are_computed(tiny_llm: LLM) -> None:
    deltas = list(tiny_llm.stream_sections(QUESTION, GREEDY, skeleton=HEADINGS, section_tokens=TOKENS))
    output = deltas[-1].output
    assert output is not None and [delta.output for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert "".join(delta.text for delta in deltas) == output.text
    assert [delta.index for delta in deltas] == sorted(delta.index for delta in deltas)
    assert [delta.section for delta in deltas if delta.section is not None] == list(output.sections)
    assert sum(delta.index == 0 for delta in deltas) > 3  # the first section streams
    assert sum(delta.index == 1 for delta in deltas) <= 3  # the second one was computed meanwhile
    metrics = [section.metrics for section in output.sections]
    assert max(m.first_token for m in metrics[:3]) < min(m.finished for m in metrics[:3])  # together
    assert metrics[3].first_scheduled >= metrics[2].finished and metrics[4].first_scheduled >= metrics[3].finished
    assert json.dumps(output.as_dict())


@pytest.mark.parametrize("question", ["Who wrote Emma?", "证明：1加1等于2。"])
def test_a_question_that_does_not_suit_is_answered_plainly(tiny_llm: LLM, question: str) -> None:
    output = tiny_llm.generate_sections(question, GREEDY.replace(max_tokens=9), skeleton=HEADINGS)
    (expected,) = tiny_llm.generate(question, GREEDY.replace(max_tokens=9), use_tqdm=False)
    assert output.text == expected.outputs[0].text
    assert output.plain_reason == f"the question does not suit sections: {output.route.reason}" and not output.route.suits
    assert (output.skeleton, len(output.sections), output.sections[0].heading) == ((), 1, "")
    assert output.sections[0].prompt_token_ids == expected.prompt_token_ids
    chosen = tiny_llm.generate_sections(question, GREEDY, skeleton=HEADINGS, section_tokens=2, router=False)
    assert chosen.route.forced and not chosen.route.suits and len(chosen.sections) == 5


def test_plain_decoding_has_as_many_tokens_as_the_sections(tiny_llm: LLM) -> None:
    ignore = GREEDY.replace(ignore_eos=True)
    assert tiny_llm.generate_sections("Who?", ignore, max_sections=3, section_tokens=7).num_output_tokens == 21
    long = tiny_llm.generate_sections("Who?", ignore, max_sections=64, section_tokens=1000).sections[0]
    assert len(long.prompt_token_ids) + len(long.token_ids) == OPTIONS["max_model_len"]


def forced(llm: LLM, prompt_end: str, tokens: list[int], call: Callable[[], SectionsOutput]) -> SectionsOutput:
    """Force the output of the request whose prompt ends with a text."""
    end, runner, run = tuple(llm.tokenizer.encode(prompt_end)), llm.engine._runner, llm.engine._runner.run

    def with_tokens(plan: StepPlan) -> RunnerOutput:
        logits = run(plan).logits.clone()
        for row, sequence_id in enumerate(plan.sampled_sequence_ids):
            sequence = llm.engine.scheduler.sequence(sequence_id)
            count = sequence.num_output_tokens
            prompt = tuple(sequence.token_ids[: len(sequence.token_ids) - count])
            if prompt[-len(end) :] == end and count < len(tokens):
                logits[row, tokens[count]] = 1e4
        return RunnerOutput(logits)

    runner.run = with_tokens  # type: ignore[method-assign]
    try:
        return call()
    finally:
        runner.run = run  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def plain_llm(folder: str) -> LLM:
    """Without drafts, so that every output token has one row of logits."""
    return LLM(folder, **OPTIONS, speculative_method="off")


def test_a_section_ends_where_the_next_heading_begins(plain_llm: LLM) -> None:
    """The model is forced to write the next heading."""
    heading = plain_llm.tokenizer.encode("a\n## ")
    output = forced(plain_llm, "Goals\n", heading, lambda: plain_llm.generate_sections(QUESTION, GREEDY, skeleton=HEADINGS[:2]))
    assert (output.sections[0].text, output.sections[0].finish_reason) == ("a", FinishReason.STOP)


def test_the_model_writes_the_outline(plain_llm: LLM) -> None:
    tokens = plain_llm.tokenizer.encode(" Goals\n2. Means\n3. Summary\n\n")
    output = forced(plain_llm, "\n\n1.", tokens, lambda: plain_llm.generate_sections(QUESTION, GREEDY, section_tokens=TOKENS))
    assert (output.skeleton, output.plain_reason) == (("Goals", "Means", "Summary"), None)
    assert [section.waits_for for section in output.sections] == [(), (), (0, 1)]
    assert output.skeleton_metrics is not None
    assert output.num_output_tokens == output.skeleton_metrics.num_output_tokens + sum(
        len(section.token_ids) for section in output.sections
    )
    given = plain_llm.generate_sections(QUESTION, GREEDY, skeleton=["Goals", "Means", "Summary"], section_tokens=TOKENS)
    assert output.text == given.text
    assert is_idle(plain_llm)


def test_a_malformed_outline_is_plain_decoding_with_the_reason(plain_llm: LLM) -> None:
    tokens = plain_llm.tokenizer.encode(" Goals\n3. Means\n\n")
    output = forced(plain_llm, "\n\n1.", tokens, lambda: plain_llm.generate_sections(QUESTION, GREEDY, section_tokens=2))
    assert output.plain_reason == "line 2 of the model's outline is no point 2: '3. Means'"
    (expected,) = plain_llm.generate(QUESTION, GREEDY.replace(max_tokens=16), use_tqdm=False)
    assert output.text == expected.outputs[0].text and output.skeleton_metrics is not None
    rambling = plain_llm.tokenizer.encode(" a" * 250)
    output = forced(plain_llm, "\n\n1.", rambling, lambda: plain_llm.generate_sections("List ten tips!", GREEDY, section_tokens=2))
    assert output.plain_reason == "the model's outline did not end within 200 tokens"
    output = plain_llm.generate_sections("tips " * 100, GREEDY, section_tokens=2)
    assert output.plain_reason is not None and len(output.sections) == 1
    assert output.plain_reason.startswith("there is no outline: the prompt leaves no room")


def test_a_section_that_fails_is_reported_and_the_others_go_on(plain_llm: LLM) -> None:
    expected = plain_llm.generate_sections(QUESTION, GREEDY, skeleton=HEADINGS, section_tokens=TOKENS)
    plain_llm.reset_prefix_cache()
    end, runner, run = tuple(plain_llm.tokenizer.encode("## Means\n")), plain_llm.engine._runner, plain_llm.engine._runner.run

    def with_nan(plan: StepPlan) -> RunnerOutput:
        logits = run(plan).logits.clone()
        for row, sequence_id in enumerate(plan.sampled_sequence_ids):
            sequence = plain_llm.engine.scheduler.sequence(sequence_id)
            if sequence.num_output_tokens == 3 and tuple(sequence.token_ids[-3 - len(end) : -3]) == end:
                logits[row, 5] = torch.nan
        return RunnerOutput(logits)

    runner.run = with_nan  # type: ignore[method-assign]
    try:
        output = plain_llm.generate_sections(QUESTION, GREEDY, skeleton=HEADINGS, section_tokens=TOKENS)
    finally:
        runner.run = run  # type: ignore[method-assign]
    failed = output.sections[1]
    assert failed.error is not None and failed.finish_reason is FinishReason.ERROR and len(failed.token_ids) == 3
    assert output.errors == (f"section 2: {failed.error}",)
    assert [output.sections[i].text for i in (0, 2)] == [expected.sections[i].text for i in (0, 2)]
    assert all(len(output.sections[i].token_ids) == TOKENS for i in (3, 4))
    assert output.text == joined(output) and is_idle(plain_llm)


def test_a_section_that_does_not_fit_after_the_others_is_reported(tiny_llm: LLM) -> None:
    headings = ["Goals", "Means", "Summary", "Time"]
    output = tiny_llm.generate_sections(QUESTION, GREEDY.replace(ignore_eos=True), skeleton=headings, section_tokens=1000)
    assert [section.error is None for section in output.sections] == [True, True, False, True]
    assert "the prompt does not fit the context" in str(output.sections[2].error)
    assert [len(each.prompt_token_ids) + len(each.token_ids) for each in output.sections if each.error is None] == [512] * 3
    assert output.text == joined(output) and is_idle(tiny_llm)


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"n": 2}, {}, "got n=2; allowed: n=1"),
        ({"temperature": 1.0, "beam_width": 3}, {}, "got beam_width=3"),
        ({"logprobs": 1}, {}, "got logprobs=1"),
        ({"min_tokens": 20}, {"section_tokens": 10}, "min_tokens=20"),
        ({}, {"section_tokens": 0}, "section_tokens is out of range"),
        ({}, {"max_sections": 1}, "max_sections is out of range"),
        ({}, {"max_sections": 3}, "wrong number of headings"),
        ({}, {"router": "no"}, "router is no switch"),
        ({}, {"cache_salt": 3}, "cache_salt is not a text"),
        ({}, {"thinking": True}, "no chat template"),
        ({}, {"question": " "}, "there is no question"),
        ({}, {"question": ["a"]}, "there is no question"),
        ({}, {"question": "tips " * 600}, "leaves no room"),
    ],
)
def test_wrong_arguments_are_one_sentence_before_anything_runs(
    tiny_llm: LLM, changes: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    steps = tiny_llm.stats()["engine"]["steps"]
    arguments = {"question": QUESTION, "skeleton": HEADINGS, **arguments}
    with pytest.raises(InvalidRequest, match=message):
        tiny_llm.stream_sections(arguments.pop("question"), GREEDY.replace(**changes), **arguments)
    assert tiny_llm.stats()["engine"]["steps"] == steps


def test_a_checkpoint_without_a_tokenizer_is_refused(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(InvalidRequest, match="no tokenizer, so a question cannot be text"):
        LLM(str(tiny("llama-gqa")), kv_cache_memory="1MiB").generate_sections(QUESTION)


def test_stored_results_are_replayed(folder: str) -> None:
    llm = LLM(folder, **OPTIONS, result_cache="memory:")
    first = llm.generate_sections(QUESTION, GREEDY, skeleton=HEADINGS, section_tokens=TOKENS)
    again = llm.generate_sections(QUESTION, GREEDY, skeleton=HEADINGS, section_tokens=TOKENS)
    assert again.text == first.text
    assert all(section.metrics.from_result_cache for section in again.sections)
    assert is_idle(llm)


def test_a_stream_that_is_left_ends_its_requests(tiny_llm: LLM) -> None:
    other = tiny_llm.stream("Another", GREEDY.replace(max_tokens=30, ignore_eos=True))
    tokens = [*next(other).token_ids]
    deltas: Any = tiny_llm.stream_sections(QUESTION, GREEDY, skeleton=HEADINGS)
    assert isinstance(next(deltas), SectionDelta)
    deltas.close()
    tokens += [token for delta in other for token in delta.token_ids]
    assert len(tokens) == 30 and is_idle(tiny_llm)


@pytest.fixture
def interrupt_after() -> Iterator[Callable[[float], None]]:
    """A function that sends SIGINT to this process after some seconds; 0 calls it off."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    previous = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)
    signal.signal(signal.SIGINT, handler)


def test_an_interrupt_leaves_nothing_behind(tiny_llm: LLM, interrupt_after: Callable[[float], None]) -> None:
    params = GREEDY.replace(ignore_eos=True)
    expected = tiny_llm.generate_sections(QUESTION, params, skeleton=HEADINGS[:3], section_tokens=8).text
    num_interrupted = 0
    for number in range(20):
        try:
            interrupt_after(10 ** (-4 + number / 10))
            try:
                tiny_llm.generate_sections(QUESTION, params, skeleton=["a", "b", "c", "d", "Summary"], section_tokens=30)
            finally:
                interrupt_after(0)
        except KeyboardInterrupt:
            num_interrupted += 1
        assert is_idle(tiny_llm)
        assert tiny_llm.generate_sections(QUESTION, params, skeleton=HEADINGS[:3], section_tokens=8).text == expected
    assert num_interrupted >= 10
