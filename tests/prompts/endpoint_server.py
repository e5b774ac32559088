"""An HTTP server on loopback that answers as a test says, and notes what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Asked:
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


@dataclass
class EndpointServer:
    """``answer`` writes the answer of one request; ``ended`` is set when the test is over."""

    answer: Callable[[BaseHTTPRequestHandler, Asked], None]
    asked: list[Asked] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    url: str = ""


def send(handler: BaseHTTPRequestHandler, content: bytes | str | object, status: int = 200, **headers: str) -> None:
    data = content if isinstance(content, bytes) else (content if isinstance(content, str) else json.dumps(content)).encode()
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def completion(text: object, **choice: object) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}, **choice}], "usage": {"total_tokens": 42}}


@contextmanager
def serve(answer: Callable[[BaseHTTPRequestHandler, Asked], None]) -> Iterator[EndpointServer]:
    state = EndpointServer(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = Asked(self.path, self.headers, body)
            state.asked.append(asked)
            try:
                state.answer(self, asked)
            except OSError:
                self.close_connection = True  # the client has hung up

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            state.ended.set()
            server.shutdown()
            thread.join()
