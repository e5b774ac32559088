"""New examples: the exact prompts, draws by the seed, near-copies, and independence from batches."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from tests.compress.distill.data.conftest import Record
from tests.compress.distill.data.scripted_teacher import ScriptedTeacher, text
from tests.compress.distill.data.test_near_copies import longest_common

from hasten.compress.distill.data.ask_templates import AskTemplates, read_ask_templates
from hasten.compress.distill.data.augment import MAX_TRIES, TRIAL, augment
from hasten.compress.distill.data.example_pairs import Pair
from hasten.compress.distill.data.text_teacher import TeacherText, TextRequest
from hasten.core.sampling_params import SamplingParams

SEEDS = [Pair(f"seed number {name}", f"out {name}") for name in ("one", "two", "three", "four", "five")]
PARAMS = SamplingParams(max_tokens=32, n=3, stop=("END",))
WORDS = ["ab", "cd", "ef", "gh", "ij", "kl", "mn", "op", "qr", "st"]


@pytest.fixture(scope="module")
def templates() -> AskTemplates:
    return read_ask_templates("augment", TRIAL)


def asks_for_output(request: TextRequest) -> bool:
    return str(request.prompt).endswith("Output:")


def new_words(request: TextRequest, i: int) -> TeacherText:
    """Five words by the seed as an input, and the input in capitals as its output."""
    if asks_for_output(request):
        return text(" " + str(request.prompt).rpartition("Input: ")[2].partition("\n")[0].upper())
    return text(" " + " ".join(random.Random(request.params.seed).choices(WORDS, k=5)) + "\n")


def test_the_prompts_show_the_drawn_seeds_after_the_shared_instruction(record: Record, templates: AskTemplates) -> None:
    teacher = ScriptedTeacher(new_words, batch_size=1)
    (first,) = augment(record(teacher), SEEDS, 1, PARAMS, templates, shots=2, seed=5, dropped=Counter())
    one, two = (SEEDS[index] for index in first["seeds"])
    for_input, for_output = teacher.asked
    assert for_input.prompt == (
        "All of these are inputs of one task. Write another input of this kind. Its subject and its wording are new, and it "
        f"stands\nalone. Write the input and nothing after it.\n\nInput: {one.input_text}\n\nInput: {two.input_text}\n\nInput:"
    )
    assert for_output.prompt == (
        "Each input of this task has one output. Write the output of the last input, in the form of the others, and nothing after "
        f"it.\n\nInput: {one.input_text}\nOutput: {one.output}\n\nInput: {two.input_text}\nOutput: {two.output}\n\n"
        f"Input: {first['input']}\nOutput:"
    )
    assert first["output"] == first["input"].upper() and one != two
    assert for_input.params == PARAMS.replace(n=1, stop=("END", "\nInput:", "\nOutput:"), seed=for_input.params.seed)
    assert for_output.params == PARAMS.replace(n=1, stop=("END", "\nInput:"), seed=for_output.params.seed)
    assert for_input.params.seed != for_output.params.seed


def test_examples_depend_on_the_seed_and_not_on_batches(record: Record, templates: AskTemplates) -> None:
    def made(seed: int, batch_size: int) -> list[dict[str, object]]:
        teacher = ScriptedTeacher(new_words, batch_size=batch_size)
        return list(augment(record(teacher), SEEDS, 12, PARAMS, templates, shots=3, seed=seed, dropped=Counter()))

    expected = made(1, 4)
    assert expected == made(1, 1) == made(1, 64)
    assert [one["seeds"] for one in expected] != [one["seeds"] for one in made(2, 4)]
    assert len(expected) == 12 and len({tuple(one["seeds"]) for one in expected}) > 6


def test_near_copies_of_seeds_and_of_each_other_are_dropped(record: Record, templates: AskTemplates) -> None:
    seeds = [Pair("ab cd ef gh ij", "x"), Pair("kl mn op qr st", "y")]
    teacher, dropped = ScriptedTeacher(new_words, batch_size=16), Counter[str]()
    found = list(augment(record(teacher), seeds, 60, PARAMS, templates, threshold=0.6, seed=2, dropped=dropped))
    kept = [pair.input_text.split() for pair in seeds]
    num_copies, written = 0, []
    for request in teacher.asked:
        if not asks_for_output(request):
            written.append(new_words(request, 0).text.split())
    expected = []
    for words in written:
        is_copy = any(longest_common(words, other) / 5 >= 0.6 for other in kept)
        num_copies += is_copy
        if not is_copy:
            kept.append(words)
            expected.append(" ".join(words))
    assert [one["input"] for one in found] == expected[:60] and num_copies > 20
    assert dropped == {"near-copy of another input": num_copies}


def test_cut_blank_and_missing_texts_are_counted_and_others_take_their_place(record: Record, templates: AskTemplates) -> None:
    count = 0

    def write(request: TextRequest, i: int) -> TeacherText:
        nonlocal count
        count += 1
        return {1: text("x", "length"), 2: text(" \n")}.get(count % 5, new_words(request, i))

    dropped = Counter[str]()
    found = list(augment(record(ScriptedTeacher(write)), SEEDS, 8, PARAMS, templates, seed=1, dropped=dropped))
    assert len(found) == 8
    assert set(dropped) >= {"input cut at max_tokens", "blank input"} and all(one["input"] and one["output"] for one in found)


def test_a_teacher_that_repeats_itself_ends(record: Record, templates: AskTemplates) -> None:
    teacher, dropped = ScriptedTeacher(lambda request, i: text("the same again")), Counter[str]()
    assert len(list(augment(record(teacher), SEEDS, 3, PARAMS, templates, dropped=dropped))) == 1
    assert dropped == {"near-copy of another input": 3 * MAX_TRIES - 1}


def test_fewer_seeds_than_shots_are_all_shown(record: Record, templates: AskTemplates) -> None:
    (found,) = augment(record(ScriptedTeacher(new_words)), SEEDS[:2], 1, PARAMS, templates, shots=4, dropped=Counter())
    assert sorted(found["seeds"]) == [0, 1]
