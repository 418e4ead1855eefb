"""`danlu serve --backend`: a stand-in for the command vllm is started, asked and stopped; options that clash."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys

import httpx
import pytest
from waiting import wait_until

from danlu.cli import call
from danlu.errors import ModelError, ResourceError
from danlu.serve.vllm import vllm_server

FAKE = """#!{python}
import json, os, signal, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
if "--fail" in sys.argv:
    sys.exit(3)
if "--dawdle" in sys.argv:
    time.sleep(60)
words = sys.argv[1:]
open({notes!r}, "w").write(json.dumps(words + [os.getpid()]))
class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def say(self, body):
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def do_GET(self): self.say({{}})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked.get("seed") == 13:
            os._exit(13)
        self.say({{"model": "x", "choices": [], "asked": asked}})
HTTPServer(("127.0.0.1", int(words[words.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Puts a command vllm on PATH; the file in which it notes its arguments and its process."""
    notes = tmp_path / "notes.json"
    script = tmp_path / "bin" / "vllm"
    script.parent.mkdir()
    script.write_text(FAKE.format(python=sys.executable, notes=str(notes)))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    return notes


def is_gone(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def test_vllm_is_started_asked_and_stopped(fake, tiny_model):
    command = [sys.executable, "-c", "from danlu.cli import main; main()", "serve", str(tiny_model), "--port=0"]
    command += ["--backend", "vllm", "--vllm_arguments=--max-model-len '64'", "--dtype", "float32"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().removeprefix("ready: ").strip()
        body = {"model": tiny_model.name, "messages": [{"role": "user", "content": "hi"}], "top_k": 3}
        answer = httpx.post(f"{url}/chat/completions", json=body, timeout=20).json()
        process.send_signal(signal.SIGTERM)  # the default would leave the child behind
        _, errors = process.communicate(timeout=30)
    *words, pid = json.loads(fake.read_text())
    assert words[:2] == ["serve", str(tiny_model)]
    assert words[-6:] == ["--generation-config", "vllm", "--dtype", "float32", "--max-model-len", "64"]
    assert (answer["model"], answer["asked"]["top_k"], answer["asked"]["model"]) == (
        tiny_model.name,
        3,
        tiny_model.name,
    )
    wait_until(lambda: is_gone(pid))
    assert process.returncode == 0
    assert "Traceback" not in errors


def test_a_vllm_that_breaks_down_says_how(fake, tmp_path):
    with vllm_server(tmp_path, "m", "auto", "", 20, lambda _: None) as running:
        assert running.why_down() == ""
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(f"{running.base_url}/chat/completions", json={"seed": 13}, timeout=20)
        pid = json.loads(fake.read_text())[-1]
        running._process.wait(60)
        assert "exit code 13" in running.why_down()
    wait_until(lambda: is_gone(pid))


def test_a_vllm_that_ends_or_dawdles(fake, tmp_path):
    def start(arguments, seconds):
        with vllm_server(tmp_path, "m", "auto", arguments, seconds, lambda _: None):
            raise AssertionError("it is not ready")

    with pytest.raises(ModelError, match="exit code 3"):
        start("--fail", 20)
    with pytest.raises(ResourceError, match=r"not ready after 0\.3 seconds"):
        start("--dawdle", 0.3)


def test_a_vllm_whose_interpreter_is_gone(fake, tmp_path):
    (tmp_path / "bin" / "vllm").write_text("#!/no/such/python\n")
    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(ModelError, match="could not be started: No such file"),
        vllm_server(tmp_path, "m", "auto", "", 30, lambda _text: None),
    ):
        pass
    assert signal.getsignal(signal.SIGTERM) == before


def test_no_vllm(capsys, tiny_model, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert call(["serve", str(tiny_model), "--backend", "vllm", "--port=0"]) == 1
    assert "pip install vllm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no model given"),
        (["m", "--backend", "vllm", "--adapter", "a"], "--adapter has no effect with --backend vllm"),
        (["--backend", "openai", "--base_url", "http://up", "--dtype", "float32"], "--dtype has no effect"),
        (["--backend", "openai"], "needs --base_url"),
        (["--backend", "openai", "--base_url", "up:80"], "base_url"),
        (["m", "--base_url", "http://up"], "base_url has no effect without backend openai"),
        (["m", "--backend", "vllm", "--flavour", "vllm"], "flavour has no effect"),
        (["m", "--start_timeout_seconds", "9"], "start_timeout_seconds has no effect"),
        (["m", "--backend", "other"], "backend"),
    ],
)
def test_options_without_effect(capsys, arguments, words):
    assert call(["serve", "--port=0", *arguments]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_an_embedder_that_is_misspelt_shows_at_once(capsys, monkeypatch, tmp_path):
    arguments = ["serve", "m", "--backend", "openai", "--base_url", "http://127.0.0.1:9", "--port=0"]
    assert call([*arguments, "--embedder", str(tmp_path / "none")]) == 1
    assert "no such file or directory" in capsys.readouterr().err
