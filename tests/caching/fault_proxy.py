"""A TCP proxy in front of a server's Unix socket, with faults on the way back that a test switches on and off."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class FaultProxy:
    """Forwards connections on a port of loopback. Faults are of replies; commands always reach the server at once."""

    def __init__(self, target: Path) -> None:
        self.delay: Callable[[], float] = lambda: 0.0  # seconds before each piece of a reply
        self.piece_size = 1 << 16  # bytes
        self.num_accepted = 0
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()  # to the clients
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._do(self._listen())
        self.port: int = self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def hold(self) -> None:
        """Keep all further replies back until ``release``."""
        self._do(self._set_flowing(False))

    def release(self) -> None:
        self._do(self._set_flowing(True))

    def reset(self) -> None:
        """Reset all connections, with TCP's RST; new ones are accepted."""

        async def abort() -> None:
            for writer in list(self._writers):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                writer.transport.abort()

        self._do(abort())

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
                for writer in list(self._writers):
                    writer.transport.abort()  # its tasks end
                await asyncio.wait(tasks, timeout=0.01)

        self._do(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _set_flowing(self, flowing: bool) -> None:
        if flowing:
            self._flowing.set()
        else:
            self._flowing.clear()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=256)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_accepted += 1
        self._writers.add(writer)
        server_writer = None
        try:
            server_reader, server_writer = await asyncio.open_unix_connection(str(self._target))
            ends = [
                asyncio.create_task(self._forward(reader, server_writer)),
                asyncio.create_task(self._reply(server_reader, writer)),
            ]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in ends:
                task.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
        except OSError:
            pass  # the server is down: the client's connection ends
        finally:
            self._writers.discard(writer)
            for end in (writer, server_writer):
                if end is not None:
                    end.transport.abort()
                    with contextlib.suppress(OSError):
                        await end.wait_closed()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()

    async def _reply(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                for start in range(0, len(data), self.piece_size):
                    if (seconds := self.delay()) > 0:
                        await asyncio.sleep(seconds)
                    await self._flowing.wait()
                    writer.write(data[start : start + self.piece_size])
                    await writer.drain()
