"""`danlu serve` as a process: the ready line, answers, and how it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from urllib.parse import urlsplit

import httpx
import pytest
from waiting import wait_until

from danlu.cli import call
from danlu.errors import ResourceError
from danlu.serve.options import ServeOptions
from danlu.serve.server import listen


class Command:
    """The command in a process of its own, and the streams that are read from it."""

    def __init__(self, process, model):
        self.process, self.model = process, model
        self.url = process.stdout.readline().removeprefix("ready: ").strip()
        self.begun: list[int] = []
        self.streams: dict[int, str] = {}
        self._threads: list[threading.Thread] = []

    def ask(self, count, headers=None, **more):
        """Read `count` streams side by side; returns when each has begun."""
        body = {"model": self.model.name, "messages": [{"role": "user", "content": "hello"}], "eos_token_id": [],
                "stream": True, **more}  # fmt: skip

        def read(number):
            self.streams[number] = ""
            with (
                contextlib.suppress(httpx.RemoteProtocolError, httpx.ReadError),  # cut off
                httpx.stream("POST", f"{self.url}/chat/completions", json=body, headers=headers, timeout=40) as reply,
            ):
                for piece in reply.iter_text():
                    self.streams[number] += piece
                    self.begun.append(number)

        self._threads = [threading.Thread(target=read, args=[number]) for number in range(count)]
        for thread in self._threads:
            thread.start()
        wait_until(lambda: len(set(self.begun)) == count)

    def listens(self):
        with socket.socket() as one:
            return one.connect_ex((urlsplit(self.url).hostname, urlsplit(self.url).port)) == 0

    def end(self):
        """(exit code, what was said on the error stream) once all is over, and the port is free."""
        _, errors = self.process.communicate(timeout=60)
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()
        listen(ServeOptions(port=urlsplit(self.url).port)).close()
        assert "Traceback" not in errors
        return self.process.returncode, errors


@pytest.fixture
def serve(tiny_model):
    started = []

    def run(*flags, **environment):
        line = [sys.executable, "-c", "from danlu.cli import main; main()", "serve", str(tiny_model), "--port=0"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen([*line, *flags], **pipes, env={**os.environ, **environment})
        started.append(process)
        return Command(process, tiny_model)

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_told_to_stop_it_lets_running_requests_finish(serve):
    command = serve(DANLU_API_KEY="secret")
    assert httpx.get(f"{command.url}/models").status_code == 401
    command.ask(4, {"Authorization": "Bearer secret"}, max_tokens=60, stream_options={"include_usage": True})
    command.process.send_signal(signal.SIGTERM)
    assert command.end()[0] == 0
    for text in command.streams.values():
        assert text.endswith("data: [DONE]\n\n")
        assert '"completion_tokens":60' in text


@pytest.mark.slow  # test_server.py shows the same without a process
def test_out_of_patience_it_tells_running_requests_so(serve):
    command = serve("--shutdown_timeout_seconds=0")
    command.ask(3, num_beams=32, max_tokens=400)
    command.process.send_signal(signal.SIGINT)
    assert command.end()[0] == 0
    for text in command.streams.values():
        assert '"code":"shutting_down"' in text.split("data: ")[-1]


def test_told_twice_it_cuts_off_what_runs(serve):
    command = serve("--shutdown_timeout_seconds=600")
    command.ask(2, num_beams=32, max_tokens=400)
    command.process.send_signal(signal.SIGTERM)
    wait_until(lambda: not command.listens())
    assert command.process.poll() is None
    command.process.send_signal(signal.SIGTERM)
    code, errors = command.end()
    assert (code, "told twice" in errors) == (130, True)
    assert not any("[DONE]" in text for text in command.streams.values())


def test_a_port_that_is_taken_is_said(capsys, tiny_model):
    with listen(ServeOptions(port=0)) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=f"127.0.0.1:{port}"):
            listen(ServeOptions(port=port))
        assert call(["serve", str(tiny_model), f"--port={port}"]) == 1
    assert "choose another port" in capsys.readouterr().err


def test_a_key_that_is_given_twice_is_said(capsys, tiny_model, tmp_path, monkeypatch):
    (tmp_path / "key").write_text("secret")
    monkeypatch.setenv("DANLU_API_KEY", "other")
    assert call(["serve", str(tiny_model), "--api-key-file", str(tmp_path / "key")]) == 2
    said = capsys.readouterr().err
    assert "api_key_file and DANLU_API_KEY" in said
    assert "secret" not in said
