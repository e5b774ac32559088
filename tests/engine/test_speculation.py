"""Guessing tokens ahead changes how fast an answer comes and nothing else (promises P6 and P9), on kernels whose rows are the same
bits in any batch.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hasten
from hasten import LLM, RequestOutput, SamplingParams
from hasten.checkpoints.hub import resolve
from hasten.core.draft import Draft
from hasten.core.errors import InvalidOption
from hasten.core.result import TokenOrigin
from hasten.entrypoints.wiring import speculative_setup
from hasten.quality.documents import read_texts
from hasten.speculative.drafters import draft_model
from hasten.speculative.drafters.base import DraftRequest, TargetOutput
from tests.engine.free_steps import free_steps
from tests.exhaustive import repeats
from tests.scheduling.world import random_tree
from tests.tiny_models import SIZES

HELDOUT = Path(hasten.__file__).parent / "demo" / "heldout.jsonl"
NUM_PROMPTS, NEW_TOKENS = repeats("drafters"), 20
SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.1, "presence_penalty": 0.3, "frequency_penalty": 0.2},
    {"temperature": 0.8, "seed": 11},
    {"temperature": 1.0, "seed": 12, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.2, "seed": 13, "typical_p": 0.9, "no_repeat_ngram_size": 3},
    {"temperature": 0.7, "seed": 14, "n": 2, "stop": [" the", "self"]},
    {"temperature": 0.0, "min_tokens": 4, "logprobs": 3, "logit_bias": {5: 1.5}},
    {"temperature": 0.0, "beam_width": 3, "n": 2},
)


class Knowing:
    """A ``Drafter`` that is told the answers; after ``honest`` right tokens it lies."""

    aux_layer_indices = ()

    def __init__(self, answers: dict[tuple[int, ...], list[RequestOutput]], honest: int, lies: int) -> None:
        self._answers, self._honest, self._lies = answers, honest, lies
        self._draw = random.Random(3)

    def propose(self, lines: Sequence[DraftRequest], seen: TargetOutput) -> list[Draft]:
        return [self._draft(self._right(line), [self._draw.randrange(8192) for _ in range(self._lies)]) for line in lines]

    def _draft(self, right: Sequence[int], lies: Sequence[int]) -> Draft:
        return Draft.chain([*right, *lies])

    def _right(self, line: DraftRequest) -> tuple[int, ...]:
        prompt, params = line.request.prompt_token_ids, line.request.params
        done = len(line.token_ids) - len(prompt)
        for output in self._answers[prompt]:
            same = params.greedy or output.seed == params.seed
            known = output.outputs[line.answer_index].token_ids if same else ()
            if known[:done] == tuple(line.token_ids[len(prompt) :]):
                return known[done : done + self._honest]
        return ()


def demo(**options: Any) -> LLM:
    given = {"speculative_method": "off", "kv_cache_memory": "64MiB", **options}
    with free_steps():
        return LLM("demo", **{"quantization": "int8", "max_model_len": 128, "threads": 2, **given})


@pytest.fixture(scope="module")
def requests() -> list[tuple[dict[str, list[int]], SamplingParams]]:
    """Pieces of held-out text, half of them repeating a part of themselves, and all settings in turn."""
    tokenizer = demo().tokenizer
    draw = random.Random(1)
    ids = [token for text in read_texts(HELDOUT) for token in tokenizer.encode(text)]
    made = []
    for i in range(NUM_PROMPTS):
        begin = draw.randrange(len(ids) - 60)
        prompt = ids[begin : begin + draw.randint(4, 40)]
        if i % 2:
            prompt += prompt[: len(prompt) // 2]
        params = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=i % 3 == 0, **SETTINGS[i % len(SETTINGS)])
        made.append(({"prompt_token_ids": prompt}, params))
    return made


def generate(llm: LLM, requests: list[tuple[dict[str, list[int]], SamplingParams]]) -> list[RequestOutput]:
    prompts, params = zip(*requests, strict=True)
    return llm.generate(list(prompts), list(params), use_tqdm=False)


@pytest.fixture(scope="module")
def plain(requests: list[tuple[dict[str, list[int]], SamplingParams]]) -> tuple[list[RequestOutput], int]:
    """The outputs without drafts, and how many steps they took."""
    llm = demo()
    return generate(llm, requests), llm.engine.stats.num_steps


def assert_same(found: list[RequestOutput], expected: list[RequestOutput]) -> None:
    for mine, right in zip(found, expected, strict=True):
        assert mine.outputs == right.outputs


def knowing(plain: list[RequestOutput], honest: int, lies: int, kind: type[Knowing] = Knowing) -> Knowing:
    answers: dict[tuple[int, ...], list[RequestOutput]] = {}
    for output in plain:
        answers.setdefault(output.prompt_token_ids, []).append(output)
    return kind(answers, honest, lies)


@pytest.mark.parametrize("speculation", ["prompt_lookup", "suffix", "auto"])
def test_guesses_from_text_change_no_output(speculation: str, requests, plain) -> None:
    llm = demo(speculative_method=speculation)
    found = generate(llm, requests)
    assert_same(found, plain[0])
    stats = llm.engine.stats
    assert stats.speed_up is not None
    assert 0 < stats.num_accepted_tokens < stats.num_drafted_tokens
    assert sum(output.metrics.num_accepted_tokens for output in found) == stats.num_accepted_tokens
    assert sum(output.metrics.num_drafted_tokens for output in found) == stats.num_drafted_tokens


@pytest.mark.parametrize(("honest", "lies"), [(0, 5), (2, 3), (7, 0)])
def test_no_drafter_changes_any_output_right_or_wrong(honest: int, lies: int, requests, plain) -> None:
    llm = demo()
    llm.engine._drafter = knowing(plain[0], honest, lies)
    assert_same(generate(llm, requests), plain[0])
    accepted, drafted = llm.engine.stats.num_accepted_tokens, llm.engine.stats.num_drafted_tokens
    assert drafted > 1000
    if honest == 0:
        assert accepted < drafted / 100  # a lie may hit by chance
    if lies == 0:
        assert drafted - accepted < 1.2 * NUM_PROMPTS  # an answer's last token is drawn, whoever guessed it; some ask for two
        assert accepted > drafted * 0.9
        assert llm.engine.stats.num_steps < plain[1] * 0.8  # beams take theirs


class Branching(Knowing):
    """The same, on a tree: the truth may hang anywhere among the lies."""

    def _draft(self, right: Sequence[int], lies: Sequence[int]) -> Draft:
        return random_tree(self._draw, right, len(lies))


@pytest.mark.parametrize("honest", [1, 4])
def test_trees_change_no_output_either(honest: int, requests, plain) -> None:
    llm = demo()
    llm.engine._drafter = knowing(plain[0], honest, 9, Branching)
    assert_same(generate(llm, requests), plain[0])
    stats = llm.engine.stats
    assert stats.num_accepted_tokens > 0.7 * stats.num_drafts  # all but the ends of answers
    assert stats.num_drafted_tokens > 6 * stats.num_drafts


def test_drafts_give_way_where_blocks_and_tokens_are_short(requests, plain) -> None:
    """A pool that forces preemption and a step of few tokens: nothing changes, nobody starves."""
    llm = demo(kv_cache_memory="704KiB", max_num_batched_tokens=24, max_num_seqs=12)
    llm.engine._drafter = knowing(plain[0], 3, 2)
    found = generate(llm, requests[:120])
    assert_same(found, plain[0][:120])
    assert sum(output.metrics.num_preemptions for output in found) > 0
    assert llm.engine.stats.num_accepted_tokens > 100


@pytest.mark.parametrize("kind", [Knowing, Branching])
def test_every_token_tells_how_it_came(kind: type[Knowing], requests, plain) -> None:
    """A step of a line gives its accepted guesses, and one token more: a correction, a bonus, or the whole of the step."""
    llm = demo()
    llm.engine._drafter = knowing(plain[0], 3, 2, kind)
    deltas = []
    for prompt, params in requests[:24]:
        if params.beam_width is None:
            deltas += list(llm.stream(prompt, params))
    origins = [delta.origins for delta in deltas]
    assert all(len(delta.origins) == len(delta.token_ids) for delta in deltas)
    ends = Counter()
    for given, delta in zip(origins, deltas, strict=True):
        *before, last = given
        assert all(origin is TokenOrigin.DRAFT for origin in before)
        assert last is not TokenOrigin.DRAFT or delta.finish_reason is not None
        ends[last] += 1
    assert ends[TokenOrigin.CORRECTION] + ends[TokenOrigin.BONUS] > 50 and ends[TokenOrigin.STEP] >= 15
    stats = llm.engine.stats
    assert stats.num_accepted_tokens == sum(origin is TokenOrigin.DRAFT for given in origins for origin in given)
    assert stats.acceptance_by_position[0] > 0.9 and stats.mean_accepted_length == 1 + stats.num_accepted_tokens / stats.num_drafts
    whole = [delta.output for delta in deltas if delta.output is not None]
    told = [origin for output in whole for answer in output.outputs for origin in answer.origins]
    assert Counter(told) == Counter(origin for given in origins for origin in given)


@pytest.mark.parametrize("rule", ["rejection", "typical"])
def test_other_rules_change_no_greedy_output_and_are_named(rule: str, requests, plain) -> None:
    llm = demo()
    llm.engine._drafter = knowing(plain[0], 2, 3, Branching)
    greedy = [
        (i, prompt, params) for i, (prompt, params) in enumerate(requests[:80]) if params.greedy and params.beam_width is None
    ]
    found = llm.generate([p for _, p, _ in greedy], [params.replace(acceptance=rule) for _, _, params in greedy], use_tqdm=False)
    assert [output.outputs for output in found] == [plain[0][i].outputs for i, _, _ in greedy]
    assert {output.metrics.acceptance for output in found} == {rule}


def test_an_unknown_drafter_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InvalidOption, match="prompt_lookup"):
        LLM("demo", speculative_method="prompt_lokup")


def test_a_draft_model_changes_no_output(requests, plain) -> None:
    llm = demo(speculative_method="draft_model", draft_model="demo-draft")
    assert_same(generate(llm, requests), plain[0])
    stats = llm.engine.stats
    assert 0 < stats.num_accepted_tokens < stats.num_drafted_tokens
    assert llm.describe()["draft_model"].endswith("draft")


def test_an_eagle_head_changes_no_output(requests, plain) -> None:
    llm = demo(speculative_method="eagle", draft_heads="demo-eagle")
    assert_same(generate(llm, requests), plain[0])
    assert llm.engine.stats.num_accepted_tokens > 0.5 * llm.engine.stats.num_drafts


@pytest.mark.parametrize(
    "given", [{"draft_model": "demo-draft"}, {"draft_heads": "demo-eagle"}, {"draft_heads": "demo-medusa"}, {"exits": "demo-exits"}]
)
def test_what_guesses_in_four_bits_is_nearly_as_often_right(given: dict[str, str], requests) -> None:
    kinds = {"demo-draft": "draft_model", "demo-eagle": "eagle", "demo-medusa": "medusa", "demo-exits": "self_speculation"}
    kind = kinds[next(iter(given.values()))]
    accepted, weight_bytes = {}, {}
    for wanted, found in (("auto", "int4"), ("int8", "int8"), ("int4-weight-only", "int4-weight-only")):
        llm = demo(speculative_method=kind, **given, draft_quantization=wanted)
        about = llm.describe()
        assert about["draft_quantization"] == found
        weight_bytes[found] = about["draft_weight_bytes"]
        generate(llm, requests[:60])
        accepted[found] = llm.engine.stats.num_accepted_tokens
    assert 0 < weight_bytes["int4"] < 0.65 * weight_bytes["int8"], weight_bytes
    assert accepted["int4"] > 0.85 * accepted["int8"] and accepted["int4-weight-only"] > 0.85 * accepted["int8"], accepted
    assert accepted["int4"] != accepted["int8"], "the weights are the same"


def test_medusa_heads_change_no_output(requests, plain) -> None:
    llm = demo(speculative_method="medusa", draft_heads="demo-medusa")
    assert_same(generate(llm, requests), plain[0])
    stats = llm.engine.stats
    assert 0.3 * stats.num_drafts < stats.num_accepted_tokens < stats.num_drafted_tokens


def test_what_steps_take_is_followed_whoever_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured in a bad moment, when the model was loaded."""
    monkeypatch.setattr(speculative_setup, "measure_step_seconds", lambda *_: {1: 10.0, 64: 20.0})
    llm = LLM("demo", speculative_method="draft_model", draft_model="demo-draft", max_model_len=128, kv_cache_memory="64MiB")
    llm.generate("def read(", SamplingParams(temperature=0, max_tokens=96, ignore_eos=True), use_tqdm=False)
    costs = llm.engine._costs
    assert costs is not None
    assert costs.seconds(1) < 1


