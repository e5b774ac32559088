"""Hostile bytes on connections to a served model: heads, bodies and framing that no client library sends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.serving import hostile_bodies
from tests.serving.hostile_bodies import Hostile, completion, formed, generate, message, said, sent
from tests.serving.watched_server import WatchedServer

DEADLINE = 30.0  # seconds
BODY = b'{"prompt": "def f(a):", "max_tokens": 2}'
CLOSED = 0  # in place of a status: closed without an answer
REFUSED = (CLOSED, 400)


def head(
    *lines: str, target: str = "/v1/completions", method: str = "POST", version: str = "1.1", host: str = "localhost"
) -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/{version}", f"host: {host}", *lines, "", ""]).encode("latin-1")


def post(*lines: str, body: bytes = BODY, kind: str = "application/json") -> bytes:
    return head(f"content-type: {kind}", f"content-length: {len(body)}", *lines) + body


def get(target: str) -> bytes:
    return head("connection: close", target=target, method="GET")


CHUNKED = head("content-type: application/json", "transfer-encoding: chunked")
# Bytes that are sent, and the statuses that may answer them.
CONNECTIONS: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "json": (post("connection: close"), (200,)),
    "json with a charset": (post("connection: close", kind="application/json; charset=utf-8"), (200,)),
    "plain text": (post(kind="text/plain"), (415,)),
    "a form": (post(kind="application/x-www-form-urlencoded"), (415,)),
    "several parts": (post(kind="multipart/form-data; boundary=a"), (415,)),
    "two types": (post("content-type: application/json"), (400, 415)),
    "no type": (head(f"content-length: {len(BODY)}") + BODY, (415,)),
    "compressed": (post("content-encoding: gzip"), (415,)),
    "half a body": (head("content-type: application/json", "content-length: 1000") + BODY, (CLOSED,)),
    "half a head": (b"POST /v1/completions HTTP/1.1\r\nhost: local", (CLOSED,)),
    "half a chunk": (CHUNKED + b"1000\r\n{", (CLOSED,)),
    "a chunk of no number": (CHUNKED + b"xyz\r\n{}\r\n", REFUSED),
    "a chunk beyond all numbers": (CHUNKED + b"f" * 40 + b"\r\n{}\r\n", REFUSED),
    "a negative length": (head("content-type: application/json", "content-length: -1") + BODY, REFUSED),
    "a length of no number": (head("content-type: application/json", "content-length: 1_0") + BODY, REFUSED),
    "a length beyond all numbers": (head("content-type: application/json", f"content-length: {'9' * 40}"), (*REFUSED, 413)),
    "a length beyond the limit": (head("content-type: application/json", "content-length: 99999999"), (413,)),
    "two lengths": (post("content-length: 1"), REFUSED),
    "a length and chunks": (post("transfer-encoding: chunked", body=b"0\r\n\r\n"), REFUSED),
    "an unknown coding": (
        head("content-type: application/json", "transfer-encoding: gzip, chunked") + b"0\r\n\r\n",
        (*REFUSED, 501),
    ),
    "a header without a name": (post(": a"), REFUSED),
    "a header of two lines": (post("a: b\r\n c"), (200, *REFUSED)),
    "a space in a name": (post("a b: c"), REFUSED),
    "NUL in a header": (post("a: b\0c"), REFUSED),
    "many headers": (post(*[f"a{i}: b" for i in range(1000)]), (*REFUSED, 431)),
    "a long header": (post(f"a: {'b' * 100_000}"), (*REFUSED, 431)),
    "a long target": (get("/" + "a" * 100_000), (*REFUSED, 404, 414, 431)),
    "a long query": (get("/cache?model=" + "a" * 20_000), (*REFUSED, 404, 414, 431)),
    "another host": (head(host="example.com", method="GET", target="/v1/models"), (403,)),
    "an address as target": (get("http://example.com/v1/models"), (200, 403, 404, *REFUSED)),
    "a path upwards": (get("/v1/models/../../../etc/passwd"), (404,)),
    "an encoded path upwards": (get("/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd"), (404,)),
    "NUL in a path": (get("/v1/models/a%00b"), (404, *REFUSED)),
    "half a character in a path": (get("/v1/models/%ff%fe"), (404, *REFUSED)),
    "no path": (get("v1/models"), (404, *REFUSED)),
    "an unknown method": (head(method="BREW"), (405, *REFUSED)),
    "a tunnel": (head(method="CONNECT", target="example.com:443"), (404, 405, *REFUSED)),
    "an old version": (head(method="GET", target="/version", version="0.9"), (200, *REFUSED)),
    "a new version": (head(method="GET", target="/version", version="9.9"), (200, 505, *REFUSED)),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", REFUSED),
    "TLS": (bytes.fromhex("160301020001000001fc0303") + bytes(500), REFUSED),
    "a websocket": (
        head("upgrade: websocket", "connection: upgrade", "sec-websocket-version: 13", "sec-websocket-key: YQ==", method="GET"),
        (404, 405, *REFUSED),
    ),
    "noise": (bytes(range(256)) * 100, REFUSED),
}


def address(server: WatchedServer) -> tuple[str, int]:
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)


@contextlib.contextmanager
def connected(server: WatchedServer) -> Iterator[socket.socket]:
    with socket.create_connection(address(server), timeout=DEADLINE) as connection:
        yield connection


def statuses(answer: bytes) -> list[int]:
    """Return the statuses of the answers on one connection."""
    found = []
    while answer:
        top, _, rest = answer.partition(b"\r\n\r\n")
        found.append(int(top.split(b" ", 2)[1]))
        headers = dict(line.lower().split(b": ", 1) for line in top.split(b"\r\n")[1:])
        if b"content-length" not in headers:
            assert headers.get(b"transfer-encoding") == b"chunked", top
            answer = rest.partition(b"0\r\n\r\n")[2]
        else:
            answer = rest[int(headers[b"content-length"]) :]
    return found


def read_all(connection: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65_536):
            received += part
    return received


@pytest.mark.parametrize("name", CONNECTIONS)
def test_a_hostile_connection(watched: WatchedServer, name: str) -> None:
    """A client that waits for no answer ends its side after it has sent all."""
    content, allowed = CONNECTIONS[name]
    with watched.unharmed(name), connected(watched) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(content)
            if CLOSED in allowed:
                connection.shutdown(socket.SHUT_WR)
        found = statuses(read_all(connection))
    assert (found[0] if found else CLOSED) in allowed


def test_pipelined_requests_have_their_own_answers_in_order(watched: WatchedServer) -> None:
    prompts = ["def add(a, b):", "import os", "class Point:", "for i in range("]
    bodies = [{"prompt": prompt, "max_tokens": 4, "temperature": 0, "return_token_ids": True} for prompt in prompts]
    expected = [watched.client.post("/v1/completions", json=body).json()["choices"][0]["token_ids"] for body in bodies]
    poison = json.dumps({"prompt": "a", "logit_bias": {"99999999": 1}}).encode()
    parts = [post(body=json.dumps(body).encode()) for body in bodies]
    with watched.unharmed("pipelined"), connected(watched) as connection:
        connection.sendall(
            b"".join([parts[0], post(body=poison), *parts[1:3], post("connection: close", body=parts[3].partition(b"\r\n\r\n")[2])])
        )
        answer = read_all(connection)
    assert statuses(answer) == [200, 400, 200, 200, 200]
    texts = [part.partition(b"HTTP/1.1 ")[0] for part in answer.split(b"\r\n\r\n")]
    found = [json.loads(each)["choices"][0]["token_ids"] for each in texts if each.startswith(b'{"id":')]
    assert found == expected


def test_a_body_that_comes_byte_by_byte(watched: WatchedServer) -> None:
    with watched.unharmed("slowly"), connected(watched) as connection:
        for byte in post("connection: close"):
            connection.sendall(bytes([byte]))
        assert statuses(read_all(connection)) == [200]


def places(where: str) -> list[Hostile]:
    """Return requests that name a file or an address in each field that could be taken for one."""
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": where}}]}
    source: Any = [{"role": "user", "content": [{"type": "document", "source": {"type": "url", "url": where}}]}]
    return [
        completion("model", model=where),
        message("model", model=where),
        sent("/generate", "model", {"inputs": "a", "model": where}),
        sent("/tokenize", "model", {"prompt": "a", "model": where}),
        sent("/v1/templates/render", "template", {"name": where}),
        generate("adapter_id", adapter_id=where),
        formed("json", {"$ref": where}),
        formed("json", {"$schema": where, "$id": where, "$ref": "#/$defs/a"}),
        said("messages.0", picture),
        message("documents", messages=source),
        completion(hostile_bodies.RIGHT, user=where, request_id=where, metadata={"url": where}),
    ]


def test_no_request_opens_a_file_or_an_address(watched: WatchedServer, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)  # who opened it would wait for a writer, and be seen
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/model.json"
        for where in (url, str(pipe), pipe.as_uri(), f"../../../../../../{pipe}"):
            for hostile in places(where):
                headers = {"content-type": "application/json"}
                answer = watched.client.post(hostile.path, content=hostile.body, headers=headers, timeout=DEADLINE)
                assert (answer.status_code == 200) == (hostile.named == hostile_bodies.RIGHT), answer.text
                assert hostile.named in answer.text
        with pytest.raises(BlockingIOError):
            listener.accept()
    with pytest.raises(OSError) as caught:
        os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    assert caught.value.errno == errno.ENXIO, "the pipe has a reader"
    watched.check("files and addresses")
