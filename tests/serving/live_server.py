"""``live_server``: an application behind a real uvicorn, on a free port of this machine, in a thread of the test's process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

DEADLINE = 30.0  # seconds


@contextmanager
def live_server(app: Any, **config: Any) -> Iterator[str]:
    """Run an ASGI application and yield its URL, such as ``http://127.0.0.1:40321``.

    It accepts connections before the URL is yielded, and open connections are closed at the end. ``config``: of ``uvicorn.Config``.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    is_ready = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            is_ready.set()

    settings = {"log_level": "warning", "access_log": False, "lifespan": "auto", "timeout_graceful_shutdown": 2, **config}
    server = Server(uvicorn.Config(app, **settings))
    failures: list[BaseException] = []

    def run() -> None:
        try:
            server.run(sockets=[listener])
        except BaseException as error:  # shown by the test's thread
            failures.append(error)
        finally:
            is_ready.set()

    thread = threading.Thread(target=run, name="live-server")
    thread.start()
    try:
        assert is_ready.wait(DEADLINE) and server.started, "the server did not start"
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(DEADLINE)
        listener.close()
    assert not thread.is_alive(), "the server did not end"
    assert not failures, failures
