"""``run_server``: the server as a program."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence

from hasten.core.errors import printable
from hasten.entrypoints.async_llm import AsyncLLM
from hasten.serving.end_process import end_process
from hasten.serving.greeting import greeting
from hasten.serving.listener import open_listener
from hasten.serving.model_server import ModelServer
from hasten.serving.models.engine_loader import load_engine
from hasten.serving.models.model_config import ModelConfig
from hasten.serving.server_options import ServerOptions
from hasten.serving.surface import Surface
from hasten.serving.surfaces import all_surfaces


def run_server(
    models: Sequence[ModelConfig],
    options: ServerOptions,
    say: Callable[[str], None],
    *,
    load: Callable[[ModelConfig], Awaitable[AsyncLLM]] = load_engine,
    surfaces: Sequence[Surface] | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code. It belongs into the main thread.

    0 after SIGTERM, 130 after SIGINT, 1 if running requests were cut or an engine kept dying. A second signal ends the process at
    once. ``say`` gets the lines that are for a person. ``surfaces``: all by default.

    Raises ``InvalidOption`` for an address that cannot be used, and ``HastenError`` if the first model cannot be loaded.
    """
    listener = open_listener(options)
    with contextlib.closing(listener), _log_to_stderr():
        server = ModelServer(models, options, load, all_surfaces() if surfaces is None else surfaces, say)
        for line in greeting(models, options, listener.getsockname()):
            say(line)
        gc.collect()
        gc.freeze()  # what is loaded now stays; else a full collection stops the event loop for a tenth of a second
        with asyncio.Runner(loop_factory=server.loop_factory) as runner:
            code = runner.run(server.run(listener))
            if server.has_threads_left:  # the interpreter would wait for them
                end_process(code)
    return code


class _OneLine(logging.Formatter):
    """Escapes control characters in messages, which may come from a client."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)


@contextlib.contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Write warnings and errors to standard error, unless the program has set up its log."""
    root = logging.getLogger()
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # what clients send wrongly is no fault of the server
    if root.handlers:
        yield
        return
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
