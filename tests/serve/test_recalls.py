"""/v1/recall and chats with passages: the collections that were named, and no others; every refusal."""

from __future__ import annotations

import asyncio
import shutil
from datetime import date

import httpx
import pyarrow as pa
import pytest
from serving import CHAT, HELLO, chat, error, events, talked
from upstreams import Fake

from danlu.errors import ConfigError, DataError
from danlu.recall import BuildOptions, Collection
from danlu.serve.api import make_app, make_app_over
from danlu.serve.options import ServeOptions, collections_named
from danlu.serve.others.remote import Remote
from danlu.serve.recalls import Recalls

PATH = "/v1/recall"
TEXTS = ["Tea grows on hills.", "丹炉用于炼丹。", "Ships carry tea.", None]


@pytest.fixture
def built(tmp_path):
    table = pa.table(
        {"id": [1, 2, 3, 4], "text": TEXTS, "of": ["a", "a", "b", "b"], "score": [1.0, float("inf"), None, 2.5],
         "day": [date(2026, 1, at) for at in range(1, 5)], "v": [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, -1.0]]}
    )  # fmt: skip
    return Collection.build(tmp_path / "c", table, BuildOptions(id="id", text=("text",), vector=("v",)))


@pytest.fixture
def ask(engine, built):
    """`ask(talk, **options)`: run `talk(client)` against an application with a collection called docs."""

    def run(talk, backend=None, **options):
        chosen = ServeOptions(**options)
        recalls = Recalls({"docs": built.path}, chosen)
        app = make_app_over(backend, None, recalls) if backend else make_app(engine, chosen, "tiny", None, recalls)
        try:
            return talked(app, talk)
        finally:
            recalls.close()

    return run


@pytest.fixture
def post(ask):
    def run(body, path=PATH, **options):
        async def talk(client):
            return await client.post(path, json=body)

        return ask(talk, **options)

    return run


def ids(response):
    assert response.status_code == 200, response.text
    return [one["id"] for one in response.json()["data"]]


# -- rows -------------------------------------------------------------------------------------------------


def test_rows_that_pass_and_how_many_there_are(post):
    response = post({"collection": "docs", "where": "of = 'a'", "top": 1})
    body = response.json()
    assert (ids(response), body["among"], body["collection"], body["state"]) == ([1], 2, "docs", 1)
    assert body["data"][0]["row"] == {
        "id": 1, "text": TEXTS[0], "of": "a", "score": 1.0, "day": "2026-01-01",
    }  # fmt: skip
    assert post({"collection": "docs", "where": "true", "top": 0}).json()["data"] == []


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({"like": "tea"}, [3, 1]),
        ({"text": {"text": "炼丹"}}, [2]),
        ({"like": "tea", "where": "of = 'a'"}, [1]),
        ({"vector": [1, 0]}, [1, 4, 3, 2]),
        ({"vector": {"v": [0.0, 1.0]}, "top": 2}, [2, 3]),
        ({"like": "nobody says this"}, []),
        ({"like": "tea", "where": "id = 2"}, []),
    ],
)
def test_the_best_of_them_in_every_way(post, body, wanted):
    response = post({"collection": "docs", **body})
    assert ids(response) == wanted
    for one in response.json()["data"]:
        assert one["found_by"]


def test_a_row_may_be_shown_without_columns(post):
    for how in ({"where": "true"}, {"vector": [1, 0]}):
        response = post({"collection": "docs", "columns": [], "top": 2, **how})
        assert [one["row"] for one in response.json()["data"]] == [{}, {}]
    assert "2 finite numbers" in error(post({"collection": "docs", "vector": [1e300, 1]}), 400)["message"]


def test_what_json_has_no_number_for_is_text(post):
    response = post({"collection": "docs", "where": "id = 2", "columns": ["score", "v"]})
    assert response.json()["data"] == [{"id": 2, "row": {"score": "inf", "v": [0.0, 1.0]}}]


def test_what_there_is_to_ask(ask):
    response = ask(lambda client: client.get(PATH))
    (card,) = response.json()["data"]
    assert (card["id"], card["rows"], card["channels"]) == ("docs", 4, ["words:text", "vector:v"])
    assert {"name": "of", "kind": "word"} in card["columns"]


