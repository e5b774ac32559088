"""``hasten generate`` on the shipped model: its output streams, compared with calls of ``LLM``."""

import json
import re
import signal
import subprocess
import sys

import pytest
import torch

from hasten import LLM, SamplingParams
from hasten.checkpoints.formats.soft_prompt import TrainedFor, write_soft_prompt

PROMPT = "def binary_search("
GREEDY = ("--temperature", "0", "--max-tokens", "12", "--dtype", "float32", "--kv-cache-memory", "64MiB")


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("demo", dtype="float32", max_model_len=512)


def completion(llm: LLM, prompt=PROMPT, **settings) -> str:
    settings = {"temperature": 0.0, "max_tokens": 12, **settings}
    return llm.generate(prompt, SamplingParams(**settings))[0].outputs[0].text


def test_the_completion_is_on_stdout_and_the_summary_on_stderr(hasten, llm):
    ran = hasten("generate", "demo", PROMPT, *GREEDY)
    assert (ran.code, ran.out) == (0, completion(llm) + "\n")
    counts, rates = r"prompt (\d+) tokens \((\d+) cached, (\d+) computed\)", r"TTFT [\d.]+ s \| [\d.]+ tokens/s"
    drafts = r"(?:\| \d+ of \d+ draft tokens accepted, [\d.]+ tokens per step )?"
    summary = rf"{counts} \| output 12 tokens \| {rates} {drafts}\| finish: length"
    prompt, cached, computed = map(int, re.search(summary, ran.err).groups())
    assert (prompt, cached, computed) == (len(llm.tokenizer.encode(PROMPT)), 0, prompt)


def test_the_model_can_be_an_option(hasten, llm):
    assert hasten("generate", "--model", "demo", PROMPT, *GREEDY).out == completion(llm) + "\n"


def test_prompts_are_read_from_files_and_standard_input(hasten, llm, tmp_path):
    (tmp_path / "prompt.txt").write_text(PROMPT)
    expected = completion(llm) + "\n"
    assert hasten("generate", "demo", "-f", str(tmp_path / "prompt.txt"), *GREEDY).out == expected
    assert hasten("generate", "demo", "-", *GREEDY, stdin=PROMPT).out == expected
    assert hasten("generate", "demo", *GREEDY, stdin=PROMPT).out == expected
    ids = ",".join(map(str, llm.tokenizer.encode(PROMPT)))
    assert hasten("generate", "demo", "--prompt-ids", ids, *GREEDY).out == expected


def test_several_prompts_are_one_batch_in_order(hasten, llm):
    ran = hasten("generate", "demo", PROMPT, "import ", "class ", *GREEDY)
    texts = re.split(r"--- prompt \d, output 1\n", ran.out)[1:]
    assert texts == [completion(llm, prompt) + "\n" for prompt in (PROMPT, "import ", "class ")]
    assert "3 prompts" in ran.err


def test_json_is_one_object_per_request(hasten, llm):
    ran = hasten("generate", "demo", PROMPT, "import ", *GREEDY, "--json", "--logprobs", "2", "--seed", "5")
    first, second = map(json.loads, ran.out.splitlines())
    assert (first["prompt"], second["prompt"], first["seed"], first["model"]) == (PROMPT, "import ", 5, "demo")
    only = first["outputs"][0]
    assert (only["text"], only["finish_reason"], len(only["token_ids"])) == (completion(llm), "length", 12)
    assert [(entry["token_id"], entry["rank"], len(entry["top"])) for entry in only["logprobs"]] == [
        (i, 1, 2) for i in only["token_ids"]
    ]
    assert only["cumulative_logprob"] == pytest.approx(sum(entry["logprob"] for entry in only["logprobs"]), abs=1e-4)
    assert first["metrics"]["num_computed_prompt_tokens"] == first["metrics"]["num_prompt_tokens"] == len(first["prompt_token_ids"])


def test_options_and_presets_reach_the_sampler(hasten, llm):
    forced = llm.tokenizer.encode(" zip")[0]
    ran = hasten("generate", "demo", PROMPT, *GREEDY, "--logit_bias", f"{forced}=100", "--json")
    assert set(json.loads(ran.out)["outputs"][0]["token_ids"]) == {forced}
    text = completion(llm)
    stop = text[4:7]
    assert hasten("generate", "demo", PROMPT, *GREEDY, "--stop", stop).out == text[: text.index(stop)] + "\n"
    ran = hasten(
        "generate", "demo", PROMPT, "--preset", "creative", "--temperature", "0", "--max-tokens", "12", "--dtype", "float32"
    )
    assert ran.out == text + "\n"
    assert "temperature=0.0 (option)" in ran.err
    assert "top_p=0.95 (preset creative)" in ran.err


