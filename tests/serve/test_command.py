"""`danlu serve`: the ready line, an answer, an orderly end."""

from __future__ import annotations

import signal
import subprocess
import sys

import httpx
import pytest

from danlu.cli import call
from danlu.errors import ResourceError
from danlu.serve.options import ServeOptions
from danlu.serve.server import listen


def test_the_command(tiny_model):
    command = [sys.executable, "-c", "from danlu.cli import main; main()", "serve", str(tiny_model), "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().removeprefix("ready: ").strip()
        body = {
            "model": tiny_model.name,
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 3,
            "eos_token_id": [],
        }
        assert httpx.post(f"{url}/chat/completions", json=body, timeout=20).json()["usage"]["completion_tokens"] == 3
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in errors


def test_a_port_that_is_taken_is_said(capsys, tiny_model):
    with listen(ServeOptions(port=0)) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=f"127.0.0.1:{port}"):
            listen(ServeOptions(port=port))
        assert call(["serve", str(tiny_model), f"--port={port}"]) == 1
    assert "choose another port" in capsys.readouterr().err
