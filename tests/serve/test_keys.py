"""The key of a server: one place gives it, and a place that is there must hold one."""

from __future__ import annotations

import pytest

from danlu.errors import ConfigError
from danlu.serve.keys import with_key
from danlu.serve.options import ServeOptions


def test_each_place_gives_it(tmp_path):
    (tmp_path / "key").write_text("in-file\n")
    assert with_key(ServeOptions(), {}).api_key is None
    assert with_key(ServeOptions(api_key="flag"), {}).api_key == "flag"
    assert with_key(ServeOptions(), {"DANLU_API_KEY": "variable"}).api_key == "variable"
    found = with_key(ServeOptions(api_key_file=tmp_path / "key", port=1), {})
    assert (found.api_key, found.port) == ("in-file", 1)


def test_the_file_of_the_key_may_lie_at_home(tmp_path, monkeypatch):
    (tmp_path / "key").write_text("secret\n", encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert with_key(ServeOptions(api_key_file="~/key"), {}).api_key == "secret"


@pytest.mark.parametrize(
    ("options", "environment", "names"),
    [
        ({"api_key": "a", "api_key_file": "b"}, {}, ("api_key ", "api_key_file")),
        ({"api_key": "a"}, {"DANLU_API_KEY": "a"}, ("api_key ", "DANLU_API_KEY")),
        ({"api_key_file": "b"}, {"DANLU_API_KEY": ""}, ("api_key_file", "DANLU_API_KEY")),
    ],
)
def test_two_places_contradict_each_other(options, environment, names):
    with pytest.raises(ConfigError, match="both give a key") as caught:
        with_key(ServeOptions(**options), environment)
    assert all(name in str(caught.value) for name in names)


def test_a_place_without_a_key_does_not_open_the_server(tmp_path):
    with pytest.raises(ConfigError, match="DANLU_API_KEY holds no key"):
        with_key(ServeOptions(), {"DANLU_API_KEY": " "})
    path = tmp_path / "key"
    for content, fault in ((b"\n", "holds no key"), (b"one\ntwo", "more than one word"), (b"\xff", "not UTF-8")):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=fault) as caught:
            with_key(ServeOptions(api_key_file=path), {})
        assert str(path) in str(caught.value)
        assert "two" not in str(caught.value)
    with pytest.raises(ConfigError, match="No such file"):
        with_key(ServeOptions(api_key_file=tmp_path / "none"), {})
