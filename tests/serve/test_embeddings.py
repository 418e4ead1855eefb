"""/v1/embeddings: OpenAI's client, every refusal, and a server that goes on meanwhile."""

from __future__ import annotations

import asyncio
import base64
import threading

import numpy as np
import openai
import pytest
from encoders import assert_near, make_tiny_encoder
from serving import talked
from waiting import PATIENCE_SECONDS, until

from danlu.errors import DownloadError
from danlu.recall.embed import Embedder
from danlu.serve.api import make_app
from danlu.serve.embeddings import Embeddings
from danlu.serve.options import ServeOptions

PATH = "/v1/embeddings"
TEXTS = ["the quick brown fox", "丹炉", "one two three"]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return Embedder(str(make_tiny_encoder(tmp_path_factory.mktemp("encoder"))))


@pytest.fixture
def ask(engine, embedder):
    """`ask(talk, make, **options)`: run `talk(client)` against an application with an embedder called enc."""

    def run(talk, make=lambda: embedder, **options):
        chosen = ServeOptions(**options)
        embeddings = Embeddings("enc", make, chosen)
        app = make_app(engine, chosen, "tiny", embeddings)
        try:
            return talked(app, talk)
        finally:
            embeddings.close()

    return run


@pytest.fixture
def post(ask):
    def run(**body):
        async def talk(client):
            return await client.post(PATH, json={"model": "enc", **body})

        return ask(talk)

    return run


def vectors(reply):
    assert reply.status_code == 200, reply.text
    return np.array([one["embedding"] for one in reply.json()["data"]], np.float32)


def test_openais_client(start, embedder):
    chosen = ServeOptions()
    running = start(embeddings=Embeddings("enc", lambda: embedder, chosen))
    with openai.OpenAI(base_url=running.url, api_key="none", max_retries=0, timeout=20) as client:
        assert [one.id for one in client.models.list()] == ["tiny", "enc"]
        assert client.models.retrieve("enc").id == "enc"
        packed = client.embeddings.create(model="enc", input=TEXTS)  # asks for base64
        plain = client.embeddings.create(model="enc", input=TEXTS, encoding_format="float")
        query = client.embeddings.create(model="enc", input="fox", extra_body={"input_type": "query"})
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="tiny", input="x")
    expected = embedder.embed(TEXTS)
    for made in (packed, plain):
        assert_near([one.embedding for one in made.data], expected, embedder)
    assert [one.index for one in packed.data] == [0, 1, 2]
    assert_near(query.data[0].embedding, embedder.embed(["fox"], "query")[0], embedder)
    count = sum(map(len, embedder.tokens([f"passage: {text}" for text in TEXTS]).ids))
    assert (packed.usage.prompt_tokens, packed.usage.total_tokens) == (count, count)


def test_base64_is_little_endian_float32(post, embedder):
    data = post(input=TEXTS, encoding_format="base64").json()["data"]
    read = np.stack([np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in data])
    assert_near(read, embedder.embed(TEXTS), embedder)


def test_what_stands_before_a_text(post, embedder):
    assert_near(vectors(post(input="query: fox")), embedder.embed(["fox"], "query"), embedder)
    assert_near(vectors(post(input="fox", input_type="document")), embedder.embed(["fox"]), embedder)
    assert_near(vectors(post(input="fox", input_type="none")), embedder.embed(["fox"], "none"), embedder)


def test_token_ids(post, embedder):
    ids = embedder.tokens(["fox", "one two"]).ids
    assert_near(vectors(post(input=ids)), embedder.embed(["fox", "one two"], "none"), embedder)
    assert_near(vectors(post(input=ids[0])), embedder.embed(["fox"], "none"), embedder)


def test_too_long_a_text(post):
    long = "the quick brown fox " * 40
    refused = post(input=["a", long])
    assert refused.status_code == 400
    assert "text 1 has" in refused.json()["error"]["message"]
    cut = post(input=["a", long], truncate=True)
    assert cut.json()["truncated"] == 1
    assert len(vectors(cut)) == 2


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": 5}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [[10**6]]}, "input"),
        ({"input": ["a"] * 11}, "input"),
        ({"input": [1], "input_type": "query"}, "input_type"),
        ({"input": [1], "truncate": True}, "truncate"),
        ({"input": "a", "dimensions": 16}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "inptu": 1}, "inptu"),
        ({"input": "a", "temperature": 1}, "temperature"),
    ],
)
def test_refusals_name_what_is_wrong(ask, body, param):
    async def talk(client):
        return await client.post(PATH, json={"model": "enc", **body})

    reply = ask(talk, max_inputs=10)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param


def test_what_changes_nothing_is_accepted(post):
    assert vectors(post(input="a", dimensions=32, user="me")).shape == (1, 32)


def test_an_embedder_that_cannot_be_had_yet(ask, embedder):
    tries = []

    def make():
        tries.append(1)
        if len(tries) == 1:
            raise DownloadError("no network", fix="connect it")
        return embedder

    async def talk(client):
        first = await client.post(PATH, json={"model": "enc", "input": "a"})
        later = [await client.post(PATH, json={"model": "enc", "input": "a"}) for _ in range(2)]
        return first, later

    first, later = ask(talk, make)
    assert first.status_code == 503
    assert "no network" in first.json()["error"]["message"]
    assert [one.status_code for one in later] == [200, 200]
    assert len(tries) == 2


def test_the_server_goes_on_meanwhile(ask, embedder, monkeypatch):
    """A batch holds up neither other routes nor, once its client has gone, other batches."""
    held, begun = threading.Event(), []
    own = embedder.batch

    def slowly(ids):
        begun.append(len(ids))
        assert held.wait(PATIENCE_SECONDS)
        return own(ids)

    monkeypatch.setattr(embedder, "batch", slowly)
    monkeypatch.setattr("danlu.recall.embed._BATCH_TOKENS", 64)

    async def talk(client):
        first = asyncio.create_task(client.post(PATH, json={"model": "enc", "input": ["the quick brown fox " * 4] * 9}))
        await until(lambda: begun)
        assert (await client.get("/health")).status_code == 200
        refused = await client.post(PATH, json={"model": "enc", "input": "a"})
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        held.set()
        later = await client.post(PATH, json={"model": "enc", "input": "a"})
        metrics = (await client.get("/metrics")).text
        return refused, later, metrics

    refused, later, metrics = ask(talk, max_queue=1)
    assert refused.status_code == 429
    assert later.status_code == 200
    assert len(begun) == 2  # of nine batches, the one that was running; then the later request's
    count = later.json()["usage"]["total_tokens"]
    assert f"danlu_embedded_tokens_total {count:.1f}" in metrics


def test_no_thread_that_has_made_vectors_stays(post, embedder, monkeypatch):
    """Its pool of threads for products would stay with it, and the engine's would sleep between any two of its own."""
    batch, threads = embedder.batch, []
    monkeypatch.setattr(embedder, "batch", lambda ids: threads.append(threading.current_thread()) or batch(ids))
    assert len(vectors(post(input=["one", "two"]))) == 2
    assert threads
    assert not any(thread.is_alive() for thread in threads)


def test_time_is_up(ask, embedder, monkeypatch):
    held = threading.Event()
    monkeypatch.setattr(embedder, "batch", lambda ids: held.wait(PATIENCE_SECONDS))

    async def talk(client):
        reply = await client.post(PATH, json={"model": "enc", "input": "a"})
        held.set()
        return reply

    assert ask(talk, request_timeout_seconds=0.1).json()["error"]["code"] == "timeout"
