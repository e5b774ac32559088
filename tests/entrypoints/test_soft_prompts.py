"""Soft prompts in the engine: the tokens of transformers with ``inputs_embeds``, under every way to schedule and to decode."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_heads import write_heads
from tests.tiny_models import tiny_reference
from torch import Tensor

from hasten import LLM, AsyncLLM, InvalidRequest, PrefixPin, RequestOutput, SamplingParams, SoftPrompt
from hasten.checkpoints.formats.soft_prompt import TrainedFor, write_soft_prompt
from hasten.core.errors import CheckpointError, PromptTooLong
from hasten.entrypoints.soft_prompts import SoftPromptWarning
from hasten.runners.soft_prompt_table import SoftPromptTable
from hasten.scheduling.sequence import Sequence as ScheduledSequence

OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "threads": 1,
    "block_size": 4,
    "kv_cache_memory": "1MiB",
    "max_model_len": 96,
    "speculative_method": "off",
}
IDS = [5, 9, 7, 11, 5, 9, 7, 12, 5, 9]
NEW = 10
GREEDY = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True)
NAMES = ["llama-gqa", "qwen3-tied-bias", "mistral-window", "gpt2"]


def embeddings(seed: int, num_tokens: int = 7) -> Tensor:
    return torch.randn(num_tokens, 64, generator=torch.Generator().manual_seed(seed)) * 0.4


def write(folder: Path, rows: Tensor, base_model: str = "llama-gqa") -> Path:
    write_soft_prompt(folder, rows, TrainedFor(base_model=base_model, num_layers=3, num_attention_heads=4))
    return folder


def prompt(token_ids: Sequence[int] = IDS) -> dict[str, Any]:
    return {"prompt_token_ids": list(token_ids)}


def run(llm: LLM, soft_prompt: SoftPrompt | None, params: SamplingParams = GREEDY, ids: Sequence[int] = IDS) -> RequestOutput:
    (output,) = llm.generate(prompt(ids), params, soft_prompt=soft_prompt, use_tqdm=False)
    assert output.error is None
    return output


def tokens(output: RequestOutput) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in output.outputs]


class Reference:
    """Greedy decoding by transformers, on the rows of a soft prompt and the embeddings of tokens."""

    def __init__(self, name: str) -> None:
        self.model = tiny_reference(name)

    def logits(self, rows: Tensor | None, ids: Sequence[int]) -> Tensor:
        """Return the logits after the last token, [V]."""
        embedded = self.model.get_input_embeddings()(torch.tensor(ids))
        return self.model(inputs_embeds=(embedded if rows is None else torch.cat([rows, embedded]))[None]).logits[0, -1]

    def generate(
        self,
        rows: Tensor | None,
        ids: Sequence[int] = IDS,
        process: Callable[[Tensor, list[int]], Tensor] = lambda logits, _: logits,
    ) -> tuple[int, ...]:
        seen = list(ids)
        for _ in range(NEW):
            seen.append(int(process(self.logits(rows, seen), seen).argmax()))
        return tuple(seen[len(ids) :])


@pytest.fixture(scope="module")
def llama() -> Reference:
    return Reference("llama-gqa")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "soft", embeddings(1))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("name", NAMES)
def test_log_probabilities_and_tokens_are_those_of_transformers(
    name: str, backend: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    reference, rows = Reference(name), embeddings(2)
    llm = LLM(str(tiny(name)), **OPTIONS, backend=backend)
    output = run(llm, llm.load_soft_prompt(write(tmp_path, rows, name)), GREEDY.replace(logprobs=20))
    completion, seen = output.outputs[0], list(IDS)
    assert completion.logprobs is not None
    for token, logprob in zip(completion.token_ids, completion.logprobs, strict=True):
        expected = reference.logits(rows, seen).log_softmax(-1)
        assert token == int(expected.argmax())
        assert all(abs(float(expected[other]) - value) < 1e-4 for other, value in logprob.top)
        seen.append(token)
    assert output.prompt_token_ids == tuple(IDS)
    assert output.metrics.num_prompt_tokens == 7 + len(IDS)
    assert completion.token_ids != reference.generate(None), "this soft prompt changes nothing"


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 8}, {"max_num_batched_tokens": 8, "prefix_caching": False}])
def test_batches_mix_soft_prompts_in_chunks_and_after_preemption(
    backend: str, options: dict[str, Any], llama: Reference, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    small = {**OPTIONS, "kv_cache_memory": {"cpu": 96, "torch": 24}[backend] * 2**10, "max_model_len": 32, "max_num_seqs": 6}
    llm = LLM(str(tiny("llama-gqa")), **{**small, **options}, backend=backend)
    rows = [None, embeddings(1), embeddings(2, 3), embeddings(1), None, embeddings(3, 9)]
    soft_prompts = [None if row is None else llm.load_soft_prompt(write(tmp_path / str(i), row)) for i, row in enumerate(rows)]
    prompts = [IDS[i:] for i in range(len(rows))]
    outputs = llm.generate([prompt(ids) for ids in prompts], GREEDY, soft_prompt=soft_prompts, use_tqdm=False)
    assert [output.error for output in outputs] == [None] * len(rows)
    assert [tokens(o) for o in outputs] == [[llama.generate(row, ids)] for row, ids in zip(rows, prompts, strict=True)]
    assert sum(output.metrics.num_preemptions for output in outputs) > 0


def check_prefix_cache(llm: LLM, llama: Reference, folder: Path) -> None:
    """A prompt finds the blocks of its own soft prompt, and of no other one."""
    first, second = embeddings(1, 8), embeddings(2, 8)
    for rows, num_cached in ((first, 0), (first, 16), (second, 0), (None, 0), (first, 16), (second, 16), (None, 8)):
        soft_prompt = None if rows is None else llm.load_soft_prompt(write(folder, rows))
        output = run(llm, soft_prompt)
        assert (tokens(output), output.metrics.num_cached_tokens) == ([llama.generate(rows)], num_cached)


def test_prefix_cache_hits_need_the_same_soft_prompt(llama: Reference, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    llm = LLM(str(tiny("llama-gqa")), **OPTIONS)
    check_prefix_cache(llm, llama, tmp_path)
    computed = llm.stats()["engine"]["computed_tokens"]
    run(llm, llm.load_soft_prompt(write(tmp_path, embeddings(1, 8))))
    assert llm.stats()["engine"]["computed_tokens"] - computed == 18 - 16 + NEW - 1


def test_virtual_ids_that_are_used_again_are_caught(
    llama: Reference, tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(self: SoftPromptTable, rows: Tensor) -> str:
        self._rows_NE = torch.empty(0, 64)
        return original(self, rows)

    original = SoftPromptTable.add
    monkeypatch.setattr(SoftPromptTable, "add", add)
    with pytest.raises(AssertionError):
        check_prefix_cache(LLM(str(tiny("llama-gqa")), **OPTIONS), llama, tmp_path)


def repetition(logits: Tensor, seen: list[int]) -> Tensor:
    """The penalty 1.7 on each token of the prompt and the output."""
    index = torch.tensor(sorted(set(seen)))
    values = logits[index]
    return logits.index_copy(0, index, torch.where(values > 0, values / 1.7, values * 1.7))


def no_repeated_pair(logits: Tensor, seen: list[int]) -> Tensor:
    banned = [after for before, after in pairwise(seen) if before == seen[-1]]
    return logits.index_fill(0, torch.tensor(banned, dtype=torch.int64), -torch.inf)


def frequency(logits: Tensor, seen: list[int]) -> Tensor:
    output = torch.tensor(seen[len(IDS) :], dtype=torch.int64)
    return logits - 1.5 * torch.bincount(output, minlength=len(logits))


PROCESSORS: dict[str, tuple[dict[str, Any], Callable[[Tensor, list[int]], Tensor]]] = {
    "repetition": ({"repetition_penalty": 1.7}, repetition),
    "pairs": ({"no_repeat_ngram_size": 2}, no_repeated_pair),
    "frequency": ({"frequency_penalty": 1.5}, frequency),
}


def check_processor(llm: LLM, llama: Reference, name: str, folder: Path) -> None:
    settings, process = PROCESSORS[name]
    output = run(llm, llm.load_soft_prompt(folder), GREEDY.replace(**settings))
    assert tokens(output) == [llama.generate(embeddings(1), process=process)]


@pytest.mark.parametrize("name", PROCESSORS)
def test_penalties_count_no_virtual_token(name: str, llama: Reference, tiny: Callable[[str], Path], folder: Path) -> None:
    check_processor(LLM(str(tiny("llama-gqa")), **OPTIONS), llama, name, folder)


def test_penalties_that_count_virtual_tokens_are_caught(
    llama: Reference, tiny: Callable[[str], Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScheduledSequence, "vocabulary_token_ids", property(lambda self: self.token_ids))
    with pytest.raises(AssertionError):
        check_processor(LLM(str(tiny("llama-gqa")), **OPTIONS), llama, "frequency", folder)


def test_samples_and_beams_do_not_depend_on_the_batch(llama: Reference, tiny: Callable[[str], Path], folder: Path) -> None:
    model = str(tiny("llama-gqa"))
    sampled = GREEDY.replace(temperature=1.0, seed=3, n=3)
    beams = GREEDY.replace(beam_width=3, n=3)
    plain = LLM(model, **OPTIONS, prefix_caching=False)
    chunked = LLM(model, **{**OPTIONS, "max_num_batched_tokens": 8, "max_num_seqs": 6})
    for params in (sampled, beams):
        expected = tokens(run(plain, plain.load_soft_prompt(folder), params))
        soft_prompt = chunked.load_soft_prompt(folder)
        outputs = chunked.generate(
            [prompt(), prompt([3, 4]), prompt()], params, soft_prompt=[soft_prompt, soft_prompt, None], use_tqdm=False
        )
        assert tokens(outputs[0]) == expected and tokens(outputs[2]) != expected
        assert len(set(expected)) == 3
    embedded = torch.cat([embeddings(1), llama.model.get_input_embeddings()(torch.tensor(IDS))])[None]
    found = llama.model.generate(
        inputs_embeds=embedded,
        attention_mask=torch.ones(embedded.shape[:2], dtype=torch.int64),
        num_beams=3,
        num_return_sequences=3,
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=-1,
        length_penalty=beams.length_penalty,
    )
    assert tokens(run(plain, plain.load_soft_prompt(folder), beams)) == [tuple(row.tolist()) for row in found]


CONTINUATIONS = [[7], [8, 3], [4, 9, 11, 30, 6, 2, 44], [21, 5, 5]]


def expected_scores(reference: Reference, rows: Tensor | None) -> list[list[float]]:
    """Return the log-probabilities of each continuation, each token from a pass of its own over all before it."""
    return [
        [float(reference.logits(rows, IDS + after[:i]).log_softmax(-1)[token]) for i, token in enumerate(after)]
        for after in CONTINUATIONS
    ]


def check_scores(llm: LLM, reference: Reference, soft_prompts: Sequence[tuple[Tensor | None, SoftPrompt | None]]) -> None:
    for rows, soft_prompt in soft_prompts:
        scores = llm.score(prompt(), [{"token_ids": ids} for ids in CONTINUATIONS], soft_prompt=soft_prompt)
        for score, expected in zip(scores, expected_scores(reference, rows), strict=True):
            assert score.logprobs == pytest.approx(expected, abs=1e-4)
    kv = llm.engine.scheduler.kv
    kv.check()
    assert [allocator.num_held for allocator in kv.allocators] == [0] * len(kv.allocators)


@pytest.mark.parametrize("options", [{"backend": "cpu"}, {"backend": "torch"}, {"max_num_batched_tokens": 8, "max_num_seqs": 6}])
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_transformers(name: str, options: dict[str, Any], tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Soft prompts of whole blocks take turns, so a prefix of another one would be found if it could be."""
    llm, all_rows = LLM(str(tiny(name)), **OPTIONS, **options), [embeddings(1, 8), embeddings(2, 8), None]
    loaded = [(rows, None if rows is None else llm.load_soft_prompt(write(tmp_path, rows, name))) for rows in all_rows]
    check_scores(llm, Reference(name), loaded + loaded)


