"""Guided requests among free ones, in random combinations of settings: no drafter, batch or preemption changes an output."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jsonschema
import pytest

from hasten import LLM, SamplingParams
from hasten.core.output import CompletionOutput, RequestOutput
from hasten.core.structured_outputs import StructuredOutputs
from tests.exhaustive import EXHAUSTIVE, repeats

THINK, END_OF_THOUGHT = 4, 5  # tokens of the demo model
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "sizes": {"type": "array", "items": {"enum": [1, 20, 300]}, "maxItems": 3},
    },
    "required": ["name", "sizes"],
    "additionalProperties": False,
}
CHOICES = ("yes", "yes, all", "no", "neither of them")
PATTERN = r"[a-c]{2,4}-(12|123)x?( é+)?"
LETTERS = "[a-z]{200}"
ROW = "[0-9]{1,3},"
ROWS = r"(?:[0-9]+,[a-z]*\n){1,3}end"
FORMS: dict[str, StructuredOutputs] = {
    "json": StructuredOutputs(json=SCHEMA),
    "compact": StructuredOutputs(json=SCHEMA, disable_any_whitespace=True),
    "choice": StructuredOutputs(choice=CHOICES),
    "regex": StructuredOutputs(regex=PATTERN),
    "letters": StructuredOutputs(regex=LETTERS),
    "row": StructuredOutputs(regex=ROW),
    "grammar": StructuredOutputs(grammar='start: row~1..3 "end"\nrow: /[0-9]+/ "," /[a-z]*/ "\\n"'),
}
PATTERNS = {"regex": PATTERN, "letters": LETTERS, "row": ROW, "grammar": ROWS}
COMMA = 27
VISIBLE_STOP: dict[str, Any] = {"stop_token_ids": (COMMA,), "include_stop_str_in_output": True, "max_tokens": 9}
PLAIN: dict[str, Any] = {"max_model_len": 192, "kv_cache_memory": "16MiB", "threads": 1, "reasoning_parser": "qwen3"}
ENGINES: dict[str, dict[str, Any]] = {
    "crowded": {"speculative_method": "suffix", "kv_cache_memory": "1280KiB", "max_num_batched_tokens": 40, "max_num_seqs": 24},
    "draft model": {"speculative_method": "draft_model", "draft_model": "demo-draft"},
    "eagle": {"speculative_method": "eagle", "draft_heads": "demo-eagle"},
    "first layers": {"speculative_method": "self_speculation", "self_draft_layers": 2},
}
if EXHAUSTIVE:
    ENGINES |= {
        "auto": {},
        "medusa": {"speculative_method": "medusa", "draft_heads": "demo-medusa"},
    }
ENDS = (0, 2)  # end tokens of the demo model
PROMPTS = ("def f(a):\n    return", "<think>\n", "<think>\n\n</think>\n\n", "Name one: ", '{"name": "ab", "sizes": [1, 20]}\n')


def has_form(form: str, text: str) -> bool:
    """Return whether a text has a form, by other libraries than the guide's."""
    if form == "choice":
        return text in CHOICES
    if form in PATTERNS:
        return re.fullmatch(PATTERNS[form], text) is not None
    try:
        return jsonschema.Draft202012Validator(SCHEMA).is_valid(json.loads(text))
    except ValueError:
        return False


class Case(NamedTuple):
    prompt: str
    form: str | None
    params: SamplingParams