@pytest.mark.parametrize("memory", ["64MiB", "1MiB"])
def test_the_models_own_first_layers_change_no_output(memory: str, requests, plain) -> None:
    """Their keys and values lie in the model's own blocks: also where these are short, and requests are preempted."""
    llm = demo(speculative_method="self_speculation", self_draft_layers=6, kv_cache_memory=memory)
    found = generate(llm, requests)
    assert_same(found, plain[0])
    stats = llm.engine.stats
    assert 0.2 * stats.num_drafted_tokens < stats.num_accepted_tokens < stats.num_drafted_tokens
    assert any(output.metrics.num_preemptions for output in found) == (memory == "1MiB")
    llm.engine.scheduler.kv.check()


def test_first_layers_beside_other_drafters_and_early_exits_change_no_output(requests, plain) -> None:
    """auto takes guesses from text now and from the layers then; every fourth request leaves early and is nobody's business."""
    llm = demo(speculative_method="auto", self_draft_layers=6)
    mixed = [
        (prompt, params.replace(exit_rule="fixed", exit_layer=5) if i % 4 == 0 and params.beam_width is None else params)
        for i, (prompt, params) in enumerate(requests)
    ]
    for (_, params), mine, right in zip(mixed, generate(llm, mixed), plain[0], strict=True):
        assert mine.outputs == right.outputs or params.exit_rule == "fixed"
    assert llm.engine.stats.num_accepted_tokens > 0


