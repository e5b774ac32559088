"""``Endpoint``: a model behind an OpenAI-compatible ``/chat/completions``.

The client is the standard library's: it is one POST, and a deadline for the full answer needs the socket, because the time limits
of HTTP libraries hold for each part of an answer. It follows no redirect, which would take the API key to another host, and it uses
no proxy. The key comes from the environment, under a name of its own: another provider's key is not sent by mistake.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from typing import Any
from urllib.parse import SplitResult, urlsplit

from hasten.core.errors import HastenError, InvalidOption, clip, show
from hasten.core.unicode_text import is_unicode

KEY_VARIABLE = "HASTEN_ENDPOINT_API_KEY"
SECONDS = 300.0  # from the request to the end of the answer
CONNECT_SECONDS = 30.0
MAX_ANSWER = 4 << 20  # bytes
MAX_TRIES = 5  # of one request
MAX_WAIT = 120.0  # seconds before a new try
_RETRIED = (429, 500, 502, 503, 504)
_MAX_QUOTED = 200  # characters of an endpoint's error message
_PATH = "/chat/completions"


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    text: str
    num_tokens: int  # of question and answer, as the endpoint counts them; 0 if it does not
    first_logprobs: Mapping[str, float] = field(default_factory=dict)  # of the most likely first tokens; empty if it gives none
    is_cut: bool = False  # whether the text ended at the limit of tokens


class EndpointRefused(HastenError):
    """The endpoint answered with an error. ``status``: the HTTP status."""

    def __init__(self, what: str, status: int, *, got: object = None, remedy: str | None = None) -> None:
        super().__init__(what, got=got, remedy=remedy)
        self.status = status


class Endpoint:
    """One model of an endpoint. It is for one thread.

    ``url``: up to and with ``/v1``, as OpenAI's client takes it. ``sleep`` waits before a new try. Raises ``InvalidOption`` for a
    wrong URL or key; the key is shown nowhere.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        seconds: float = SECONDS,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._parts = _split_url(url)
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and " " not in api_key and api_key):
            raise InvalidOption("the API key has characters that no key has", remedy=f"Correct {KEY_VARIABLE}")
        self.url, self.model = url, model
        self._key, self._seconds, self._sleep = api_key, seconds, sleep

    def chat(self, prompt: str | Sequence[Mapping[str, str]], **settings: Any) -> ChatAnswer:
        """Return the answer to one message of a user, or to a conversation.

        ``settings``: further fields of the request.

        Raises ``EndpointRefused`` for a status that is no success, and ``HastenError`` for everything else that goes wrong.
        """
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        request = {"model": self.model, "messages": messages, "stream": False, **settings}
        content = self._post(json.dumps(request).encode())
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            raise self._nonsense(content.decode(errors="replace")) from None
        return self._read(answer)

    def _post(self, body: bytes) -> bytes:
        """Return the body of a successful answer; try again where the endpoint is busy."""
        for number in range(1, MAX_TRIES + 1):
            status, headers, content = self._send(body)
            if status == 200:
                return content
            wait = _seconds_to_wait(headers.get("Retry-After"), number)
            if status not in _RETRIED or number == MAX_TRIES or wait > MAX_WAIT:
                raise self._refused(status, headers, content)
            self._sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _send(self, body: bytes) -> tuple[int, Message, bytes]:
        """Return status, headers and body of one answer."""
        host, port = self._parts.hostname or "", self._parts.port
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(host, port, timeout=min(CONNECT_SECONDS, self._seconds))
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        with contextlib.closing(connection):
            try:
                connection.connect()
            except (OSError, UnicodeError) as error:
                raise self._unreachable(error) from None
            with _Deadline(connection.sock, self._seconds) as deadline:
                try:
                    connection.request("POST", _request_path(self._parts), body, headers)
                    response = connection.getresponse()
                    content = response.read(MAX_ANSWER + 1)
                except (OSError, http.client.HTTPException) as error:
                    if deadline.is_over or isinstance(error, TimeoutError):
                        raise self._too_slow() from None
                    raise self._unreachable(error) from None
            if deadline.is_over:
                raise self._too_slow()
        if len(content) > MAX_ANSWER:
            raise HastenError(f"the endpoint {self.url} sends too much", allowed=f"up to {MAX_ANSWER:,} bytes")
        return response.status, response.headers, content

    def _read(self, answer: Any) -> ChatAnswer:
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"]
            text = "" if text is None else text  # all tokens were spent on thoughts
        except (KeyError, TypeError, IndexError):
            raise self._nonsense(answer) from None
        if not is_unicode(text):
            raise self._nonsense(choice)
        usage = answer.get("usage")
        count = usage.get("total_tokens") if isinstance(usage, dict) else None
        num_tokens = count if type(count) is int and 0 <= count < 2**53 else 0
        return ChatAnswer(text, num_tokens, _first_logprobs(choice), choice.get("finish_reason") == "length")

    def _nonsense(self, got: object) -> HastenError:
        what = f"the endpoint {self.url} gives no chat completion"
        return HastenError(what, got=self._without_key(show(got)), remedy="Give the URL up to and with /v1")

    def _unreachable(self, error: Exception) -> HastenError:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return HastenError(f"the endpoint {self.url} cannot be reached", got=self._without_key(reason))

    def _too_slow(self) -> HastenError:
        return HastenError(f"the endpoint {self.url} does not answer in time", allowed=f"up to {self._seconds:g} s")

    def _refused(self, status: int, headers: Message, content: bytes) -> EndpointRefused:
        what, remedy = f"the endpoint {self.url} refuses the request", None
        got = f"status {status}, {_message(self._without_key(content.decode(errors='replace')))}"
        if 300 <= status < 400:
            what, remedy = f"the endpoint {self.url} redirects to another URL", "Give the URL that answers"
            got = f"status {status}, {self._without_key(show(headers.get('Location')))}"
        elif status in (401, 403):
            what = f"the endpoint {self.url} {'refuses the API key' if self._key else 'needs an API key'}"
            remedy = f"Set the environment variable {KEY_VARIABLE}"
        elif status in _RETRIED:
            what, remedy = f"the endpoint {self.url} is busy or fails", "Give the command again later; it goes on where it was"
        return EndpointRefused(what, status, got=got, remedy=remedy)

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "...") if self._key else text


