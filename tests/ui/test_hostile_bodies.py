"""What nobody would send on purpose: an answer that says so, and no fault of the server."""

from __future__ import annotations

import json

import pytest
from paging import make_evaluation, make_run

HALF = "\ud800"
DEEP = "[" * 50_000


@pytest.fixture
def client(pages, speaker, tmp_path):
    make_run(tmp_path / "runs", "a")
    make_evaluation(tmp_path / "runs" / "judged")
    return pages(speaker, start_runs=True)


@pytest.mark.parametrize(
    "path",
    ["decode", "plan", "data", "data/examples", "recall", "recall/count", "recall/profile", "evaluate",
     "evaluate/people", "start", "start/check", "start/stop", "start/resume"],
)  # fmt: skip
@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b"{", b"\xff", DEEP.encode(), b'{"a": 1}', b'"x"', json.dumps({"prompt": HALF}).encode()],
)
def test_bodies_that_are_none(client, path, body):
    answer = client.post(f"/ui/api/{path}", content=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["seen"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("decode", {"prompt": "one", "raw": True, "begin": [-1]}),
        ("decode", {"prompt": HALF, "raw": True}),
        ("decode", {"prompt": "one", "knobs": {"a=b": "1", "": "2"}}),
        ("decode", {"prompt": "one", "knobs": {"regex": DEEP[:3000]}}),
        ("decode", {"prompt": "one", "knobs": {"max_new_tokens": "1e999"}}),
        ("decode", {"prompt": "", "raw": True}),
        ("plan", {"model": HALF}),
        ("plan", {"model": "/etc/passwd"}),
        ("plan", {"model": "a\0b"}),
        ("data", {"place": "²/a.jsonl"}),
        ("data/examples", {"place": "dropped/x", "first": 10**30}),
        ("recall", {"collection": HALF}),
        ("evaluate", {"name": "judged", "measure": HALF}),
        ("evaluate", {"name": "judged", "first": 10**30}),
        ("start/check", {"typed": {"data.path": HALF, "name": HALF}}),
        ("start/check", {"text": DEEP}),
        ("start/check", {"typed": {"data": "1", "data.path": "x"}}),
        ("start/stop", {"run": "a\0"}),
    ],
)
def test_values_that_are_none(client, path, body):
    answer = client.post(f"/ui/api/{path}", content=json.dumps(body).encode())
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["seen"]


@pytest.mark.parametrize(
    "query",
    ["start/printed?name=a%00b", "start/printed?name=%ED%A0%80", "start/template?name=..%2Fx", "start?kind=%00",
     "runs/detail?run=%ED%A0%80", "runs/stream", "recall?collection=%00"],
)  # fmt: skip
def test_addresses_that_are_none(client, query):
    answer = client.get(f"/ui/api/{query}")
    assert answer.status_code == 400, answer.text


def test_ids_and_languages_that_are_none(client):
    assert client.get("/ui/api/runs?lang=%00", headers={"accept-language": ";;;,"}).status_code == 200
    assert client.get("/ui/api/runs/stream?run=a&after=²._.x").status_code == 200
    assert client.get("/ui/api/runs", headers={"cookie": "danlu_ui=\x01;=;"}).status_code == 200
