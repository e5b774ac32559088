"""``evaluate_task`` against transformers: generated answers, log-likelihoods of choices, and differences of two models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny_models import tiny_checkpoint, word_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hasten.checkpoints.hub import resolve
from hasten.core.errors import HastenError, InvalidOption, InvalidRequest, PromptTooLong
from hasten.entrypoints.task_evaluation import ModelResults, evaluate_task
from hasten.entrypoints.task_options import TaskOptions

EXACT = {"dtype": "float32", "kv_cache_memory": "64MiB", "speculative_method": "off"}
PROMPTS = ["import os\nimport ", "def main(argv):\n    if len(argv)", "for i in range(", "class Queue:\n    def __init__(self"]
# Prompts that end with and without white space, and choices that begin with it.
CHOICES = [
    ("def area(self):\n    return", ["self.width * self.height", "pineapple", "None"], 0),
    ("if x is not ", ["None:", "banana", "zebra crossing"], 0),
    ("import", [" sys", " os.path", "\nfrom"], 1),
    ("Return the length of the", ["list.", "string that was read from the file", "été"], 2),
]


@pytest.fixture(scope="module")
def demo() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    folder = resolve("demo")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)


def write(file: Path, *lines: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def greedy(demo: tuple[PreTrainedModel, PreTrainedTokenizerBase], ids: list[int], max_tokens: int) -> str:
    """Return the text of plain greedy decoding, up to the first line break."""
    model, tokenizer = demo
    output = list(ids)
    with torch.inference_mode():
        for _ in range(max_tokens):
            output.append(int(model(torch.tensor([output])).logits[0, -1].argmax()))
            if output[-1] == model.generation_config.eos_token_id:
                break
    return str(tokenizer.decode(output[len(ids) :], skip_special_tokens=True)).split("\n")[0]


def logprob(demo: tuple[PreTrainedModel, PreTrainedTokenizerBase], before: list[int], after: list[int]) -> float:
    with torch.inference_mode():
        logprobs = torch.log_softmax(demo[0](torch.tensor([before + after])).logits[0].double(), -1)
    return sum(float(logprobs[len(before) - 1 + i, token]) for i, token in enumerate(after))


def chat_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_generated_answers_are_those_of_greedy_decoding(
    tmp_path: Path, demo: tuple[PreTrainedModel, PreTrainedTokenizerBase], chat: bool
) -> None:
    encode = (lambda prompt: chat_ids(demo[1], prompt)) if chat else (lambda prompt: demo[1](prompt)["input_ids"])
    outputs = [(greedy(demo, encode(prompt), 6), prompt) for prompt in PROMPTS]
    outputs.sort(key=lambda pair: pair[0].swapcase() != pair[0])  # the last one has letters
    texts, prompts = zip(*outputs, strict=True)
    assert len(set(texts)) == len(texts) and all(text.strip() for text in texts) and texts[3].swapcase() != texts[3]
    answers: list[Any] = [texts[0], ["no", f"  {texts[1].strip()}\n"], texts[0], texts[3].swapcase()]
    file = write(tmp_path / "task.jsonl", *({"prompt": p, "answer": a} for p, a in zip(prompts, answers, strict=True)))
    found = evaluate_task("demo", EXACT, file, settings=TaskOptions(max_tokens=6, chat=chat))
    assert [result.as_dict()["output"] for result in found.candidate.results] == list(texts)
    assert [result.outcomes["exact_match"] for result in found.candidate.results] == [True, True, False, False]
    folded = evaluate_task("demo", EXACT, file, settings=TaskOptions(max_tokens=6, chat=chat, ignore_case=True))
    assert [result.outcomes["exact_match"] for result in folded.candidate.results] == [True, True, False, True]
    assert [(score.metric, score.num_correct, score.num_items) for score in folded.candidate.scores] == [("exact_match", 3, 4)]


def test_stop_texts_and_max_tokens_end_an_answer(tmp_path: Path, demo: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    file = write(tmp_path / "task.jsonl", {"prompt": "import os\nimport ", "answer": "x"})

    def output(**settings: Any) -> str:
        (result,) = evaluate_task("demo", EXACT, file, settings=TaskOptions(**settings)).candidate.results
        return str(result.as_dict()["output"])

    unstopped = output(max_tokens=12, stop=[""])
    assert "\n" in unstopped
    assert output(max_tokens=12) == unstopped.split("\n")[0]
    assert output(max_tokens=12, stop=[unstopped[2:4]]) == unstopped[:2]
    assert unstopped.startswith(output(max_tokens=2, stop=[""])) and len(output(max_tokens=2, stop=[""])) < len(unstopped)


def task_of_choices(file: Path) -> Path:
    return write(file, *({"question": q, "choices": c, "answer": a} for q, c, a in CHOICES))


def test_choices_have_the_log_likelihoods_of_transformers(
    tmp_path: Path, demo: tuple[PreTrainedModel, PreTrainedTokenizerBase]
) -> None:
    """A space stands between prompt and choice, unless either has white space there. Spaces belong to the choice's tokens."""
    texts = [["self.width * self.height", "pineapple", "None"], ["None:", "banana", "zebra crossing"]]
    texts = [[f" {text}" for text in texts[0]], texts[1], CHOICES[2][1], [f" {text}" for text in CHOICES[3][1]]]
    found = evaluate_task("demo", EXACT, task_of_choices(tmp_path / "task.jsonl"))
    for (question, choices, answer), continuations, result in zip(CHOICES, texts, found.candidate.results, strict=True):
        expected = []
        for continuation in continuations:
            before = demo[1](question.rstrip(" "))["input_ids"]
            joint = demo[1](question + continuation)["input_ids"]
            assert joint[: len(before)] == before
            expected.append(logprob(demo, before, joint[len(before) :]))
        actual = result.as_dict()
        assert actual["logprobs"] == pytest.approx(expected, rel=1e-4, abs=1e-3)
        per_byte = [value / len(choice.encode()) for value, choice in zip(expected, choices, strict=True)]
        assert actual["acc"] == (expected.index(max(expected)) == answer)
        assert actual["acc_norm"] == (per_byte.index(max(per_byte)) == answer)
    assert [score.metric for score in found.candidate.scores] == ["acc", "acc_norm"]