def open_endpoint(url: str, model: str | None) -> Endpoint:
    """Return an endpoint with the API key of the environment, if there is one. Raises ``InvalidOption``."""
    if not model:
        raise InvalidOption("the model of the endpoint is missing", got=url, remedy="Name the model as the endpoint does")
    return Endpoint(url, model, api_key=os.environ.get(KEY_VARIABLE) or None)


class _Deadline:
    """Ends a connection when the time is over, so that no call on its socket waits longer."""

    def __init__(self, connected: socket.socket, seconds: float) -> None:
        self._socket = connected
        connected.settimeout(seconds)
        self.is_over = False
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()

    def _end(self) -> None:
        self.is_over = True
        with contextlib.suppress(OSError):
            # Not ``SSLSocket.shutdown``, which takes the TLS state from under a thread that reads.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def _split_url(url: str) -> SplitResult:
    """Return the parts of a URL. Raises ``InvalidOption``."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        is_plain = url.isascii() and url.isprintable() and " " not in url and not (parts.query or parts.fragment)
        # ``port`` raises an error for one out of range.
        if is_plain and parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc and parts.port != 0:
            return parts
    shown = show(url.rpartition("@")[2])  # a password stands before it
    raise InvalidOption("this is no URL of an endpoint", got=shown, allowed="such as http://localhost:8000/v1, without password")


def _request_path(parts: SplitResult) -> str:
    path = parts.path.rstrip("/")
    return path if path.endswith(_PATH) else (path or "/v1") + _PATH


def _seconds_to_wait(retry_after: str | None, number: int) -> float:
    """Return the seconds before another try: as the endpoint asks, else 1, 2, 4, ..."""
    text = (retry_after or "").strip()
    if text.isdecimal() and len(text) < 10:
        return float(text)
    with contextlib.suppress(ValueError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return 2.0 ** (number - 1)


def _message(content: str) -> str:
    """Return what an error says, as far as it is one of the usual kinds."""
    text = content[: 1 << 16]
    try:
        error = json.loads(text)["error"]
        text = error["message"] if isinstance(error, dict) else error
    except (ValueError, RecursionError, TypeError, KeyError):
        pass
    return clip(" ".join(str(text).split()), _MAX_QUOTED) or "no message"


def _first_logprobs(choice: Any) -> dict[str, float]:
    """Return the log-probabilities of the first token; none where they are missing or broken."""
    found: dict[str, float] = {}
    with contextlib.suppress(KeyError, TypeError, IndexError):
        for entry in choice["logprobs"]["content"][0]["top_logprobs"][:100]:
            token, logprob = entry["token"], entry["logprob"]
            if is_unicode(token) and type(logprob) in (int, float) and -1e9 < logprob < 0.1:
                found[token] = max(float(logprob), found.get(token, -math.inf))
    return found
