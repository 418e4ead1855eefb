"""An engine over a tiny model, asked without a network or through a real server on a loopback port."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from serving import talked
from tooling import Told
from upstreams import Fake
from waiting import wait_until

from danlu import Engine
from danlu.serve.api import make_app
from danlu.serve.options import ServeOptions
from danlu.serve.server import Server, listen
from tiny import make_golden_model, make_tiny_model


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    made = Engine(str(make_golden_model(tmp_path_factory.mktemp("served"), "llama")), dtype="float32")
    yield made
    made.close()


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """For files whose `engine` is this one's: it says what it is told."""
    made = Told(str(make_tiny_model(tmp_path_factory.mktemp("told"), changes={"max_position_embeddings": 4096})))
    yield made
    made.engine.close()


@pytest.fixture
def ask(engine):
    """`ask(talk, **options)`: run the coroutine function `talk(client)` against a fresh application."""

    def run(talk, **options):
        return talked(make_app(engine, ServeOptions(**options), "tiny"), talk)

    return run


@pytest.fixture
def post(ask):
    """`post(path, body, **options)` -> the response; bytes are sent as they are."""

    def run(path, body, headers=None, **options):
        async def talk(client):
            if isinstance(body, bytes):
                kind = {"content-type": "application/json"}
                return await client.post(path, content=body, headers=kind | (headers or {}))
            return await client.post(path, json=body, headers=headers)

        return ask(talk, **options)

    return run


@dataclass
class Running:
    """A real server in a thread."""

    server: Server
    url: str
    service: SimpleNamespace
    lines: list[str] = field(default_factory=list)


@pytest.fixture
def start(engine):
    """`start(**options)` -> a Running; every one is stopped at the end of the test."""
    started = []

    def run(embeddings=None, **options):
        chosen = ServeOptions(**{"port": 0, **options})
        taken, app, lines = listen(chosen), make_app(engine, chosen, "tiny", embeddings), []
        server = Server(app, chosen, lines.append)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        started.append((server, thread, taken))
        wait_until(lambda: lines)
        return Running(server, lines[0].removeprefix("ready: "), app.state.service, lines)

    yield run
    for server, thread, taken in started:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
        taken.close()


@pytest.fixture
def fake():
    """A server that stands behind this one."""
    return Fake()
