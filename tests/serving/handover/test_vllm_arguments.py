"""The arguments of ``vllm serve``, read by a parser that has vLLM's names, types and choices."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from hasten.checkpoints.hub import SHIPPED
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidOption
from hasten.serving.handover.vllm_arguments import ALWAYS_NOTED, MISSING, REFUSED, SAME, TRANSLATED, VllmCommand, vllm_command
from hasten.serving.server_options import ServerOptions

DEMO = str(SHIPPED["demo"])
QWEN_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endfor %}<tool_call></think>"
# Of a speculative configuration: vllm/config/speculative.py.
METHODS = {"ngram", "suffix", "draft_model", "eagle3", "medusa"}


def vllm_parser() -> argparse.ArgumentParser:
    """As vllm/engine/arg_utils.py and vllm/entrypoints/openai/cli_args.py declare them, without what hasten never passes."""
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--served-model-name", nargs="+")
    parser.add_argument("--dtype", choices=["auto", "half", "float16", "bfloat16", "float", "float32"], default="auto")
    parser.add_argument("--max-model-len", type=lambda text: text if text == "auto" else int(text))
    for name in ("--revision", "--tokenizer-revision", "--host", "--tool-call-parser", "--reasoning-parser"):
        parser.add_argument(name)
    for name in ("--max-num-seqs", "--max-num-batched-tokens", "--block-size", "--seed", "--max-num-queued-reqs", "--port"):
        parser.add_argument(name, type=int)
    for name in ("--kv-cache-memory-bytes", "--h11-max-header-count"):
        parser.add_argument(name, type=int)
    parser.add_argument("--kv-cache-dtype", choices=["auto", "int8_per_token_head", "fp8"], default="auto")
    parser.add_argument("--scheduling-policy", choices=["fcfs", "priority"], default="fcfs")
    parser.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction)
    for name in ("--enable-auto-tool-choice", "--enable-prompt-tokens-details", "--trust-request-chat-template"):
        parser.add_argument(name, action="store_true")
    parser.add_argument("--allowed-origins", type=json.loads, default=["*"])
    parser.add_argument("--speculative-config", type=json.loads)
    return parser


def command(models=None, server=None, **engine) -> VllmCommand:
    return vllm_command(EngineOptions(**engine), ServerOptions(**(server or {})), {"demo": "demo"} if models is None else models)


def parsed(**options) -> argparse.Namespace:
    return vllm_parser().parse_args(command(**options).arguments)


def notes(**options) -> str:
    found = command(**options)
    assert found.notes[: len(ALWAYS_NOTED)] == ALWAYS_NOTED
    return "\n".join(found.notes[len(ALWAYS_NOTED) :])


def test_every_option_has_its_place():
    """A new option fails here until it is translated, noted or refused."""
    fields = {field.name for options in (EngineOptions, ServerOptions) for field in dataclasses.fields(options)}
    places = [set(SAME), TRANSLATED, set(MISSING), set(REFUSED)]
    assert set().union(*places) >= fields
    assert sum(map(len, places)) == len(set().union(*places)), "one place each"


def test_the_defaults_are_those_of_hasten_where_vllm_has_others():
    found = parsed()
    assert (found.model, found.served_model_name) == (DEMO, ["demo"])
    assert (found.host, found.port, found.allowed_origins) == ("127.0.0.1", 8000, [])  # vLLM: all interfaces, all origins
    assert found.max_model_len == "auto" and found.enable_prefix_caching and found.enable_prompt_tokens_details
    assert found.speculative_config is None and found.max_num_seqs is None and found.kv_cache_memory_bytes is None
    assert command().environment == {
        "VLLM_MAX_N_SEQUENCES": "8",
        "VLLM_MAX_COMPLETION_PROMPTS": "64",
        "VLLM_NO_USAGE_STATS": "1",
    }


def test_options_keep_their_values():
    engine = {
        "dtype": "bfloat16",
        "max_model_len": 4096,
        "kv_cache_memory": "2GiB",
        "kv_cache_dtype": "int8",
        "block_size": 32,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 512,
        "prefix_caching": False,
        "scheduling_policy": "priority",
        "seed": 7,
        "tool_call_parser": "hermes",
        "reasoning_parser": "qwen3",
    }
    server = {
        "port": 9000,
        "allowed_origins": ("https://a.example",),
        "max_requests": 50,
        "max_headers": 20,
    }
    found = parsed(server=server, **engine)
    same = ("dtype", "max_model_len", "block_size", "max_num_seqs", "max_num_batched_tokens", "scheduling_policy", "seed")
    assert [getattr(found, name) for name in same] == [engine[name] for name in same]
    assert found.kv_cache_memory_bytes == 2 * 1024**3 and found.kv_cache_dtype == "int8_per_token_head"
    assert found.enable_prefix_caching is False
    assert (found.tool_call_parser, found.enable_auto_tool_choice, found.reasoning_parser) == ("hermes", True, "qwen3")
    assert (found.port, found.allowed_origins, found.max_num_queued_reqs) == (9000, ["https://a.example"], 50)
    assert found.h11_max_header_count == 20


def test_a_revision_is_that_of_the_tokenizer_too():
    found = parsed(models={"m": "org/model"}, revision="v2")
    assert (found.model, found.revision, found.tokenizer_revision) == ("org/model", "v2", "v2")
    assert "not on this machine" in notes(models={"m": "org/model"}, revision="v2") and "not on this machine" not in notes()


def folder_like_demo(folder: Path, **config) -> dict[str, str]:
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | config))
    return {"m": str(folder)}


def test_a_float32_checkpoint_stays_float32(tmp_path):
    assert parsed(models=folder_like_demo(tmp_path / "a", dtype="float32")).dtype == "float32"
    assert parsed(models=folder_like_demo(tmp_path / "b", dtype="bfloat16")).dtype == "auto"
    assert parsed(models={"m": str(tmp_path / "a")}, dtype="float16").dtype == "float16"


def test_parsers_are_those_of_the_chat_template(tmp_path):
    models = folder_like_demo(tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").write_text(QWEN_TEMPLATE)
    found = parsed(models=models)
    assert (found.tool_call_parser, found.enable_auto_tool_choice, found.reasoning_parser) == ("hermes", True, "qwen3")
    found = parsed(models=models, tool_call_parser="none", reasoning_parser="none")
    assert (found.tool_call_parser, found.enable_auto_tool_choice, found.reasoning_parser) == (None, False, None)


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ({"speculative_method": "prompt_lookup"}, {"method": "ngram", "num_speculative_tokens": 4}),
        ({"speculative_method": "prompt_lookup", "num_speculative_tokens": 7}, {"method": "ngram", "num_speculative_tokens": 7}),
        ({"speculative_method": "suffix"}, {"method": "suffix"}),
        (
            {"speculative_method": "draft_model", "draft_model": "demo-draft"},
            {"method": "draft_model", "model": str(SHIPPED["demo-draft"]), "num_speculative_tokens": 4},
        ),
        (
            {"draft_model": "org/small", "num_speculative_tokens": 5},
            {"method": "draft_model", "model": "org/small", "num_speculative_tokens": 5},
        ),
        ({"speculative_method": "eagle", "draft_heads": "org/head"}, {"method": "eagle3", "model": "org/head"}),
        (
            {"speculative_method": "medusa", "draft_heads": "org/heads", "num_speculative_tokens": 3},
            {"method": "medusa", "model": "org/heads", "num_speculative_tokens": 3},
        ),
        ({"draft_heads": "org/heads"}, {"model": "org/heads"}),
        ({"speculative_method": "off"}, None),
        ({"speculative_method": "auto"}, None),
        ({"speculative_method": "self_speculation", "self_draft_layers": 2}, None),
    ],
)
def test_the_drafter_is_handed_over(engine, expected):
    found = parsed(**engine).speculative_config
    assert found == expected
    assert found is None or found.get("method") in {*METHODS, None}
    assert ("without speculation" in notes(**engine)) == (engine.get("speculative_method") in ("auto", "self_speculation"))


@pytest.mark.parametrize(
    ("engine", "server", "word"),
    [
        ({"threads": 4}, {}, "threads"),
        ({"batching": "static"}, {}, "batching"),
        ({"result_cache": "memory:"}, {}, "result_cache"),
        ({"max_stop_strings": 2}, {}, "max_stop_strings"),
        ({}, {"keep_alive": 60.0}, "keep_alive"),
        ({}, {"max_body_bytes": 1000}, "max_body_bytes"),
        ({}, {"drain_timeout": 5.0}, "drain_timeout"),
    ],
)
def test_what_vllm_lacks_is_noted(engine, server, word):
    assert f"no equivalent of {word}:" in notes(server=server, **engine)
    assert "no equivalent" not in notes()


def test_an_unbounded_queue_is_noted():
    assert "no bound" in notes() and "no bound" not in notes(server={"max_requests": 10})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization": "int8"}, "quantization"),
        ({"quantization": "int4-weight-only"}, "hasten quantize"),
        ({"activations": "float"}, "activations"),
        ({"exits": "demo-exits"}, "exits"),
        ({"models": {"a": "demo", "b": "demo"}}, "one model"),
        ({"models": {}}, "one model"),
        ({"models": {"a": "model.gguf"}}, "GGUF"),
        ({"server": {"api_keys": ("a", "b")}}, "2 keys"),
        ({"tool_call_parser": "unknown"}, "unknown"),
    ],
)
def test_what_would_change_outputs_is_refused(options, message):
    with pytest.raises(InvalidOption, match=message):
        command(**options)


def test_the_key_is_not_an_argument():
    found = command(server={"api_keys": ("top-secret",)})
    assert found.environment["VLLM_API_KEY"] == "top-secret" and "top-secret" not in " ".join((*found.arguments, *found.notes))
