"""``hasten serve``: where its options come from, and one real server that is stopped, killed and drained."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.serving.served_program import ServedProgram, until

from hasten.cli.serve import GROUPS
from hasten.cli.server_options import HELP, SERVE_HELP, ServeOptions
from hasten.serving.server_options import ServerOptions

KEY = "sk-1f0c-a-key-of-the-file"


@pytest.fixture
def served(hasten, monkeypatch):
    """Return a function that runs ``hasten serve`` without a server; it returns the models' options and the server's."""
    for name in os.environ:
        if name.startswith("HASTEN_"):
            monkeypatch.delenv(name)
    calls: list[tuple[Any, Any]] = []
    monkeypatch.setattr("hasten.serving.run_server.run_server", lambda models, options, say: calls.append((models, options)) or 0)

    def call(*arguments: str) -> tuple[list[tuple[str, str, dict[str, Any]]], ServerOptions]:
        output = hasten("serve", *arguments)
        assert output.code == 0, output.err
        models, options = calls.pop()
        return [(model.name, model.path, dict(model.options)) for model in models], options

    call.errors = lambda *arguments: one_error(hasten("serve", *arguments))  # type: ignore[attr-defined]
    return call


def one_error(output) -> str:
    assert output.code == 2
    assert re.fullmatch(r"error: [^\n]+\.\n", output.err), output.err
    return output.err


def test_every_option_of_the_server_has_a_help_text_and_a_name_of_its_own():
    assert list(HELP) == [field.name for field in dataclasses.fields(ServerOptions)]
    assert list(SERVE_HELP) == [field.name for field in dataclasses.fields(ServeOptions)]
    names = [name for group in GROUPS for name in group.help]
    assert len(names) == len(set(names))


def test_the_argument_and_further_models(served):
    models, options = served("demo", "--model", "small=./models/small", "-m", "hub/name", "--threads", "2", "--port", "0")
    engine = {"threads": 2}
    assert models == [("demo", "demo", engine), ("small", "./models/small", engine), ("hub/name", "hub/name", engine)]
    assert options == ServerOptions(port=0)


@pytest.mark.parametrize("from_flag, from_environment, from_model, from_file", [*itertools.product([False, True], repeat=4)])
def test_the_command_line_comes_before_the_environment_and_that_before_the_file(
    served, monkeypatch, tmp_path, from_flag, from_environment, from_model, from_file
):
    own = {"path": "./b", "max_model_len": 300} if from_model else {"path": "./b"}
    top = "max_model_len: 400\nport: 4000\n" if from_file else ""
    (tmp_path / "serve.yaml").write_text(f"{top}models: {{a: ./a, b: {own}}}")
    if from_environment:
        monkeypatch.setenv("HASTEN_MAX_MODEL_LEN", "200")
        monkeypatch.setenv("HASTEN_PORT", "2000")
    flags = ["--max-model-len", "100", "--port", "1000"] if from_flag else []
    models, options = served("--config", str(tmp_path / "serve.yaml"), *flags)

    def first(*pairs: tuple[bool, int]) -> int | None:
        return next((value for is_there, value in pairs if is_there), None)

    above = ((from_flag, 100), (from_environment, 200))
    expected = [first(*above, (from_file, 400)), first(*above, (from_model, 300), (from_file, 400))]
    assert [options.get("max_model_len") for _, _, options in models] == expected
    assert [(name, path) for name, path, _ in models] == [("a", "./a"), ("b", "./b")]
    assert options.port == first((from_flag, 1000), (from_environment, 2000), (from_file, 4000), (True, 8000))


def test_models_of_the_command_line_replace_those_of_the_environment_and_the_file(served, monkeypatch, tmp_path):
    config = tmp_path / "serve.yaml"
    config.write_text("models: {a: ./a}")
    monkeypatch.setenv("HASTEN_CONFIG", str(config))
    assert served()[0] == [("a", "./a", {})]
    monkeypatch.setenv("HASTEN_MODEL", "b=./b, ./c")
    assert served()[0] == [("b", "./b", {}), ("./c", "./c", {})]
    assert served("demo")[0] == [("demo", "demo", {})]


def test_the_name_of_the_first_model(served):
    assert served("./long/path", "--served-model-name", "short", "-m", "b=./b")[0] == [
        ("short", "./long/path", {}),
        ("b", "./b", {}),
    ]
    assert "a model without a name" in served.errors("-m", "b=./b", "--served-model-name", "short")


def test_keys_of_all_sources_add_up(served, tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("one\n\n  two  \n")
    second.write_text("three")
    for file in (first, second):
        file.chmod(0o600)
    _, options = served("demo", "--api-key", "a", "--api-keys", "b", "--api-key-file", str(first), "--api-key-file", str(second))
    assert options.api_keys == ("a", "b", "one", "two", "three")
    monkeypatch.setenv("HASTEN_API_KEY", "x,y")
    monkeypatch.setenv("HASTEN_API_KEY_FILE", str(second))
    assert served("demo")[1].api_keys == ("x", "y", "three")
    assert "three" not in repr(options)


@pytest.mark.filterwarnings("always::hasten.cli.serve.KeyFileWarning")
def test_a_key_file_that_others_can_read_gets_a_warning(hasten, served, tmp_path):
    file = tmp_path / "keys"
    file.write_text("sk-secret")
    for mode, count in ((0o600, 0), (0o640, 1), (0o604, 1)):
        file.chmod(mode)
        output = hasten("serve", "demo", "--api-key-file", str(file))
        assert output.err.count("warning: other users can read the API keys") == count
        assert "sk-secret" not in output.err


@pytest.mark.parametrize(
    "arguments, parts",
    [
        ([], ["needs a model", "hasten serve demo"]),
        (["demo", "--port", "http"], ["--port has the wrong form", "http"]),
        (["demo", "--port", "99999"], ["port=99999", "0 to 65535"]),
        (["demo", "--threads", "0"], ["threads=0", "1 to 1024"]),
        (["demo", "--pord", "1"], ["unknown option --pord", "'--port'"]),
        (["demo", "--model", "=./a"], ["--model has the wrong form", "NAME=MODEL"]),
        (["demo", "--model", "a="], ["--model has the wrong form", "NAME=MODEL"]),
        (["demo", "--model", "demo=./b"], ["a name of its own", "demo, demo"]),
        (["demo", "--config", "nowhere.yaml"], ["nowhere.yaml", "cannot be read"]),
        (["demo", "--api-key-file", "nowhere"], ["nowhere", "cannot be read"]),
        (["demo", "--host", "0.0.0.0"], ["no API key protects it", "--api-key-file", "--insecure"]),
        (["demo", "--host", "::"], ["no API key protects it"]),
        (["demo", "--host", "nowhere.invalid"], ["the host has no address", "nowhere.invalid"]),
        (["demo", "--host", "x" * 300], ["the host has no address"]),
        (["demo", "--host", "192.0.2.1", "--insecure"], ["the server cannot listen", "192.0.2.1"]),
    ],
)
def test_a_mistake_is_one_sentence(hasten, arguments, parts):
    error = one_error(hasten("serve", *arguments))
    assert all(part in error for part in parts), error


def test_a_port_in_use_is_one_sentence(hasten):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = one_error(hasten("serve", "demo", "--port", str(port)))
    assert f"http://127.0.0.1:{port}" in error and "Choose another" in error


def test_without_the_extra_the_remedy_is_one_sentence(hasten, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    error = one_error(hasten("serve", "demo"))
    assert 'pip install "hasten[serve]"' in error


def test_the_help_of_other_commands_loads_no_server():
    code = "import sys, hasten.cli.main; print([name for name in ('fastapi', 'uvicorn', 'starlette') if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "[]\n"


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Iterator[ServedProgram]:
    folder = tmp_path_factory.mktemp("serve")
    (folder / "keys").write_text(f"{KEY}\n")
    (folder / "keys").chmod(0o600)
    (folder / "serve.yaml").write_text("port: 0\nmax_model_len: 512\nthreads: 1\nkv_cache_memory: 64MiB\nmodels: {demo: demo}\n")
    arguments = ["-m", "hasten", "serve", "--config", "serve.yaml", "--api-key-file", "keys"]
    with ServedProgram(*arguments, environment={"HASTEN_DRAIN_TIMEOUT": "7"}, cwd=folder) as program:
        yield program


@pytest.fixture(scope="module")
def client(program) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=program.url, headers=headers, timeout=30) as client:
        until(client, "/readyz", 200)
        yield client


def engine_pid(program: ServedProgram) -> int:
    pid = program.process.pid
    children = {int(text) for file in Path(f"/proc/{pid}/task").glob("*/children") for text in file.read_text().split()}
    (found,) = [child for child in children if b"engine_process" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return found


def test_the_server_says_what_it_serves(program, client):
    assert program.line("models:") == "models: demo loads now"
    assert program.line("protection:") == "protection: 1 API key, on every route but the probes"
    assert "320 requests per model run or wait" in program.line("limits:")
    assert "context of 512 tokens" in program.line("is loaded")


def test_probes_need_no_key_and_other_routes_do(program, client):
    with httpx.Client(base_url=program.url) as stranger:
        assert [stranger.get(path).status_code for path in ("/health", "/livez", "/readyz")] == [200, 200, 200]
        assert stranger.get("/nowhere").status_code == 401
    assert client.get("/nowhere").status_code == 404


def test_no_key_is_visible_in_the_process_list_or_the_log(program, client):
    client.get("/nowhere")
    listed = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True, timeout=30).stdout
    assert "--api-key-file keys" in listed
    assert KEY not in listed
    assert KEY not in program.text


def test_the_model_answers(client):
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["demo"]
    answer = client.post("/v1/completions", json={"model": "demo", "prompt": "def", "max_tokens": 4})
    assert answer.json()["usage"]["completion_tokens"] == 4


def test_headers_are_bounded(client):
    assert client.get("/livez", headers={"x-long": "a" * 70_000}).status_code == 431


def test_an_engine_that_is_stopped_makes_the_server_unready_until_it_goes_on(program, client):
    pid = engine_pid(program)
    os.kill(pid, signal.SIGSTOP)
    try:
        answer = until(client, "/readyz", 503, seconds=10)
        assert answer.json()["status"] == "not_answering"
        assert client.get("/livez").status_code == 200
    finally:
        os.kill(pid, signal.SIGCONT)
    until(client, "/readyz", 200)
    assert engine_pid(program) == pid


def test_an_engine_that_is_killed_ends_its_streams_with_an_error_and_is_restarted(program, client):
    pid = engine_pid(program)
    body = {"model": "demo", "prompt": "def", "max_tokens": 500, "ignore_eos": True, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as stream:
        events = stream.iter_lines()
        assert "choices" in next(events)
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        last = [event for event in events if event][-1]
    assert time.monotonic() - killed < 2
    assert "the engine has ended" in last and "[DONE]" not in last
    until(client, "/health", 503, seconds=10)
    until(client, "/health", 200)
    assert engine_pid(program) != pid
    assert program.process.poll() is None
    assert "SIGKILL" in program.line("the engine of 'demo' has died")


def test_sigterm_ends_the_server_and_its_engine(program, client):
    """The last test of the shared server."""
    pid = engine_pid(program)
    program.send(signal.SIGTERM)
    assert program.wait() == 0
    assert not Path(f"/proc/{pid}").exists()
    assert "Traceback" not in program.text