@pytest.mark.parametrize(
    ("settings", "between"), [({"delimiter": ""}, ""), ({"delimiter": "\n= "}, "\n= "), ({"chat": True}, ""), ({}, " ")]
)
def test_the_delimiter_stands_between_prompt_and_choice(
    tmp_path: Path, demo: tuple[PreTrainedModel, PreTrainedTokenizerBase], settings: dict[str, Any], between: str
) -> None:
    file = write(tmp_path / "task.jsonl", {"question": "x =", "choices": ["None", "True"], "answer": 0})
    (result,) = evaluate_task("demo", EXACT, file, settings=TaskOptions(**settings)).candidate.results
    is_chat = "chat" in settings
    before = chat_ids(demo[1], "x =") if is_chat else demo[1]("x =")["input_ids"]
    expected = []
    for choice in ("None", "True"):
        joint = (
            before + demo[1](choice, add_special_tokens=False)["input_ids"]
            if is_chat
            else demo[1](f"x ={between}{choice}")["input_ids"]
        )
        assert joint[: len(before)] == before
        expected.append(logprob(demo, before, joint[len(before) :]))
    assert result.as_dict()["logprobs"] == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_kinds_may_be_mixed_and_equal_models_do_not_differ(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [{"question": q, "choices": c, "answer": a} for q, c, a in CHOICES]
    lines[1:1] = [{"prompt": prompt, "answer": "i"} for prompt in PROMPTS]
    file = write(tmp_path / "task.jsonl", *lines)
    found = evaluate_task("demo", {**EXACT, "backend": "torch"}, file, against="demo", settings=TaskOptions(max_tokens=4))
    report = found.as_dict()
    json.dumps(report)
    assert [item["line"] for item in report["candidate"]["items"]] == list(range(1, 9))
    assert report["candidate"]["items"] == report["reference"]["items"]
    assert [(score["metric"], score["num_items"]) for score in report["candidate"]["scores"]] == [
        ("exact_match", 4),
        ("acc", 4),
        ("acc_norm", 4),
    ]
    for each in report["differences"]:
        assert (each["difference"], each["only_candidate"], each["only_reference"]) == (0.0, 0, 0)
        assert each["interval"][0] <= 0 <= each["interval"][1]


def test_models_of_other_vocabularies_are_compared(tmp_path: Path, demo: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    """The reference is a tiny model of words, which makes other choices; items that only one side has right are counted."""
    words = tiny_checkpoint("llama-gqa", tmp_path / "tiny")
    word_tokenizer(101).save_pretrained(words)
    lines = [{"question": f"w{i} w{i + 1}", "choices": ["w3", "w8 w9", "w20"], "answer": i % 3} for i in range(10, 40)]
    found = evaluate_task("demo", EXACT, write(tmp_path / "task.jsonl", *lines), against=str(words))
    assert found.reference is not None
    assert found.reference.description["model"] == str(words) and found.reference.description["dtype"] == "float32"

    def correct(side: ModelResults) -> set[int]:
        return {item["line"] for item in side.as_dict()["items"] if item["acc"]}

    ours, theirs = correct(found.candidate), correct(found.reference)
    difference = found.differences[0]
    assert (difference.metric, difference.both_correct, difference.neither) == ("acc", len(ours & theirs), 30 - len(ours | theirs))
    assert (difference.only_candidate, difference.only_reference) == (len(ours - theirs), len(theirs - ours))
    assert difference.only_candidate + difference.only_reference > 0


def broken(source: Path, folder: Path) -> Path:
    """Return a copy of a checkpoint whose logits are not finite."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], 3e38)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_an_item_that_cannot_run_is_named_by_its_line(tmp_path: Path) -> None:
    good = {"prompt": "a b", "answer": "c"}
    choices = {"question": "a b", "choices": ["c", "d"], "answer": 0}
    words = tiny_checkpoint("llama-gqa", tmp_path / "tiny")
    with_tokenizer = tmp_path / "words"
    shutil.copytree(words, with_tokenizer)
    word_tokenizer(101).save_pretrained(with_tokenizer)
    not_finite = broken(with_tokenizer, tmp_path / "broken")
    cases: list[tuple[Path | str, dict[str, Any], dict[str, Any], type[HastenError], str]] = [
        ("demo", {"prompt": "x " * 5000, "answer": "y"}, {}, PromptTooLong, r"line 2 of .*: .* 64 tokens; allowed: up to 4096"),
        ("demo", {**choices, "question": "x " * 5000}, {}, PromptTooLong, r"line 2 of .* do not fit the context"),
        ("demo", {**choices, "question": "def ab", "choices": ["s", "x y " * 3000]}, {}, PromptTooLong, "line 2 of .* do not fit"),
        (with_tokenizer, good, {"chat": True}, InvalidRequest, "line 1 of .* no chat template"),
        (words, good, {}, InvalidRequest, "has no tokenizer"),
        (not_finite, good, {}, HastenError, "line 1 of .* not finite"),
    ]
    for model, line, settings, kind, message in cases:
        file = write(tmp_path / "task.jsonl", good, line)
        with pytest.raises(kind, match=message):
            evaluate_task(str(model), EXACT, file, settings=TaskOptions(**settings))
    with pytest.raises(HastenError, match=r"line 1 of .* not finite"):
        evaluate_task(str(not_finite), EXACT, write(tmp_path / "task.jsonl", choices))


def test_a_wrong_line_is_refused_before_a_model_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasten.entrypoints.task_evaluation.LLM", None)
    file = write(tmp_path / "task.jsonl", {"prompt": "a", "answer": "b"}, {"prompt": "a"})
    with pytest.raises(InvalidOption, match=r'line 2 of .*: "answer" is missing'):
        evaluate_task("demo", {}, file)