def test_all_layers_but_none_are_refused_as_first_layers() -> None:
    with pytest.raises(InvalidOption, match=r"self_draft_layers=8.*1 to 7"):
        demo(speculative_method="self_speculation", self_draft_layers=8)


def test_a_model_that_drafts_for_itself_is_always_right(requests, plain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which needs its keys and values to be right after every step, and its noise to be the target's."""
    monkeypatch.setattr(draft_model, "RANKS", 1)  # no second choices beside the right one
    llm = demo(speculative_method="draft_model", draft_model="demo", draft_quantization="int8", num_speculative_tokens=5)
    found = generate(llm, requests)
    assert_same(found, plain[0])
    for output, (_, params) in zip(found, requests, strict=True):
        if params.ignore_eos and not params.stop and params.beam_width is None:
            assert output.metrics.num_accepted_tokens == output.metrics.num_drafted_tokens > 0, params
    assert llm.engine.stats.num_steps < plain[1] * 0.6


def test_a_draft_model_of_few_tokens_is_wrong_only_where_it_cannot_name_the_token(requests, plain, tmp_path: Path) -> None:
    """The model itself, given half of its vocabulary: a first guess is the right token wherever that is among them."""
    shutil.copytree(resolve("demo", None, quiet=True), tmp_path / "half")
    sayable = set(range(0, 8192, 2))
    save_file({"draft_ids": torch.arange(0, 8192, 2, dtype=torch.int32)}, tmp_path / "half" / "draft_ids.safetensors")
    llm = demo(
        speculative_method="draft_model", draft_model=str(tmp_path / "half"), draft_quantization="int8", num_speculative_tokens=3
    )
    drafter, first = llm.engine._drafter, {}

    class Watched:
        aux_layer_indices = ()

        def propose(self, lines: Sequence[DraftRequest], seen: TargetOutput) -> Sequence[Draft]:
            drafts = drafter.propose(lines, seen)
            for line, draft in zip(lines, drafts, strict=True):
                assert set(draft.token_ids) <= sayable
                written = len(line.token_ids) - len(line.request.prompt_token_ids)
                first[line.request.request_id, line.answer_index, written] = draft.token_ids[:1]
            return drafts

    llm.engine._drafter = Watched()
    kept = [i for i, (_, params) in enumerate(requests[:120]) if params.beam_width is None]
    found = generate(llm, [requests[i] for i in kept])
    assert_same(found, [plain[0][i] for i in kept])
    right = wrong = 0
    for output, place in zip(found, kept, strict=True):
        params = requests[place][1]
        if params.greedy:
            for completion in output.outputs:
                for written, token in enumerate(completion.token_ids):
                    guess = first.get((output.request_id, completion.index, written))
                    right += guess == (token,)
                    wrong += bool(guess) and guess != (token,)
                    assert not guess or guess == (token,) or token not in sayable
    assert min(right, wrong) > 50


def test_a_draft_model_of_few_tokens_is_judged_by_them(tmp_path: Path) -> None:
    """Rejection sampling weighs a guess by what it was drawn from; tokens that cannot be named had no chance there."""
    shutil.copytree(resolve("demo", None, quiet=True), tmp_path / "half")
    save_file({"draft_ids": torch.arange(0, 8192, 2, dtype=torch.int32)}, tmp_path / "half" / "draft_ids.safetensors")
    llm = demo(
        speculative_method="draft_model", draft_model=str(tmp_path / "half"), draft_quantization="int8", num_speculative_tokens=3
    )
    params = [SamplingParams(temperature=1.0, seed=i, max_tokens=16, ignore_eos=True, acceptance="rejection") for i in range(20)]
    outputs = llm.generate(["def main():\n"] * 20, params, use_tqdm=False)
    odd = [token % 2 for output in outputs for token in output.outputs[0].token_ids]
    assert all(output.error is None for output in outputs) and 0.2 < sum(odd) / len(odd) < 0.8
    assert llm.engine.stats.num_accepted_tokens > 0


def test_a_drafter_that_fails_is_asked_no_more(requests, plain, caplog) -> None:
    class Failing:
        calls, aux_layer_indices = 0, ()

        def propose(self, lines: Sequence[DraftRequest], seen: TargetOutput) -> list[Draft]:
            self.calls += 1
            if self.calls > 3:
                raise RuntimeError("injected by the test")
            return [Draft.chain((1, 2, 3)) for _ in lines]

    llm, failing = demo(), Failing()
    llm.engine._drafter = failing
    assert_same(generate(llm, requests[:40]), plain[0][:40])
    assert failing.calls == 4 and "speculation is off" in caplog.text


def test_a_draft_model_of_another_vocabulary_is_refused_with_both_numbers(tiny) -> None:
    with pytest.raises(InvalidOption, match="8192") as refused:
        demo(speculative_method="draft_model", draft_model=str(tiny("llama-gqa")))
    assert str(SIZES["vocab_size"]) in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [
        {"speculative_method": "draft_model"},
        {"speculative_method": "suffix", "draft_model": "demo-draft"},
        {"speculative_method": "medusa"},
        {"speculative_method": "eagle"},
        {"speculative_method": "off", "draft_heads": "somewhere"},
        {"num_speculative_tokens": 0},
        {"speculative_method": "self_speculation"},
        {"speculative_method": "suffix", "self_draft_layers": 4},
        {"self_draft_layers": 0},
        {"draft_quantization": "int8"},
        {"draft_quantization": "int8", "exits": "demo-exits", "speculative_method": "suffix"},
        {"draft_quantization": "int5", "draft_model": "demo-draft"},
        {"draft_quantization": "int4", "draft_model": "demo-draft", "backend": "torch", "quantization": None},
    ],
)
def test_half_an_order_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        demo(**options)


def test_a_format_for_a_vocabulary_that_exits_do_not_have_is_refused(tmp_path: Path) -> None:
    """They guess from the model's own, which has a format already."""
    source = resolve("demo-exits", None)
    tensors = {name: tensor for name, tensor in load_file(source / "model.safetensors").items() if name != "draft_ids"}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    assert demo(speculative_method="self_speculation", exits=str(tmp_path)).describe()["draft_quantization"] is None
    with pytest.raises(InvalidOption, match="whole vocabulary"):
        demo(speculative_method="self_speculation", exits=str(tmp_path), draft_quantization="int8")


def test_exits_that_may_not_guess_take_no_memory_for_it() -> None:
    """In bfloat16 a guess can change an output by a rounding: there first layers guess where somebody asks for it."""
    given = {"exits": "demo-exits", "quantization": None, "dtype": "bfloat16"}
    unasked, asked = (
        demo(speculative_method="auto", **given).describe(),
        demo(speculative_method="self_speculation", **given).describe(),
    )
    assert (unasked["speculative_method"], unasked["draft_weight_bytes"]) == ("off", 0)
    assert asked["draft_weight_bytes"] > 0