def test_a_collection_that_was_changed_is_asked_anew(ask, built):
    async def talk(client):
        before = await client.post(PATH, json={"collection": "docs", "where": "true"})
        await asyncio.to_thread(built.delete, [1, 2])
        return before, await client.post(PATH, json={"collection": "docs", "where": "true"})

    assert [ids(one) for one in ask(talk)] == [[1, 2, 3, 4], [3, 4]]


def test_a_collection_that_is_gone_is_said_and_the_server_goes_on(ask, built):
    async def talk(client):
        shutil.rmtree(built.path)
        gone = await client.post(PATH, json={"collection": "docs", "where": "true"})
        return gone, await client.get("/health")

    gone, health = ask(talk)
    told = error(gone, 503)
    assert (told["code"], str(built.path) in told["message"], health.status_code) == (
        "collection_unreadable",
        False,
        200,
    )


WRONG = {
    "another": ({"collection": "other", "where": "true"}, 404, "collection", "this server has 'docs'"),
    "a path": ({"collection": "../c", "where": "true"}, 404, "collection", "no collection '../c'"),
    "none": ({"where": "true"}, 400, "collection", "collection"),
    "nothing": ({"collection": "docs"}, 400, None, "nothing is asked for"),
    "a column": ({"collection": "docs", "where": "off = 'a'"}, 400, "where", "did you mean 'of'"),
    "shown": ({"collection": "docs", "where": "true", "columns": ["txt"]}, 400, None, "did you mean 'text'"),
    "a field": ({"collection": "docs", "wher": "true"}, 400, "wher", "where"),
    "too many": ({"collection": "docs", "where": "true", "top": 10**6}, 400, "top", "1000"),
    "none at all": ({"collection": "docs", "like": "tea", "top": 0}, 400, "top", "1 or more"),
    "a channel": ({"collection": "docs", "like": "tea", "channels": ["words:txt"]}, 400, None, "words:text"),
    "in vain": ({"collection": "docs", "where": "true", "channels": ["words:text"]}, 400, "channels", "no effect"),
    "a vector": ({"collection": "docs", "vector": [1, 2, 3]}, 400, "vector", "2 finite numbers"),
    "a user": ({"collection": "docs", "user": 5}, 400, None, "no channel has an answer"),
    "a weight": ({"collection": "docs", "like": "x", "fuse": {"weights": {"w": 2}}}, 400, None, "no channel 'w'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_is_said_without_the_path(post, built, what):
    body, status, param, seen = WRONG[what]
    told = error(post(body), status)
    assert seen in told["message"]
    assert param is None or told["param"] == param
    assert str(built.path) not in told["message"]


def test_a_server_without_collections(engine):
    async def main():
        transport = httpx.ASGITransport(make_app(engine, ServeOptions(), "tiny"), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [
                await client.post(PATH, json={"collection": "docs", "where": "true"}),
                await client.post(CHAT, json=chat(recall={"collection": "docs"})),
                await client.get(PATH),
            ]

    *refused, listed = asyncio.run(main())
    for one in refused:
        assert "--collection" in error(one, 501)["message"]
    assert listed.json()["data"] == []


# -- chats ------------------------------------------------------------------------------------------------


def asked(text, **more):
    return chat(messages=[{"role": "user", "content": text}], **more)


def test_an_answer_comes_with_its_citations(post):
    response = post(asked("Does tea grow on hills?", recall={"collection": "docs", "top": 2}, temperature=0), CHAT)
    assert response.status_code == 200, response.text
    body = response.json()
    assert [(one["number"], one["id"], one["text"]) for one in body["citations"]] == [
        (1, 1, TEXTS[0]),
        (2, 3, TEXTS[2]),
    ]
    assert {"collection": "docs", "is_cut": False}.items() <= body["citations"][0].items()
    plain = post(asked("Does tea grow on hills?", temperature=0), CHAT).json()
    assert "citations" not in plain
    assert body["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]


def test_the_first_piece_of_a_stream_has_them(post):
    pieces = events(post(asked("tea", recall={"collection": "docs", "where": "of = 'b'"}, stream=True, n=2), CHAT))
    assert [[one["id"] for one in piece["citations"]] for piece in pieces if "citations" in piece] == [[3]]
    assert "citations" in pieces[0]


def test_what_is_looked_for_may_be_other_than_the_question(post):
    wish = {"collection": "docs", "query": "炼丹"}
    body = post(asked("And that?", recall=wish), CHAT).json()
    assert [one["id"] for one in body["citations"]] == [2]


def test_long_passages_are_cut_to_the_context(post, built, engine):
    long = "Tea has a very long history that nobody can tell in one breath. " * 500
    rows = pa.table({"id": [7, 8], "text": [long, long[64:]], "of": ["long", "long"]})
    built.append(rows)
    wish = {"collection": "docs", "where": "of = 'long'"}
    response = post(asked("What of tea?", recall=wish, max_tokens=8), CHAT)
    body = response.json()
    assert response.status_code == 200, response.text
    room = engine.context_length - 8
    assert room - 16 < body["usage"]["prompt_tokens"] <= room
    lengths = {len(one["text"]) for one in body["citations"]}
    assert [one["is_cut"] for one in body["citations"]] == [True, True]
    assert max(lengths) - min(lengths) <= 2
    crowded = asked("What of tea? " * 200, recall=wish, max_tokens=8)
    assert "no passage fits beside it" in error(post(crowded, CHAT), 400)["message"]


@pytest.mark.parametrize(
    ("wish", "status", "seen"),
    [
        ({"collection": "nope"}, 404, "this server has 'docs'"),
        ({"collection": "docs", "where": "of ="}, 400, "where-clause"),
        ({"collection": "docs", "where": "id = 4"}, 400, "no passage of 'docs'"),
        ({"collection": "docs", "column": "txt"}, 400, "did you mean 'text'"),
        ({"collection": "docs", "topp": 3}, 400, "top"),
        ({"collection": "docs", "top": 0}, 400, "top"),
        ({}, 400, "collection"),
    ],
)
def test_a_wish_that_cannot_be_is_said(post, wish, status, seen):
    assert seen in error(post(asked("tea", recall=wish), CHAT), status)["message"]


def test_only_a_question_is_looked_for(post):
    turns = [*HELLO, {"role": "assistant", "content": "Par"}]
    body = chat(messages=turns, continue_final_message=True, recall={"collection": "docs"})
    assert "the last message is of the role assistant" in error(post(body, CHAT), 400)["message"]


def test_another_server_gets_the_passages_and_its_answer_the_citations(ask):
    fake = Fake()
    backend = Remote(
        "http://other/v1", ServeOptions(), flavour="openai", upstream_name="up", model_name="tiny",
        transport=httpx.ASGITransport(fake.app),
    )  # fmt: skip
    body = asked("Does tea grow on hills?", recall={"collection": "docs"})
    response = ask(lambda client: client.post(CHAT, json=body), backend)
    assert response.status_code == 200, response.text
    assert [one["id"] for one in response.json()["citations"]] == [1, 3]
    sent = fake.heard[-1]
    assert "recall" not in sent
    assert "[1] Tea grows on hills." in sent["messages"][-1]["content"]


# -- the command ------------------------------------------------------------------------------------------


def test_collections_are_named(tmp_path):
    assert collections_named([]) == {}
    named = collections_named(["docs=a/b.recall", "x/people.recall"])
    assert {name: str(path) for name, path in named.items()} == {"docs": "a/b.recall", "people": "x/people.recall"}
    with pytest.raises(ConfigError, match="given twice"):
        collections_named(["a=x", "y/a.recall"])
    with pytest.raises(ConfigError, match="NAME=FOLDER"):
        collections_named(["=x"])
    with pytest.raises(DataError, match="there is no collection"):
        Recalls({"none": tmp_path / "none"}, ServeOptions())


def test_a_slip_in_a_path_shows_before_a_model_is_loaded(call, tmp_path):
    code, _, err = call("serve", "no-such-model", "--collection", f"docs={tmp_path / 'none'}")
    assert (code != 0, "there is no collection" in err) == (True, True)
