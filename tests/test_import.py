"""Importing hasten is fast and silent, and its public names are fixed."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "numpy")

PUBLIC = [
    "AsyncLLM",
    "Choice",
    "CompletionOutput",
    "Delta",
    "HastenError",
    "InvalidRequest",
    "LLM",
    "PrefixPin",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "ScoreOutput",
    "SoftPrompt",
    "StructuredOutputs",
    "ToolCall",
    "ToolCallDelta",
]


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120, check=True)


def loaded_after(code: str) -> set[str]:
    """Return the modules that a new interpreter has loaded after ``code``."""
    report = "import sys, json; print('\\n' + json.dumps(sorted(sys.modules)))"
    return set(json.loads(run(f"{code}\n{report}").stdout.splitlines()[-1]))


def test_import_is_silent():
    result = run("import hasten, hasten.core.errors, hasten.core.sampling_params, hasten.core.output")
    assert (result.stdout, result.stderr) == ("", "")


@pytest.mark.parametrize(
    "code",
    [
        "import hasten",
        "import hasten.core.plan, hasten.core.request, hasten.core.output",
        "import hasten.scheduling.scheduler",
        "import hasten.kv.allocator, hasten.kv.prefix_hash",
        "import hasten.cli.main",
    ],
)
def test_import_loads_nothing_heavy(code):
    assert loaded_after(code) & set(HEAVY) == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["generate", "--help"],
        ["chat", "--help"],
        ["eval", "--help"],
        ["bench", "throughput", "--help"],
        ["train", "eagle", "--help"],
        ["prompt", "show", "--help"],
        ["prompt", "ls"],
        ["presets"],
        ["diagnose", "--help"],
    ],
)
def test_help_loads_nothing_heavy(arguments):
    code = f"from hasten.cli.main import run\nassert run({arguments!r}) == 0"
    assert loaded_after(code) & set(HEAVY) == set()


@pytest.mark.parametrize("option", ["backend='auto'", "backend='torch'", "draft_heads='demo-eagle'"])
def test_the_first_token_of_the_demo_model_needs_no_compiler_no_hub_and_no_transformers(option):
    options = f"{option}, max_model_len=64, kv_cache_memory='8MiB', threads=1"
    code = f"from hasten import LLM, SamplingParams\nLLM('demo', {options}).generate('def', SamplingParams(max_tokens=1))"
    assert loaded_after(code) & {"torch._dynamo", "sympy", "transformers", "huggingface_hub"} == set()


def test_a_caller_of_an_engine_in_another_process_needs_no_torch():
    code = (
        "import asyncio\nfrom hasten import AsyncLLM, SamplingParams\nasync def main():\n"
        "    llm = AsyncLLM('demo', transport='process', max_model_len=64, kv_cache_memory='8MiB', threads=1)\n"
        "    async with llm:\n"
        "        await llm.generate('def', SamplingParams(max_tokens=1))\n"
        "        await llm.score('def', [' f'])\n"
        "        await llm.chat([{'role': 'user', 'content': 'a'}], SamplingParams(max_tokens=1))\n"
        "asyncio.run(main())"
    )
    assert loaded_after(code) & {"torch", "transformers", "numpy.testing"} == set()


def test_a_heavy_import_is_detected():
    """Negative control."""
    assert {"torch", "torch._dynamo", "sympy"} <= loaded_after("import torch\ntorch.empty(2, device='meta') / 2")


def test_public_names():
    import hasten

    assert sorted(hasten.__all__) == PUBLIC
    assert all(getattr(hasten, name) is not None for name in PUBLIC)


def test_an_unknown_name_is_refused():
    import hasten

    with pytest.raises(AttributeError, match="LMM"):
        hasten.LMM  # noqa: B018
