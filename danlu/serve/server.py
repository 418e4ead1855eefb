"""The server as a process: a socket, a model, uvicorn, and an orderly end."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from danlu.errors import Interrupted, ResourceError
from danlu.serve.backends import Backend
from danlu.serve.options import ServeOptions

Say = Callable[[str], None]

# After running requests were told that they end, their connections have this long to say so.
_LAST_WORDS_SECONDS = 5

# A connection is kept open for the next request. Clients keep theirs for a minute or less, so that it is they who
# close, and no request meets a connection that has just been closed.
_KEEP_ALIVE_SECONDS = 75


def listen(options: ServeOptions) -> socket.socket:
    """A socket on the address, taken before a model is loaded in vain. Raises ResourceError."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # The protocol is named: of connections without it, asyncio does not switch off Nagle's algorithm, and an answer
    # in two parts (head and body, or pieces of a stream) waits 40 ms for the client's acknowledgement.
    taken = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((options.host, options.port))
    except OSError as error:
        taken.close()
        raise ResourceError(
            f"cannot listen on {options.host}:{options.port}: {error.strerror}",
            fix="choose another port (port 0 takes a free one), or end the program that holds it",
        ) from error
    return taken


class Server(uvicorn.Server):
    """uvicorn, which says when it is ready, and lets running requests end when it is told to stop.

    Args:
        say: hears the line with the URL.

    Attributes:
        has_cut_off: it was told twice to stop, and something still ran.
    """

    def __init__(self, app: FastAPI, options: ServeOptions, say: Say) -> None:
        patience = int(options.shutdown_timeout_seconds) + _LAST_WORDS_SECONDS
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=patience,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        super().__init__(config)
        self._options, self._say = options, say
        self._backend: Backend = app.state.backend
        self._pages: FastAPI | None = app.state.pages
        self._loop: asyncio.AbstractEventLoop | None = None
        self.has_cut_off = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal asks for an end in order; the second one cuts off what still runs.

        uvicorn would also send itself the signal again at the end; a server that ends as it was told ends with 0.
        """
        if self.should_exit and self._loop is not None:
            self.force_exit = True
            self._loop.call_soon_threadsafe(self._cut_off)
        self.should_exit = True

    def _cut_off(self) -> None:
        for connection in list(self.server_state.connections):
            self.has_cut_off = True
            connection.transport.abort()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        for one in sockets or ():
            host, port = one.getsockname()[:2]
            self._say(f"ready: http://{f'[{host}]' if ':' in host else host}:{port}/v1")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._pages is not None:
            self._pages.state.end()
        last_call = asyncio.get_running_loop().call_later(
            self._options.shutdown_timeout_seconds, self._backend.closing.set
        )
        try:
            await super().shutdown(sockets)
        finally:
            last_call.cancel()
            await self._backend.close()


def serve(app: FastAPI, options: ServeOptions, taken: socket.socket, say: Say) -> None:
    """Answer on the socket until the process is told to stop (SIGINT, SIGTERM).

    Raises Interrupted when it was told twice, and requests were cut off.
    """
    server = Server(app, options, say)
    # What is loaded stays. A body of many lists makes the collector go through all there is, and nothing else runs
    # meanwhile: with the model's libraries, a third of a second each time.
    gc.collect()
    gc.freeze()
    try:
        with taken:
            server.run(sockets=[taken])
    finally:
        gc.unfreeze()
    if server.has_cut_off:
        raise Interrupted("told twice to stop: what still ran was cut off")
