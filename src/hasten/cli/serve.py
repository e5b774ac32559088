"""``hasten serve``: models behind HTTP."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hasten.cli.engine_options import ENGINE, Debug, ModelArgument
from hasten.cli.environment import read_environment
from hasten.cli.hand_over import hand_over
from hasten.cli.options import OptionValues, with_options
from hasten.cli.serve_file import NamedModel, ServeFile, read_serve_file
from hasten.cli.server_options import SERVE, SERVER, ServeOptions
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidOption, printable, show
from hasten.quality.documents import read_text_file
from hasten.quality.yaml_file import check_file_size
from hasten.serving.server_options import ServerOptions

if TYPE_CHECKING:
    from hasten.serving.models.model_config import ModelConfig

GROUPS = (SERVE, SERVER, ENGINE)
PACKAGES = ("fastapi", "uvicorn", "httptools", "prometheus_client", "msgpack")  # of the extra "serve"
MAX_KEY_BYTES = 1 << 20


class KeyFileWarning(UserWarning):
    """A file of API keys that other users of the machine can read."""


@with_options(*GROUPS)
def serve(
    name: ModelArgument = None,
    debug: Debug = False,
    *,
    serve_options: OptionValues,
    server: OptionValues,
    engine: OptionValues,
) -> None:
    """Serve models over HTTP, until SIGTERM or Ctrl-C.

    Every option is also a variable of the environment, such as HASTEN_MAX_MODEL_LEN for --max-model-len, where commas separate
    several values; and a name in the file of --config, such as max_model_len. The command line comes before the environment, and
    the environment before the file.
    """
    flags = [serve_options, server, engine]
    if name is not None:
        serve_options["model"] = (name, *serve_options.get("model", ()))
    environment = read_environment(GROUPS, os.environ)
    config = flags[0].get("config") or environment[0].get("config")
    file = ServeFile([{} for _ in GROUPS]) if config is None else read_serve_file(Path(config), GROUPS, ENGINE)
    own, options, _ = (low | middle | high for low, middle, high in zip(file.values, environment, flags, strict=True))
    chosen = ServeOptions(**own)
    options["api_keys"] = (*options.get("api_keys", ()), *(key for path in chosen.api_key_file for key in read_keys(Path(path))))
    models = _models(chosen, file.models if "model" not in environment[0] | flags[0] else ())
    configs = [_config(model, file.values[2], environment[2] | flags[2]) for model in models]
    if code := _run(chosen.engine, configs, ServerOptions(**options)):
        raise typer.Exit(code)


def _run(engine: str, models: list[ModelConfig], options: ServerOptions) -> int:
    """Serve until the end and return the exit code. Raises ``InvalidOption`` for a missing package."""
    if engine == "vllm":
        return hand_over(EngineOptions.from_dict(models[0].options), options, {model.name: model.path for model in models})
    if missing := [package for package in PACKAGES if find_spec(package) is None]:
        raise InvalidOption(
            "hasten serve needs further packages", got=f"no {missing[0]}", remedy='Run: pip install "hasten[serve]"'
        )
    from hasten.serving.run_server import run_server

    return run_server(models, options, _say)


def read_keys(path: Path) -> list[str]:
    """Return the API keys of a file, one per line. Warns if others can read it. Raises ``InvalidOption``."""
    check_file_size(path, MAX_KEY_BYTES, "file of API keys")
    keys = [line.strip() for line in read_text_file(path).splitlines() if line.strip()]
    if not keys:
        raise InvalidOption("a file of API keys has none", got=path, allowed="one key per line")
    if os.name == "posix" and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        warnings.warn(f"other users can read the API keys in {path}; run: chmod 600 {path}", KeyFileWarning, stacklevel=2)
    return keys


def _models(chosen: ServeOptions, from_file: tuple[NamedModel, ...]) -> list[NamedModel]:
    """Return the models, the default one first.

    Raises ``InvalidOption`` for none, and for a name that fits none.
    """
    if chosen.model and from_file:
        raise InvalidOption("a file has either model or models", got="both", remedy="Move the model to models")
    models = [_named_model(text) for text in chosen.model] or list(from_file)
    if not models:
        raise InvalidOption("a server needs a model", got="none", remedy="Name one, for instance: hasten serve demo")
    if chosen.served_model_name is not None:
        if models[0].name != models[0].path:
            raise InvalidOption(
                "--served-model-name is for a model without a name", got=f"the model {show(models[0].name)}", remedy="Leave one out"
            )
        models[0] = dataclasses.replace(models[0], name=chosen.served_model_name)
    return models


def _named_model(text: str) -> NamedModel:
    name, equals, path = text.partition("=")
    if not name or (equals and not path):
        raise InvalidOption("--model has the wrong form", got=show(text), allowed="MODEL or NAME=MODEL")
    return NamedModel(name, path if equals else name)


def _config(model: NamedModel, from_file: OptionValues, given: OptionValues) -> ModelConfig:
    from hasten.serving.models.model_config import ModelConfig

    return ModelConfig(model.name, model.path, from_file | model.options | given)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the server goes on without a reader
        print(printable(text), file=sys.stderr, flush=True)
