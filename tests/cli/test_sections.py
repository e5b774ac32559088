"""``hasten generate --sections`` on the shipped model: the text of ``LLM.generate_sections``, its summary, its conflicts."""

import json
import re
import signal
import subprocess
import sys

import pytest

from hasten import LLM

QUESTION = "What are the main parts of asyncio?"
HEADINGS = "Event loops; Tasks;Summary"
OPTIONS = ("--temperature", "0", "--dtype", "float32", "--kv-cache-memory", "64MiB", "--section-tokens", "8")
SECTIONS = ("generate", "demo", QUESTION, "--sections", *OPTIONS)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("demo", dtype="float32", max_model_len=512)


def test_headings_and_sections_are_on_stdout_and_the_summary_on_stderr(hasten, llm):
    ran = hasten(*SECTIONS, "--section-headings", HEADINGS)
    params = llm.default_sampling_params().replace(temperature=0.0)
    output = llm.generate_sections(QUESTION, params, skeleton=["Event loops", "Tasks", "Summary"], section_tokens=8)
    assert (ran.code, ran.out) == (0, output.text + "\n")
    assert "section 3 waited: its heading covers other sections with 'Summary', so it follows sections 1, 2\n" in ran.err
    counts = r"prompt (\d+) tokens \((\d+) cached, (\d+) computed\) \| output (\d+) tokens"
    summary = rf"3 sections, at most 2 at a time \| {counts} \| [\d.]+ s \| [\d.]+ tokens/s\n"
    prompt, cached, computed, tokens = map(int, re.search(summary, ran.err).groups())
    assert (prompt, cached, tokens) == (output.num_prompt_tokens, output.num_cached_tokens, 24)
    assert prompt == cached + computed and cached > 0


def test_json_is_the_plain_data(hasten, llm):
    ran = hasten(*SECTIONS, "--section-headings", "Event loops；Tasks", "--json")
    found = json.loads(ran.out)
    assert (found["model"], found["skeleton"], found["num_output_tokens"]) == ("demo", ["Event loops", "Tasks"], 16)
    params = llm.default_sampling_params().replace(temperature=0.0)
    output = llm.generate_sections(QUESTION, params, skeleton=["Event loops", "Tasks"], section_tokens=8)
    assert found["text"] == output.text
    assert [each["token_ids"] for each in found["sections"]] == [list(each.token_ids) for each in output.sections]
    assert found["route"] == {"suits": True, "reason": output.route.reason, "forced": False}


def test_a_question_that_does_not_suit_is_decoded_plainly_unless_forced(hasten):
    plain = hasten("generate", "demo", "Who wrote it?", "--sections", *OPTIONS, "--max-sections", "3", "--section-headings", "a;b")
    assert plain.code == 0 and "##" not in plain.out
    assert "decoded plainly: the question does not suit sections: its wording is that of" in plain.err
    assert "\ndecoded plainly | prompt" in plain.err
    forced = hasten("generate", "demo", "Who wrote it?", "--sections", *OPTIONS, "--no-router", "--section-headings", "a;b")
    assert forced.out.startswith("## a\n") and "2 sections, at most 2 at a time" in forced.err


def test_an_outline_that_the_demo_cannot_write_is_plain_decoding(hasten):
    ran = hasten(*SECTIONS, "--max-sections", "3")
    assert ran.code == 0 and re.search(r"decoded plainly: .*outline", ran.err)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--max-sections", "4"], "options of sections need --sections: got --max-sections"),
        (["--no-router", "--section-headings", "a"], "need --sections: got --section-headings, --no-router"),
        (["--sections", "another"], "answers one question: got 2 prompts"),
        (["--sections", "--show-drafts"], "several requests for one text: got --show-drafts"),
        (["--sections", "--soft-prompt", "x"], "several requests for one text: got --soft-prompt"),
        (["--sections", "--scheduling-policy", "priority", "--priority", "1"], "several requests for one text: got --priority"),
        (["--sections", "--n", "2"], "one text without log-probabilities: got n=2"),
        (["--sections", "--beam-width", "2"], "got beam_width=2"),
        (["--sections", "--logprobs", "2"], "got logprobs=2"),
        (["--sections", "--max-sections", "2"], "max_sections is out of range: got 2"),
        (["--sections", "--max-sections", "few"], "--max-sections has the wrong form"),
        (["--sections", "--section-tokens", "0"], "section_tokens is out of range"),
        (["--sections", "--section-headings", " ; "], "wrong number of headings"),
        (["--sections", "--section-headings", "a;a"], "more than once"),
    ],
)
def test_conflicts_are_one_line_and_exit_code_2(hasten, arguments, expected):
    ran = hasten("generate", "demo", QUESTION, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert expected in ran.err
    assert re.fullmatch(r"error: [^\n]*\n", ran.err)


def test_token_ids_are_no_question(hasten):
    ran = hasten("generate", "demo", "--prompt-ids", "3,4", "--sections")
    assert ran.code == 2 and "--sections needs a question as text: got --prompt-ids" in ran.err


def test_an_interrupt_is_exit_code_130():
    command = [sys.executable, "-m", "hasten", "generate", "demo", QUESTION, "--sections", "--section-headings", "a;b;c;Summary"]
    command += ["--ignore-eos", "--section-tokens", "800", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        first = process.stdout.read(8)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=60)[1]
    assert (first[:5], process.returncode) == (b"## a\n", 130)
    assert b"stopped" in err and b"Traceback" not in err
