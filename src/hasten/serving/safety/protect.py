"""``protect``: an application that only requests within the limits reach."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from hasten.serving.api_error import ApiError, ErrorKind, as_api_error
from hasten.serving.app import error_event, error_response
from hasten.serving.caller import set_caller
from hasten.serving.log_failure import log_failure
from hasten.serving.safety.body_limits import BodyLimits
from hasten.serving.safety.exchange import STATE_KEY, Exchange
from hasten.serving.safety.hosts import HostCheck
from hasten.serving.safety.keys import KeyCheck
from hasten.serving.safety.origins import Headers, OriginCheck
from hasten.serving.safety.request_head import RequestHead
from hasten.serving.server_state import ServerState
from hasten.serving.surface import Surface

log = logging.getLogger(__name__)


def protect(app: ASGIApp, state: ServerState, surfaces: Sequence[Surface]) -> ASGIApp:
    """Return an application that passes to ``app`` what the options of ``state`` allow.

    The checks of a request, in order: size of the head, host, origin, key, type and size of the body. Errors have the form of
    the surface that the path belongs to. The work of ``app`` is cancelled when the client leaves, and when the request takes too
    long. Raises ``InvalidOption`` for hosts, origins and keys that no request can have.
    """
    return ProtectedApp(app, state, surfaces)


class ProtectedApp:
    def __init__(self, app: ASGIApp, state: ServerState, surfaces: Sequence[Surface]) -> None:
        self._app, self._options, self._surfaces = app, state.options, surfaces
        self._hosts, self._origins = HostCheck(state.options), OriginCheck(state.options)
        self._keys, self._bodies = KeyCheck(state.options.api_keys), BodyLimits(state.options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:  # there are no websockets here
            await send({"type": "websocket.close", "code": 1008})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: Headers = []  # of the answer
        try:
            head = RequestHead.read(scope, self._options)
            headers += self._origins.check(head, self._hosts.check(head))
            if (preflight := self._origins.preflight(head)) is not None:
                headers += preflight
                await _add_headers(Response(status_code=204), headers)(scope, receive, send)
                return
            set_caller(scope, self._keys.check(head))
            body = self._bodies.reader(head, receive)
        except ApiError as error:
            # What the client may still send is not read.
            await self._refuse(scope, error, [*headers, (b"connection", b"close")], receive, send)
            return
        exchange = Exchange(body, receive, send, headers)
        scope.setdefault("state", {})[STATE_KEY] = exchange
        await self._run(scope, exchange, send)

    async def _run(self, scope: Scope, exchange: Exchange, send: Send) -> None:
        error: ApiError | None = None
        try:
            async with asyncio.timeout(self._options.request_timeout) as deadline:
                exchange.open(deadline)
                try:
                    await self._app(scope, exchange.receive, exchange.send)
                finally:
                    exchange.close()
            error = self._read(exchange.failure, exchange) if exchange.failure is not None else None
        except TimeoutError as failure:
            error = self._timeout() if deadline.expired() else self._read(failure, exchange)
        except ClientDisconnect:
            return
        except Exception as failure:
            error = self._read(failure, exchange)
        if error is not None and not exchange.has_left:
            await self._finish(scope, exchange, error)

    def _timeout(self) -> ApiError:
        return ApiError(ErrorKind.TIMEOUT, f"the request took longer than {self._options.request_timeout:g} seconds")

    def _read(self, failure: Exception, exchange: Exchange) -> ApiError:
        """Return the error that a client sees."""
        found = as_api_error(failure)
        if found.kind is ErrorKind.INTERNAL and not exchange.is_complete:  # otherwise the application has answered and logged it
            log_failure(log, failure)
        return found

    async def _finish(self, scope: Scope, exchange: Exchange, error: ApiError) -> None:
        """End the answer with an error.

        Without an end the server closes the connection, and the client sees that the answer is not complete.
        """
        if exchange.is_complete or (exchange.has_started and not exchange.is_event_stream):
            return
        if exchange.has_started:
            event = error_event(scope["path"], error, self._surfaces)
            await exchange.send({"type": "http.response.body", "body": event, "more_body": False})
        else:
            response = error_response(scope["path"], error, self._surfaces)
            await response(scope, exchange.receive, exchange.send)

    async def _refuse(self, scope: Scope, error: ApiError, headers: Headers, receive: Receive, send: Send) -> None:
        response = error_response(scope["path"], error, self._surfaces)
        if error.kind is ErrorKind.AUTHENTICATION:
            headers = [*headers, (b"www-authenticate", b"Bearer")]
        await _add_headers(response, headers)(scope, receive, send)


def _add_headers(response: Response, headers: Headers) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    response.raw_headers.extend(headers)
    return response