def test_the_same_seed_gives_the_same_output(hasten):
    options = ("--temperature", "1.5", "--max-tokens", "16", "--seed")
    first, again, other = (hasten("generate", "demo", PROMPT, *options, seed).out for seed in ("1", "1", "2"))
    assert first == again != other


def test_several_outputs_and_beam_search(hasten):
    ran = hasten("generate", "demo", PROMPT, "--n", "3", "--max-tokens", "4", "--json", "--seed", "1")
    assert [entry["index"] for entry in json.loads(ran.out)["outputs"]] == [0, 1, 2]
    ran = hasten("generate", "demo", PROMPT, "--beam-width", "3", "--n", "2", "--max-tokens", "4")
    assert re.findall(r"--- prompt 1, output (\d)", ran.out) == ["1", "2"]


def test_a_checkpoint_without_a_tokenizer_prints_ids(hasten, tiny):
    model = str(tiny("llama-gqa"))
    streamed = hasten("generate", model, "--prompt-ids", "3,4,5", *GREEDY, "--ignore-eos")
    batched = hasten("generate", model, "--prompt-ids", "3,4,5", *GREEDY, "--ignore-eos", "--json")
    assert [int(token) for token in streamed.out.split()] == json.loads(batched.out)["outputs"][0]["token_ids"]
    assert len(streamed.out.split()) == 12
    refused = hasten("generate", model, "text")
    assert (refused.code, refused.out) == (2, "")
    assert "no tokenizer" in refused.err


