"""Records of generated outputs: the exact requests, the seeds, and what is dropped."""

from __future__ import annotations

from collections import Counter

from tests.compress.distill.data.conftest import Record
from tests.compress.distill.data.scripted_teacher import ScriptedTeacher, text

from hasten.checkpoints.hub import resolve
from hasten.compress.distill.data.generate import generate_examples, generate_texts
from hasten.compress.distill.data.prompt_file import PromptRecord
from hasten.compress.distill.data.text_teacher import TeacherText, TextRequest
from hasten.core.sampling_params import SamplingParams
from hasten.text.tokenizer import TextTokenizer

MESSAGES = ({"role": "user", "content": "Hi"},)
PROMPTS = [PromptRecord("a", "a", {"id": 1}), PromptRecord(MESSAGES, "Hi", {}), PromptRecord("long", "long", {})]


def test_prompts_are_sent_as_they_are_with_seeds_of_their_own(record: Record) -> None:
    teacher = ScriptedTeacher(fits=lambda request: request.prompt != "long")
    params, dropped = SamplingParams(n=2, max_tokens=9, temperature=0.5), Counter[str]()
    found = list(generate_examples(record(teacher), PROMPTS, params, seed=3, keep_cut=False, dropped=dropped))
    assert teacher.prompts == ["a", MESSAGES]
    seeds = [request.params.seed for request in teacher.asked]
    assert len(set(seeds)) == 2 and all(request.params == params.replace(seed=request.params.seed) for request in teacher.asked)
    assert [(one["input"], one["output"], one["sample"]) for one in found] == [
        ("a", f"a|{seeds[0]}|0", 0),
        ("a", f"a|{seeds[0]}|1", 1),
        ("Hi", f"{MESSAGES}|{seeds[1]}|0", 0),
        ("Hi", f"{MESSAGES}|{seeds[1]}|1", 1),
    ]
    assert found[0]["id"] == 1 and found[0]["finish_reason"] == "stop" and dropped == {"too long for the context": 1}


def test_the_seed_decides(record: Record) -> None:
    params = SamplingParams()

    def outputs(seed: int) -> list[str]:
        records = generate_examples(record(ScriptedTeacher()), PROMPTS, params, seed=seed, keep_cut=False, dropped=Counter())
        return [one["output"] for one in records]

    assert outputs(3) == outputs(3) and not set(outputs(3)) & set(outputs(4))


def test_cut_and_blank_outputs_are_dropped_or_marked(record: Record) -> None:
    def write(request: TextRequest, i: int) -> TeacherText:
        return [text("whole"), text("cut", "length"), text(" \n"), text(" ", "length")][i]

    params, dropped = SamplingParams(n=4), Counter[str]()
    found = list(generate_examples(record(ScriptedTeacher(write)), PROMPTS[:1], params, seed=0, keep_cut=False, dropped=dropped))
    assert [one["output"] for one in found] == ["whole"] and dropped == {"cut at max_tokens": 2, "blank": 1}
    kept, dropped = ScriptedTeacher(write), Counter[str]()
    found = list(generate_examples(record(kept), PROMPTS[:1], params, seed=0, keep_cut=True, dropped=dropped))
    assert [(one["output"], one["finish_reason"]) for one in found] == [("whole", "stop"), ("cut", "length")]
    assert dropped == {"blank": 2}


def test_a_thought_is_kept_apart(record: Record) -> None:
    teacher = ScriptedTeacher(lambda request, i: TeacherText("42", "stop", 2, None, "6 times 7"))
    (found,) = generate_examples(record(teacher), PROMPTS[:1], SamplingParams(), seed=0, keep_cut=False, dropped=Counter())
    assert (found["output"], found["reasoning"]) == ("42", "6 times 7")


def test_passages_are_continued_to_the_length(record: Record) -> None:
    teacher = ScriptedTeacher(lambda request, i: text("!", "length"))
    params = SamplingParams(n=3, stop=("x",), temperature=0.5)
    found = list(generate_texts(record(teacher), [("ab", [1, 2]), ("c", [3])], params, seq_len=16, seed=1))
    assert found == [{"text": "ab!"}, {"text": "c!"}]
    assert teacher.prompts == [{"prompt_token_ids": [1, 2]}, {"prompt_token_ids": [3]}]
    for request, limit in zip(teacher.asked, (14, 15), strict=True):
        expected = params.replace(n=1, stop=(), ignore_eos=True, max_tokens=limit, seed=request.params.seed)
        assert request.params == expected


def test_a_character_that_tokens_cut_is_whole_or_left_out(record: Record) -> None:
    """Every character is three tokens. The passage and its continuation begin and end inside one."""
    tokenizer = TextTokenizer.load(resolve("demo"), 8192)
    assert tokenizer is not None
    ids = tokenizer.encode_fragment("二百二百")
    passage, continuation = ids[1:8], ids[8:11]
    detokenizer = tokenizer.detokenizer(True, passage)
    written = "".join([*map(detokenizer.push, continuation), detokenizer.flush()])
    passages = [(tokenizer.decode(passage, skip_special_tokens=True), passage)]
    assert "\ufffd" in passages[0][0] and "\ufffd" in written, "negative control"
    teacher = ScriptedTeacher(lambda request, i: text(written, "length"))
    found = list(generate_texts(record(teacher), passages, SamplingParams(), seq_len=10, seed=1))
    assert found == [{"text": "百二"}]
