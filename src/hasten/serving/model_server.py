"""``ModelServer``: the application behind uvicorn, from its start to the end of its drain."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from types import FrameType

import uvicorn

from hasten.entrypoints.async_llm import AsyncLLM
from hasten.serving.app import create_app
from hasten.serving.end_process import end_process
from hasten.serving.metrics.watch import watch
from hasten.serving.models.model_config import ModelConfig
from hasten.serving.models.model_pool import ModelPool
from hasten.serving.safety.http_protocol import uvicorn_settings
from hasten.serving.safety.protect import protect
from hasten.serving.server_options import ServerOptions
from hasten.serving.server_state import ServerState
from hasten.serving.surface import Surface

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
IDLE_CONNECTION = 30  # seconds that a connection without a request stays open; most clients drop theirs earlier
FLUSH_TIMEOUT = 5  # seconds that clients have to read their last events
CLOSE_TIMEOUT = 15.0  # seconds that engines have to end
ENDED, FAILED = 0, 1  # exit codes


class ModelServer:
    def __init__(
        self,
        models: Sequence[ModelConfig],
        options: ServerOptions,
        load: Callable[[ModelConfig], Awaitable[AsyncLLM]],
        surfaces: Sequence[Surface],
        say: Callable[[str], None],
    ) -> None:
        """See ``run_server``."""
        self._models, self._options, self._say = models, options, say
        self._pool = ModelPool(models, options, load=load, on_too_many_deaths=self._give_up)
        state = ServerState(options, self._pool)
        config = uvicorn.Config(
            watch(protect(create_app(state, surfaces), state, surfaces), state),
            interface="asgi3",
            lifespan="off",
            workers=1,
            log_config=None,
            **uvicorn_settings(options),
            timeout_keep_alive=IDLE_CONNECTION,
            timeout_graceful_shutdown=FLUSH_TIMEOUT,
        )
        self._uvicorn = _Uvicorn(config)
        state.metrics.count_connections = lambda: len(self._uvicorn.server_state.connections)
        self._has_to_end = asyncio.Event()
        self._signal: int | None = None
        self._has_failed = False
        self.loop_factory = config.get_loop_factory()
        self.has_threads_left = False  # once it has ended: threads that still load a model, or wait for an engine

    async def run(self, listener: socket.socket) -> int:
        """Serve until a signal or a failure, and return the exit code.

        Raises ``HastenError`` if the first model cannot be loaded.
        """
        serving = asyncio.create_task(self._uvicorn.serve(sockets=[listener]))
        loading = asyncio.create_task(self._load_default())
        ending = asyncio.create_task(self._has_to_end.wait())
        with self._handled_signals():
            try:
                await asyncio.wait({serving, ending}, return_when=asyncio.FIRST_COMPLETED)
                if loading.done():
                    loading.result()
                await self._drain()
            finally:
                loading.cancel()
                ending.cancel()
                await self._close_engines()  # requests that still run end with an error
                self._uvicorn.should_exit = True
                await serving
                await asyncio.gather(loading, ending, return_exceptions=True)
        if self._has_failed:
            return FAILED
        return 128 + signal.SIGINT if self._signal == signal.SIGINT else ENDED

    async def _load_default(self) -> None:
        try:
            model = await self._pool.load_default()
        except BaseException:
            self._has_to_end.set()
            raise
        self._say(f"{model.name} is loaded, with a context of {model.llm.max_model_len:,} tokens")

    async def _drain(self) -> None:
        """Let running requests end within their time."""
        self._pool.drain()
        seconds = self._options.drain_timeout
        if number := self._pool.num_requests:
            self._say(f"the server ends: requests that run ({number}) have {seconds:g} s; a second signal ends them at once")
        if not await self._pool.wait_idle(seconds):
            self._say(f"error: the time is over; requests that end with an error: {self._pool.num_requests}")
            self._has_failed = True

    async def _close_engines(self) -> None:
        is_loading = self._pool.is_loading
        closing = asyncio.create_task(self._pool.close())
        await asyncio.wait({closing}, timeout=CLOSE_TIMEOUT)
        self.has_threads_left = is_loading or not closing.done()

    def _give_up(self, reason: str) -> None:
        self._say(f"error: {reason} The server ends.")
        self._has_failed = True
        self._has_to_end.set()

    @contextlib.contextmanager
    def _handled_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def handle(number: int, frame: FrameType | None) -> None:
            if self._signal is not None:
                end_process(128 + number)
            self._signal = number
            loop.call_soon_threadsafe(self._has_to_end.set)

        previous = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class _Uvicorn(uvicorn.Server):
    """Leaves the signals to ``ModelServer``."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
