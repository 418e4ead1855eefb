"""The server on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import httpx
import pytest
from devices import DEVICES, on
from serving import CHAT, HELLO, chat, events

from danlu import Engine, GenerationParams
from tiny import make_golden_model

pytestmark = pytest.mark.cuda

COMMAND = [sys.executable, "-c", "from danlu.cli import main; main()"]


def test_it_starts_and_answers_as_an_engine_on_the_cpu(tmp_path):
    source = make_golden_model(tmp_path / "tiny", "llama")
    with on("cpu"):
        engine = Engine(str(source), "float32")
        (expected,) = engine.generate([HELLO], GenerationParams(max_new_tokens=16))
        engine.close()
    command = [*COMMAND, "serve", str(source), "--dtype", "float32", "--port", "0"]
    alike = {"env": {**os.environ, "DANLU_LANG": "en"}, "text": True, "stderr": subprocess.STDOUT}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, **alike)
    try:
        said = []
        for line in server.stdout:
            said.append(line)
            if "ready: " in line:
                break
        else:
            raise AssertionError("".join(said))
        url = said[-1].split("ready: ")[1].strip().removesuffix("/v1")
        with httpx.Client(base_url=url, timeout=60) as client:
            model = client.get("/v1/models").json()["data"][0]["id"]
            whole = client.post(CHAT, json=chat(model=model, temperature=0)).json()
            assert whole["choices"][0]["message"]["content"] == expected.text
            pieces = events(client.post(CHAT, json=chat(model=model, temperature=0, stream=True)))
            deltas = [choice["delta"].get("content") or "" for piece in pieces for choice in piece["choices"]]
            assert "".join(deltas) == expected.text
    finally:
        server.terminate()
        server.communicate(timeout=60)


def test_the_command_line_answers_as_on_the_cpu(tmp_path, call):
    source, answers = make_golden_model(tmp_path / "tiny", "llama"), []
    for device in DEVICES:
        with on(device):
            code, out, err = call(
                "generate", source, "the quick brown fox", "--max_new_tokens", 8, "--dtype", "float32"
            )
        assert code == 0, err
        answers.append(out)
    assert answers[0] == answers[1]
    assert answers[0].strip()