def random_case(rng: random.Random) -> Case:
    form = rng.choice([None, *FORMS, *FORMS])
    settings: dict[str, Any] = {"seed": rng.randrange(1 << 40), "max_tokens": rng.choice([1, 7, 30, 50])}
    if form is not None:
        settings["structured_outputs"] = FORMS[form]
    if rng.random() < 0.4:
        settings["thinking_token_budget"] = rng.choice([0, 1, 5, 20])
    kind = rng.choice(["sampled", "sampled", "greedy", "beams", "rejection", "typical", "exits"])
    if kind == "beams":
        settings |= {"beam_width": rng.randint(2, 4), "temperature": rng.choice([0, 1]), "n": rng.randint(1, 2)}
    elif kind == "greedy":
        settings["temperature"] = 0
    else:
        settings |= {"temperature": rng.choice([0.3, 0.8, 1.2]), "n": rng.choice([1, 1, 3])}
        if rng.random() < 0.3:
            settings |= rng.choice([{"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.05}])
    if kind in ("rejection", "typical"):
        settings["acceptance"] = kind
    if kind == "exits":
        settings |= {"exit_rule": "fixed", "exit_layer": 3}
    extras: list[dict[str, Any]] = [
        {"repetition_penalty": 1.3},
        {"frequency_penalty": 0.5, "presence_penalty": 0.3},
        {"logprobs": 3},
        {"min_tokens": 4},
        {"stop": ("e", "12")},
        {"stop": (", ",), "include_stop_str_in_output": True},
        {"stop_token_ids": tuple(range(20, 60, 3))},
        {"stop_token_ids": tuple(range(20, 60, 5)), "include_stop_str_in_output": True},
        {"allowed_token_ids": tuple(range(16, 130))},
        {"allowed_token_ids": (0, 2, 17, 90, 91)},
        {"bad_words": ("name", "no")},
        {"logit_bias": {2: 5.0, 40: -3.0, THINK: 20.0}},
        {"no_repeat_ngram_size": 3},
        {"skip_special_tokens": False},
    ]
    for extra in rng.sample(extras, rng.choice([0, 0, 1, 2])):
        settings |= extra
    if kind == "beams":  # stop strings do not end beams
        settings.pop("stop", None)
    if settings.get("min_tokens", 0) > settings["max_tokens"]:
        del settings["min_tokens"]
    return Case(rng.choice(PROMPTS), form, SamplingParams(**settings))


CASES = [random_case(random.Random(seed)) for seed in range(repeats("guides"))]
# Long ones, of which a small pool preempts some.
CASES += [Case(PROMPTS[0], "letters", SamplingParams(seed=i, max_tokens=90, structured_outputs=FORMS["letters"])) for i in range(6)]
CASES.append(Case(PROMPTS[0], "row", SamplingParams(seed=1, structured_outputs=FORMS["row"], **VISIBLE_STOP)))


def run(llm: LLM, cases: Sequence[Case]) -> list[RequestOutput]:
    return llm.generate([case.prompt for case in cases], [case.params for case in cases], use_tqdm=False)


@pytest.fixture(scope="module")
def plain_outputs() -> list[RequestOutput]:
    """The outputs without drafts, of free requests without the guided ones."""
    with LLM("demo", **PLAIN, speculative_method="off") as llm:
        free = [i for i, case in enumerate(CASES) if not case.params.is_guided]
        guided = [i for i, case in enumerate(CASES) if case.params.is_guided]
        found = {i: output for own in (free, guided) for i, output in zip(own, run(llm, [CASES[i] for i in own]), strict=True)}
    return [found[i] for i in range(len(CASES))]


def answer_tokens(case: Case, completion: CompletionOutput) -> list[int] | None:
    """Return the visible tokens after the thought; None if a thought has not ended."""
    tokens = list(completion.token_ids)
    if completion.finish_reason == "stop":
        stop = completion.stop_reason
        shows_stop = case.params.include_stop_str_in_output and case.params.beam_width is None
        if tokens[-1] in ENDS or (tokens[-1] == stop and not shows_stop):
            tokens.pop()
    if case.prompt == "<think>\n" or tokens[:1] == [THINK]:
        return tokens[tokens.index(END_OF_THOUGHT) + 1 :] if END_OF_THOUGHT in tokens else None
    return tokens


def check_form(llm: LLM, case: Case, completion: CompletionOutput) -> None:
    """Check that an output is complete if and only if it has its form."""
    tokens = answer_tokens(case, completion)
    if case.form is None:
        assert completion.is_complete is None
    elif isinstance(completion.stop_reason, str) or tokens is None:
        assert completion.is_complete is False
    else:
        assert completion.is_complete == has_form(case.form, llm.tokenizer.decode(tokens, skip_special_tokens=False)), (
            case,
            completion,
        )
        assert completion.is_complete or completion.finish_reason == "length" or completion.stop_reason is not None


def check_thought(case: Case, completion: CompletionOutput) -> None:
    """Check that a budget is kept, and that a thought stands at the beginning alone."""
    budget, tokens = case.params.thinking_token_budget, list(completion.token_ids)
    if budget is None:
        return
    is_opened = case.prompt != "<think>\n" and tokens[:1] == [THINK]
    assert tokens[is_opened:].count(THINK) == 0
    if is_opened or case.prompt == "<think>\n":
        assert tokens.count(END_OF_THOUGHT) <= 1
        assert (tokens.index(END_OF_THOUGHT) if END_OF_THOUGHT in tokens else len(tokens)) - is_opened <= budget


@pytest.mark.parametrize("name", ENGINES)
def test_outputs_have_their_form_and_are_those_of_plain_decoding(name: str, plain_outputs: list[RequestOutput]) -> None:
    with LLM("demo", **PLAIN | ENGINES[name]) as llm:
        outputs = run(llm, CASES)
        for case, output, plain in zip(CASES, outputs, plain_outputs, strict=True):
            if case.params.exact:
                assert output.error == plain.error, case
            if case.params.exact and plain.error is None:
                assert [contents(each) for each in output.outputs] == [contents(each) for each in plain.outputs], case
            for completion in output.outputs if output.error is None else ():
                check_form(llm, case, completion)
                check_thought(case, completion)
    assert name != "crowded" or any(output.metrics.num_preemptions for output in outputs)
    assert sum(completion.is_complete is True for output in outputs for completion in output.outputs) > len(CASES) / 4


def contents(completion: CompletionOutput) -> CompletionOutput:
    """Return an output without the origins of its tokens, which tell of drafts."""
    return dataclasses.replace(completion, origins=())
