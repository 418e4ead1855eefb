"""Who may see the pages, and what every answer forbids."""

from __future__ import annotations

import re

import pytest
from paging import HOSTILE, Client

from danlu.errors import ConfigError
from danlu.serve.options import ServeOptions
from danlu.ui.guard import COOKIE, POLICY
from danlu.ui.options import check_open, is_known_host
from danlu.ui.shell import PAGES, static_files

KEY = {"api_key": "secret word"}


@pytest.mark.parametrize("path", ["/ui/runs", "/ui/api/runs", "/ui/static/dom.js", "/ui/nothing", "/ui/api/nothing"])
def test_every_answer_forbids_what_pages_do_not_need(pages, path):
    headers = pages().get(path).headers
    assert headers["content-security-policy"] == POLICY
    assert "unsafe" not in POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_page_holds_neither_script_nor_style_of_its_own(pages, page, language):
    answer = pages().get(f"/ui/{page}?lang={language}")
    assert answer.status_code == 200
    assert re.search(r"<html lang=\"(en|zh-CN)\">", answer.text)
    scripts = re.findall(r"<script\b([^>]*)>", answer.text)
    assert all("src=" in one or 'type="application/json"' in one for one in scripts)
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|https?://", answer.text)


@pytest.mark.parametrize("host", ["127.0.0.1:8090", "localhost:8090", "[::1]:8090", "localhost", "BOX.example.org:80"])
def test_names_of_this_machine_are_answered(pages, host):
    client = pages(allowed_hosts=("box.example.org",))
    assert Client(client.app, host).get("/ui/runs").status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8090", "127.0.0.1.evil.example", "192.168.1.5:8090", "localhost.evil"]
)
def test_a_foreign_name_that_leads_here_is_refused(pages, host):
    """DNS rebinding."""
    answer = Client(pages().app, host).get("/ui/api/runs")
    assert answer.status_code == 403
    assert "--allowed_hosts" in answer.json()["error"]["fix"]


def test_on_a_network_addresses_are_known_and_foreign_names_are_not():
    assert is_known_host("192.168.1.5:8090", "0.0.0.0", ())
    assert not is_known_host("evil.example:8090", "0.0.0.0", ())


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_another_page_cannot_ask(pages, headers):
    client = pages(start_runs=True)
    answer = client.post("/ui/api/start", {"kind": "sft"}, headers=headers)
    assert answer.status_code == 403
    assert not (client.site.runs / ".pages").exists()


def test_the_pages_themselves_and_programs_can(pages):
    client = pages()
    for headers in ({}, {"origin": "http://127.0.0.1:8090", "sec-fetch-site": "same-origin"}):
        assert client.post("/ui/api/start/check", {"kind": "sft"}, headers=headers).status_code == 400  # no data named


def test_a_network_needs_a_key():
    with pytest.raises(ConfigError, match=r"pages on 0\.0\.0\.0 without a key"):
        check_open(ServeOptions(host="0.0.0.0"))
    check_open(ServeOptions(host="0.0.0.0", **KEY))
    check_open(ServeOptions(host="::1"))


def test_with_a_key_nothing_is_seen_without_it(pages):
    client = pages(listening=KEY)
    for page in PAGES:
        answer = client.get(f"/ui/{page}?run=a%26b")
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/ui/key?next=%2Fui%2F")
    for path in ("runs", "decode", "plan", "data", "evaluate", "start", "runs/stream?run=a"):
        assert client.get(f"/ui/api/{path}").status_code == 401
    assert client.get("/ui/report/a/report.html").status_code == 303
    assert client.get("/ui/api/runs", headers={"authorization": "Bearer secret word"}).status_code == 200
    assert client.get("/ui/api/runs", headers={"authorization": "Bearer other"}).status_code == 401


def test_a_key_that_is_typed_in_becomes_a_cookie_that_outlives_the_server(pages):
    client = pages(listening=KEY)
    wrong = client.post("/ui/key", content="key=no&next=%2Fui%2Fplan")
    assert wrong.status_code == 401
    assert "That is not the key" in wrong.text
    entered = client.post("/ui/key", content="key=secret+word&next=%2Fui%2Fplan%3Fmodel%3Dx")
    assert (entered.status_code, entered.headers["location"]) == (303, "/ui/plan?model=x")
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "secret" not in cookie
    value = re.search(rf"{COOKIE}=(\w+)", cookie)[1]
    again = pages(listening=KEY)  # another process would work out the same
    assert again.get("/ui/api/runs", headers={"cookie": f"{COOKIE}={value}"}).status_code == 200
    assert again.get("/ui/api/runs", headers={"cookie": f"{COOKIE}={value[:-1]}0x"}).status_code == 401


@pytest.mark.parametrize(
    "place", ["https://evil.example/", "//evil.example", "/ui//evil.example", "/ui/\\evil", "javascript:alert(1)"]
)
def test_the_key_leads_to_no_other_place(pages, place):
    entered = pages(listening=KEY).ask("POST", "/ui/key", data={"key": "secret word", "next": place})
    assert entered.headers["location"] == "/ui/runs"


def test_what_stands_in_the_address_is_escaped(pages):
    answer = pages().get("/ui/runs", params={"run": HOSTILE, "lang": HOSTILE})
    assert answer.status_code == 200
    assert "<img" not in answer.text
    assert "<script>alert" not in answer.text
    assert "<img" not in pages(listening=KEY).get("/ui/key", params={"next": HOSTILE}).text


def test_only_the_files_of_the_front_end_can_be_asked_for(pages):
    client = pages()
    for name in ("..%2f__init__.py", "%2e%2e/app.py", "app.py", "", "/etc/passwd"):
        assert client.get(f"/ui/static/{name}").status_code in (303, 404)
    first = client.get("/ui/static/dom.js")
    assert first.headers["content-type"].startswith("text/javascript")
    again = client.get("/ui/static/dom.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_whole_front_end_is_small_and_fetches_nothing():
    files = static_files()
    assert sum(len(data) for data, _ in files.values()) < 150_000
    for name, (data, _) in files.items():
        text = data.decode()
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg|127\.0\.0\.1:8000/)", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            name
        )