def test_priority_needs_its_scheduling_policy(hasten):
    ran = hasten("generate", "demo", "a", "b", "--scheduling-policy", "priority", "--priority", "1", "--priority", "0", *GREEDY)
    assert ran.code == 0
    assert "given once per prompt" in hasten("generate", "demo", "a", "b", "--priority", "1").err
    assert "priority: got --scheduling-policy fcfs" in hasten("generate", "demo", "a", "--priority", "1").err
    ran = hasten("generate", "demo", "a", "--priority", "1", "--scheduling-policy", "fifo")
    assert "needs --scheduling-policy priority: got --scheduling-policy fifo" in ran.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["demo", "x", "--temperature", "-1"], "temperature=-1.0"),
        (["demo", "x", "--top-k", "few"], "--top-k"),
        (["demo", "x " * 5000], "allowed"),
        (["demo", "x", "--dtype", "float33"], "Did you mean 'float32'"),
        (["demo", "x", "--max-tokens", "1000000"], "1000000"),
        (["demo", "x", "--batching", "continous"], "Did you mean 'continuous'"),
        (["demo", "x", "--preset", "creativ"], "Did you mean 'creative'"),
        (["demo", "-f", "no/such/file"], "no/such/file"),
        (["demo", "-", "-f", "-"], "standard input"),
        (["demo"], "there is no prompt"),
        (["./no/model", "x"], "no such model folder"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(hasten, arguments, expected):
    ran = hasten("generate", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert expected in ran.err
    assert re.fullmatch(r"error: [^\n]*\n", ran.err)


def test_an_interrupt_is_exit_code_130():
    """Ctrl-C after the first characters: they stay on standard output, and the exit code is 130."""
    command = [sys.executable, "-m", "hasten", "generate", "demo", PROMPT, "--ignore-eos", "--temperature", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        first = process.stdout.read(4)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=60)[1]
    assert (len(first), process.returncode) == (4, 130)
    assert b"stopped" in err
    assert b"Traceback" not in err


def test_show_drafts_colours_the_same_text_and_counts_its_tokens(hasten, llm, monkeypatch):
    prompt = "for i in range(3):\n    print(i)\n" * 3
    ran = hasten("generate", "demo", prompt, *GREEDY, "--speculative-method", "prompt_lookup", "--show-drafts")
    assert ran.code == 0 and "\x1b[32m" in ran.out
    assert re.sub(r"\x1b\[\d+m", "", ran.out) == completion(llm, prompt) + "\n"
    (legend,) = [line for line in re.sub(r"\x1b\[\d+m", "", ran.err).splitlines() if " not drafted" in line]
    counts = legend.split(" | ")
    assert sum(int(count.split()[0]) for count in counts) == 12
    assert re.search(r"\d+ of \d+ draft tokens accepted, [\d.]+ tokens per step", ran.err)
    monkeypatch.setenv("NO_COLOR", "1")
    assert (
        hasten("generate", "demo", prompt, *GREEDY, "--speculative-method", "suffix", "--show-drafts").out
        == completion(llm, prompt) + "\n"
    )
    assert hasten("generate", "demo", prompt, "other", *GREEDY, "--show-drafts").code == 2


def test_a_batch_whose_prompts_share_a_part_late_gets_advice(hasten, model):
    common = ",".join(str(token) for token in range(10, 30))
    settings = ("--max-tokens", "2", "--ignore-eos", "--block-size", "4", "--kv-cache-memory", "1MiB", "--max-model-len", "64")
    varied_first = hasten("generate", model, "--prompt-ids", f"3,{common}", "--prompt-ids", f"4,{common}", *settings)
    advice = "0 of 42 prompt tokens came from the prefix cache; 20 could have, had the part that varies stood last"
    assert varied_first.err.splitlines()[-1] == f"advice: {advice}"
    varied_last = hasten("generate", model, "--prompt-ids", f"{common},3", "--prompt-ids", f"{common},4", *settings)
    assert "(20 cached, 22 computed)" in varied_last.err
    assert "advice" not in varied_last.err


def test_the_summary_names_results_from_the_result_cache(hasten, llm, tmp_path, monkeypatch):
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path))
    arguments = ("generate", "demo", PROMPT, *GREEDY, "--result-cache", f"sqlite:{tmp_path / 'results.sqlite'}")
    first, second = hasten(*arguments), hasten(*arguments)
    assert first.out == second.out == completion(llm) + "\n"
    assert "computed)" in first.err and "result cache" not in first.err
    assert re.search(r"prompt \d+ tokens \| output 12 tokens from the result cache \| TTFT", second.err)
    batch = hasten(*arguments, "import ").err
    num_tokens = len(llm.tokenizer.encode("import "))
    assert f"(0 cached, {num_tokens} computed) | 1 from the result cache | output 24 tokens" in batch
    metrics = json.loads(hasten(*arguments, "--json").out)["metrics"]
    assert (metrics["from_result_cache"], metrics["num_computed_prompt_tokens"]) == (True, 0)


def test_a_result_cache_that_is_down_is_named_and_fails_no_request(hasten, llm, caplog, tmp_path, monkeypatch):
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path))
    ran = hasten("generate", "demo", PROMPT, *GREEDY, "--result-cache", "redis://:secret@127.0.0.1:1/0")
    assert (ran.code, ran.out) == (0, completion(llm) + "\n")
    assert "127.0.0.1:1" in caplog.records[0].getMessage() and "requests go on without it" in caplog.text
    assert "secret" not in caplog.text + ran.err


def test_a_soft_prompt_stands_before_every_prompt(hasten, llm, tmp_path):
    rows = torch.randn(4, llm._loaded.soft_prompts.table.hidden_size, generator=torch.Generator().manual_seed(1)) * 0.1
    write_soft_prompt(tmp_path, rows, TrainedFor(base_model="demo", num_layers=1, num_attention_heads=1))
    params, soft_prompt = SamplingParams(temperature=0, max_tokens=12), llm.load_soft_prompt(tmp_path)
    first, second = (o.outputs[0].text for o in llm.generate([PROMPT, "import "], params, soft_prompt=soft_prompt))
    assert first != completion(llm)
    assert hasten("generate", "demo", PROMPT, *GREEDY, "--soft-prompt", str(tmp_path)).out == first + "\n"
    ran = hasten("generate", "demo", PROMPT, "import ", *GREEDY, "--soft-prompt", str(tmp_path))
    assert re.split(r"--- prompt \d, output 1\n", ran.out)[1:] == [first + "\n", second + "\n"]
    ran = hasten("generate", "demo", PROMPT, *GREEDY, "--soft-prompt", str(tmp_path / "none"))
    assert ran.code == 2 and "there is no such folder of a soft prompt" in ran.err