def test_a_choice_after_a_soft_prompt_is_the_likeliest(llama: Reference, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    llm = LLM(str(tiny("llama-gqa")), **OPTIONS)
    found = set()
    for seed in range(8):
        rows = embeddings(seed)
        soft_prompt = llm.load_soft_prompt(write(tmp_path, rows))
        choice = llm.choose(prompt(), [{"token_ids": [token]} for token in range(3, 100)], soft_prompt=soft_prompt)
        assert choice.index == int(llama.logits(rows, IDS)[3:100].argmax())
        found.add(choice.index)
    assert len(found) > 1, "the soft prompt decides nothing"


def test_requests_and_scores_share_the_blocks_of_a_soft_prompt(
    llama: Reference, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    llm = LLM(str(tiny("llama-gqa")), **OPTIONS)
    soft_prompt = llm.load_soft_prompt(write(tmp_path, embeddings(1, 8)))
    llm.score(prompt(), [{"token_ids": [7, 8]}], soft_prompt=soft_prompt)
    for one, num_cached in ((soft_prompt, 16), (None, 0)):
        assert run(llm, one).metrics.num_cached_tokens == num_cached
    check_scores(llm, llama, [(embeddings(1, 8), soft_prompt), (None, None)])


def test_scores_that_do_not_fit_are_one_sentence(tiny: Callable[[str], Path], folder: Path) -> None:
    llm, other = (LLM(str(tiny("llama-gqa")), **{**OPTIONS, "max_model_len": 24}) for _ in range(2))
    soft_prompt = llm.load_soft_prompt(folder)
    assert len(llm.score(prompt(), [{"token_ids": [5] * 7}], soft_prompt=soft_prompt)[0].logprobs) == 7
    with pytest.raises(PromptTooLong, match=r"got 7 virtual tokens \+ 10 \+ 8 = 25 tokens; allowed: up to 24"):
        llm.score(prompt(), [{"token_ids": [5] * 8}], soft_prompt=soft_prompt)
    with pytest.raises(PromptTooLong, match="got 17 tokens after 7 virtual tokens"):
        llm.score(prompt([5] * 17), [{"token_ids": [5]}], soft_prompt=soft_prompt)
    with pytest.raises(InvalidRequest, match="has not loaded the soft prompt"):
        other.choose(prompt(), [{"token_ids": [5]}], soft_prompt=soft_prompt)
    wrong: Any = [soft_prompt]
    with pytest.raises(InvalidRequest, match="soft_prompt has the wrong type: got list"):
        llm.score(prompt(), [{"token_ids": [5]}], soft_prompt=wrong)


SPECULATION: dict[str, dict[str, Any]] = {
    "prompt_lookup": {},
    "suffix": {},
    "draft_model": {"draft_model": "llama-gqa"},
    "medusa": {"draft_heads": "medusa"},
    "eagle": {"draft_heads": "eagle"},
    "self_speculation": {"self_draft_layers": 2},
}


@pytest.mark.parametrize("method", SPECULATION)
def test_speculation_changes_no_token(method: str, tiny: Callable[[str], Path], folder: Path, tmp_path: Path) -> None:
    model, given = tiny("llama-gqa"), dict(SPECULATION[method])
    if "draft_heads" in given:
        write_heads(given["draft_heads"], tmp_path / "heads", model)
        given["draft_heads"] = str(tmp_path / "heads")
    if "draft_model" in given:
        given["draft_model"] = str(model)
    plain = LLM(str(model), **OPTIONS)
    given |= {"speculative_method": method, "num_speculative_tokens": 3, "max_num_batched_tokens": 16, "max_num_seqs": 8}
    llm = LLM(str(model), **{**OPTIONS, **given})
    params = [GREEDY.replace(max_tokens=40), GREEDY.replace(temperature=0.7, seed=1, n=2, repetition_penalty=1.2)]
    for each in params:
        outputs = [
            one.generate(
                [prompt(), prompt(IDS[2:]), prompt()],
                each,
                soft_prompt=[(soft := one.load_soft_prompt(folder)), soft, None],
                use_tqdm=False,
            )
            for one in (plain, llm)
        ]
        expected, actual = ([tokens(output) for output in each] for each in outputs)
        assert actual == expected
        assert method in ("prompt_lookup", "suffix") or outputs[1][0].metrics.num_drafted_tokens > 0
    assert llm.stats()["engine"]["drafted_tokens"] > 0 and llm.engine._drafter is not None, "the drafter raised"


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_early_exits_start_from_the_virtual_embeddings(
    backend: str, llama: Reference, tiny: Callable[[str], Path], folder: Path
) -> None:
    llm = LLM(str(tiny("llama-gqa")), **OPTIONS, backend=backend)
    params = SamplingParams(temperature=0, max_tokens=1, exit_rule="fixed", exit_layer=2, logprobs=20)
    completion = run(llm, llm.load_soft_prompt(folder), params).outputs[0]
    embedded = torch.cat([embeddings(1), llama.model.get_input_embeddings()(torch.tensor(IDS))])[None]
    hidden = llama.model(inputs_embeds=embedded, output_hidden_states=True).hidden_states[2][0, -1]
    expected = llama.model.lm_head(llama.model.model.norm(hidden)).log_softmax(-1)
    assert completion.logprobs is not None
    assert all(abs(float(expected[token]) - value) < 1e-4 for token, value in completion.logprobs[0].top)


def test_a_pin_holds_the_virtual_tokens_too(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    llm = LLM(str(tiny("llama-gqa")), **OPTIONS)
    soft_prompt = llm.load_soft_prompt(write(tmp_path, embeddings(1, 8)))
    pin = PrefixPin(num_tokens=8, seconds=60)
    llm.generate(prompt(), GREEDY, soft_prompt=soft_prompt, pins=(pin,), use_tqdm=False)
    assert [each["num_tokens"] for each in llm.stats()["pins"]["pins"]] == [16]


def test_a_stored_result_belongs_to_its_soft_prompt(
    llama: Reference, tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "cache"))
    rows = [embeddings(1), embeddings(2), None]
    for order in ((0, 1, 2), (1, 0, 2)):  # the second engine gives the same soft prompts other ids
        with LLM(str(tiny("llama-gqa")), **OPTIONS, result_cache=f"sqlite:{tmp_path / 'results'}") as llm:
            for index in order:
                row = rows[index]
                output = run(llm, None if row is None else llm.load_soft_prompt(write(tmp_path / "soft", row)))
                assert tokens(output) == [llama.generate(row)]
            hits = llm.stats()["result_cache"]["hits"]
        assert hits == (0 if order[0] == 0 else 3)


def test_async_requests_name_a_soft_prompt(llama: Reference, tiny: Callable[[str], Path], folder: Path) -> None:
    async def generate() -> list[RequestOutput]:
        async with AsyncLLM(str(tiny("llama-gqa")), **OPTIONS) as llm:
            soft_prompt = await llm.load_soft_prompt(folder)
            return list(
                await asyncio.gather(llm.generate(prompt(), GREEDY, soft_prompt=soft_prompt), llm.generate(prompt(), GREEDY))
            )

    outputs = asyncio.run(generate())
    assert [tokens(output) for output in outputs] == [[llama.generate(embeddings(1))], [llama.generate(None)]]


def test_what_does_not_fit_is_one_sentence(tiny: Callable[[str], Path], folder: Path, tmp_path: Path) -> None:
    llm, other = (LLM(str(tiny("llama-gqa")), **{**OPTIONS, "max_model_len": 24}) for _ in range(2))
    soft_prompt = llm.load_soft_prompt(folder)
    assert soft_prompt.num_tokens == 7 and llm.load_soft_prompt(folder) == soft_prompt
    with pytest.raises(PromptTooLong, match="got 17 tokens after 7 virtual tokens; allowed: up to 16"):
        llm.generate(prompt([5] * 17), GREEDY, soft_prompt=soft_prompt)
    with pytest.raises(PromptTooLong, match="23 prompt \\+ 10 new tokens = 33; allowed: up to 24"):
        llm.generate(prompt([5] * 16), GREEDY, soft_prompt=soft_prompt)
    with pytest.raises(InvalidRequest, match="has not loaded the soft prompt"):
        other.generate(prompt(), GREEDY, soft_prompt=soft_prompt)
    with pytest.raises(InvalidRequest, match="soft_prompt has the wrong type: got int"):
        list(llm.stream(prompt(), GREEDY, soft_prompt=3))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="soft_prompt and prompts differ in number"):
        llm.generate(prompt(), GREEDY, soft_prompt=[soft_prompt, None])
    for call in (llm.generate, lambda ids: llm.save_kv(ids, tmp_path / "kv")):
        with pytest.raises(InvalidRequest, match="outside the vocabulary: got 101"):
            call(prompt([101, 5, 5, 5, 5]))
    with pytest.raises(CheckpointError, match="got 23 virtual tokens; allowed: up to 22"):
        llm.load_soft_prompt(write(tmp_path / "long", embeddings(1, 23)))


def test_a_soft_prompt_of_another_model_is_loaded_with_a_warning(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    llm = LLM(str(tiny("llama-gqa")), **OPTIONS)
    with pytest.warns(SoftPromptWarning, match="trained for 'org/another', and this model is llama-gqa"):
        llm.load_soft_prompt(write(tmp_path, embeddings(1), "org/another"))
