"""`danlu ui` as a process, pages beside a served model, and what both refuse."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from paging import Client, make_run
from waiting import wait_until

import danlu
from danlu.journal import claimed
from danlu.serve.api import make_app, make_app_over
from danlu.serve.backends import OwnEngine
from danlu.serve.options import ServeOptions
from danlu.serve.server import Server, listen
from danlu.serve.service import Service
from danlu.ui.app import make_pages
from danlu.ui.site import Model, Site

ROOT = Path(danlu.__file__).parent.parent


def test_the_command_serves_pages_and_ends_with_its_streams(tmp_path):
    journal = make_run(tmp_path / "runs", "a", done=False)
    command = [sys.executable, "-m", "danlu", "ui", str(tmp_path / "runs"), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
    try:
        url = re.search(r"http://127\.0\.0\.1:\d+/ui", process.stdout.readline())[0]
        assert httpx.get(f"{url}/api/runs").json()[0]["run"] == "a"
        going = claimed(journal.directory, lambda _: None)
        with going, httpx.stream("GET", f"{url}/api/runs/stream?run=a", timeout=20) as answer:
            lines = answer.iter_lines()
            assert "event: whole" in (next(lines) for _ in range(10))
            process.send_signal(signal.SIGINT)
            for _ in lines:  # it ends by itself
                pass
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.stdout.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "without a key"),
        (["--dtype", "bfloat16"], "no effect without --model"),
        (["--adapter", "x"], "no effect without --model"),
        (["--collection", "people=nowhere"], "no such folder"),
        (["--port", "99999"], "port"),
    ],
)
def test_the_command_refuses(call, tmp_path, words, said):
    code, _, err = call("ui", tmp_path, *words)
    assert code != 0
    assert said in err


def test_options_of_pages_are_not_silently_ignored_by_the_server(call):
    code, _, err = call("serve", "smollm2-135m", "--start_runs")
    assert code == 2
    assert "--ui" in err


@pytest.fixture
def beside(speaker, tmp_path):
    """`beside(**options)`: a server's application with pages, of the same engine."""

    def make(**options):
        chosen = ServeOptions(**options)
        service = Service(speaker.engine, chosen, "tiny")
        site = Site(tmp_path / "runs", model=Model("tiny", speaker.engine))
        return make_app_over(OwnEngine(service), pages=make_pages(site, chosen))

    return make


def test_pages_stand_beside_the_routes_of_a_server(beside, tmp_path):
    make_run(tmp_path / "runs", "a")
    client = Client(beside())
    assert client.api("runs")[0]["run"] == "a"
    assert client.api("decode")["model"] == "tiny"
    assert client.get("/ui").headers["location"] == "/ui/runs"
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert "content-security-policy" not in client.get("/v1/models").headers
    assert client.get("/uix").status_code == 404


def test_the_server_s_key_is_the_pages_as_well(beside):
    client = Client(beside(api_key="secret"))
    assert client.get("/ui/api/runs").status_code == 401
    assert client.get("/v1/models").status_code == 401
    assert client.get("/ui/static/dom.js").status_code == 200
    assert client.get("/ui/api/runs", headers={"authorization": "Bearer secret"}).json() == []


def test_without_being_asked_for_there_are_no_pages(speaker):
    client = Client(make_app(speaker.engine, ServeOptions(), "tiny"))
    assert client.get("/ui/runs").status_code == 404


def test_what_a_page_copies_as_curl_is_what_the_server_takes(beside):
    """The body of decode.js: knobs as they are, but for the limit, which OpenAI calls max_tokens."""
    client = Client(beside())
    answer = client.api("decode", {"prompt": "one", "raw": True, "knobs": {"max_new_tokens": "3", "num_beams": "2"}})
    knobs = dict(answer["knobs"])
    body = {"model": "tiny", "prompt": "one", "max_tokens": knobs.pop("max_new_tokens"), **knobs}
    answered = client.post("/v1/completions", body)
    assert answered.status_code == 200, answered.text
    assert answered.json()["usage"]["completion_tokens"] == len(answer["trace"]["answers"][0]["tokens"])


def test_a_server_that_is_stopped_does_not_wait_for_open_pages(beside, tmp_path):
    journal = make_run(tmp_path / "runs", "a", done=False)
    options = ServeOptions(port=0)
    taken, lines = listen(options), []
    server = Server(beside(port=0), options, lines.append)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
    thread.start()
    wait_until(lambda: lines)
    url = lines[0].removeprefix("ready: ").removesuffix("/v1")
    going = claimed(journal.directory, lambda _: None)
    with going, httpx.stream("GET", f"{url}/ui/api/runs/stream?run=a", timeout=20) as answer:
        parts = answer.iter_lines()
        assert any(line.startswith("event: whole") for line in parts)
        assert any(line.startswith("data: ") and json.loads(line[6:])["run"] == "a" for line in parts)
        server.should_exit = True
        for _ in parts:
            pass
    thread.join(20)
    assert not thread.is_alive()
    taken.close()
