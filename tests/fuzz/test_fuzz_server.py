"""The server, asked with what nobody would send on purpose: it answers in words, stays quick, and forgets it all.

At every example: no 5xx, errors in OpenAI's shape without anything internal, streams with an end, /health under
100 ms. After all of them: nothing runs, and memory has not grown past a bound beyond what a first body of each kind,
long or short, has left.
"""

from __future__ import annotations

import pytest
from adapting import make_adapter
from bodies import ADAPTER, LARGE, METHODS, MODEL, ROUTES, STREAMED, VALID, Body, Junk, bodies, junk
from encoders import make_tiny_encoder
from hypothesis import example, given
from hypothesis import strategies as st
from templates import THINKING
from waiting import wait_until
from watched import Watched, check_stream, check_whole, watched_server

from tiny import make_golden_model

pytestmark = pytest.mark.slow

# Compiled forms are kept up to 256 MB; the rest is for the prefix cache of a tiny model and what the allocator keeps.
MOST_GROWTH_BYTES = 400 * 2**20


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    place = tmp_path_factory.mktemp("fuzzed")
    directory, encoder = make_golden_model(place / MODEL, "llama"), place / "encoder"
    (directory / "chat_template.jinja").write_text(THINKING, "utf-8")
    encoder.mkdir()
    adapter = make_adapter(directory, place / ADAPTER)
    flags = [f"--adapter={ADAPTER}={adapter}", f"--embedder={make_tiny_encoder(encoder)}", "--max_rows=32"]
    with watched_server(directory, *flags, "--default_max_tokens=16", "--request_timeout_seconds=90") as running:
        running.note_memory("at the start")
        for path, some in VALID.items():
            for body in some:
                assert running.ask(path, Body(path, body, ()).bytes).status_code == 200, body
        running.note_memory("after bodies that are valid")
        for large in LARGE:
            running.ask(large.path, large.bytes)
        running.wait_until_idle()
        warm = running.memory_bytes
        running.note_memory("after bodies as long as it takes, from where growth counts")
        yield running
        running.wait_until_idle()
        try:
            wait_until(lambda: running.memory_bytes - warm < MOST_GROWTH_BYTES)
        finally:
            running.note_memory("at the end")
            print(running.told_sizes())


@pytest.fixture(autouse=True)
def _noted(request, server):
    yield
    server.note_memory(f"after {request.node.name}")


def check(server: Watched, body: Body) -> None:
    reply = server.ask_watched(body.path, body.bytes)
    if reply.status_code == 200 and reply.headers["content-type"].startswith("text/event-stream"):
        check_stream(reply, body.path == "/v1/responses")
    else:
        check_whole(reply)


def test_a_route_that_holds_up_the_loop_is_found(tmp_path):
    """What watches is watched: a server whose reading of a body blocks its loop for a moment, and does nothing else."""
    blocked = (
        "import time, danlu.serve.api as api\n"
        "own = api._document\n"
        "async def blocking(*given):\n"
        "    time.sleep(0.4)\n"
        "    return await own(*given)\n"
        "api._document = blocking"
    )
    directory, body = make_golden_model(tmp_path / MODEL, "llama"), Body("/tokenize", VALID["/tokenize"][0], ())
    with (
        watched_server(directory, first=blocked) as running,
        pytest.raises(AssertionError, match="in each of 6 tries"),
    ):
        running.ask_watched(body.path, body.bytes)


@given(body=bodies())
def test_bodies_near_the_valid_ones(server, body):
    check(server, body)


@pytest.mark.parametrize("body", LARGE, ids=lambda body: f"{body.path}-{'-'.join(body.changed)}")
def test_bodies_as_long_as_a_server_takes(server, body):
    check(server, body)


@given(body=bodies(most_faults=1))
def test_an_error_blames_a_field(server, body):
    reply = server.ask_watched(body.path, body.bytes)
    if reply.status_code == 400:
        fault = check_whole(reply)["error"]
        assert fault["param"] or fault["code"] in ("invalid_json", "context_length_exceeded"), fault


@given(body=bodies(paths=STREAMED, most_faults=1), after_bytes=st.integers(1, 4000))
def test_a_client_that_goes_away(server, body, after_bytes):
    body.content["stream"] = True
    with server.watch() as seen:
        server.begin_and_go_away(body.path, body.bytes, after_bytes)
    assert not seen.faults
    server.wait_until_idle()


@given(sent=junk())
@example(Junk("/v1/chat/completions", b"{" * 500_000))
def test_bytes_that_are_no_body(server, sent):
    check_whole(server.ask_watched(sent.path, sent.bytes, dict(sent.headers)))


@given(method=st.sampled_from(METHODS), route=st.sampled_from(ROUTES))
def test_other_routes(server, method, route):
    reply = server.client.request(method, route)
    assert reply.status_code < 500, reply.text
    if reply.status_code >= 400 and method != "HEAD":
        check_whole(reply)
