"""A server in a process of its own, over tiny random models, and one who watches it while it is asked."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import watcher
from prometheus_client.parser import text_string_to_metric_families
from waiting import wait_until

# Nine of ten answers about its health come in this time while one example is worked on, and each in ten times that. Not
# the longest alone: of hundreds, one will wait for a processor that another program has.
HEALTH_SECONDS = 0.1
_SHARE, _LONGEST_SECONDS = 0.9, 1.0
# A body that holds the server up does so each time it comes; a machine that is busy with something else does not.
TRIES = 6
# Longer than any example may take, those that are refused by the clock included.
PATIENCE_SECONDS = 120


@dataclass
class Watch:
    """What was seen while something went on."""

    seconds: list[float] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def told(self) -> str:
        """The longest times, and the longest pause: one far above 20 ms was the machine's, not the server's."""
        longest = ", ".join(f"{1000 * seconds:.0f}" for seconds in sorted(self.seconds)[:-6:-1])
        return (
            f"{len(self.seconds)} answers, the longest {longest} ms; the longest pause {1000 * max(self.pauses):.0f} ms"
        )

    @property
    def lag(self) -> float:
        """To be compared with HEALTH_SECONDS. Of less than ten answers, the longest time counts."""
        times = sorted(self.seconds)
        return max(times[math.ceil(_SHARE * len(times)) - 1], times[-1] * HEALTH_SECONDS / _LONGEST_SECONDS)


class Watched:
    """A server that is asked and watched."""

    def __init__(self, url: str, process: psutil.Process) -> None:
        self.url, self.process = url, process
        self.client = httpx.Client(base_url=url, timeout=PATIENCE_SECONDS)
        line = [sys.executable, str(Path(watcher.__file__)), url, str(PATIENCE_SECONDS)]
        self._watcher = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.sizes: list[tuple[str, int]] = []

    def close(self) -> None:
        self.client.close()
        self._watcher.communicate(timeout=PATIENCE_SECONDS)  # the end of its input is its own

    @property
    def memory_bytes(self) -> int:
        return int(self.process.memory_info().rss)

    def note_memory(self, when: str) -> None:
        """Keep how much it holds now, to be told where that has grown too much."""
        self.sizes.append((when, self.memory_bytes))

    def told_sizes(self) -> str:
        return "\n".join(f"{size / 2**20:7.0f} MiB {when}" for when, size in self.sizes)

    @contextmanager
    def watch(self) -> Iterator[Watch]:
        """Have its health asked after over and over, until the end of this; a question on its way is waited for."""
        seen = Watch()
        self._tell_watcher()
        assert self._hear_watcher() == "watching"
        try:
            yield seen
        finally:
            self._tell_watcher()
            document = json.loads(self._hear_watcher())
            seen.seconds, seen.pauses, seen.faults = document["seconds"], document["pauses"], document["faults"]

    def _tell_watcher(self) -> None:
        self._watcher.stdin.write("\n")
        self._watcher.stdin.flush()

    def _hear_watcher(self) -> str:
        line = self._watcher.stdout.readline().strip()
        assert line, f"the watcher has ended ({self._watcher.wait(PATIENCE_SECONDS)})"
        return line

    def gauges(self) -> dict[str, float]:
        families = text_string_to_metric_families(self.client.get("/metrics").text)
        return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}

    def wait_until_idle(self) -> None:
        """Nothing is left of any request."""
        names = ("danlu_requests_waiting", "danlu_requests_running", "danlu_rows_running", "danlu_kv_bytes")
        wait_until(lambda: not any(self.gauges()[name] for name in names))

    def ask(self, path: str, body: bytes, headers: Any = None) -> httpx.Response:
        return self.client.post(path, content=body, headers=headers or {"content-type": "application/json"})

    def ask_watched(self, path: str, body: bytes, headers: Any = None) -> httpx.Response:
        """The answer, beside which its health was told in time; of several tries, in the quickest."""
        tries = []
        for _ in range(TRIES):
            with self.watch() as seen:
                reply = self.ask(path, body, headers)
            assert not seen.faults
            if seen.lag < HEALTH_SECONDS:
                return reply
            tries.append(seen.told())
        raise AssertionError("\n".join([f"/health was slow beside {path}, in each of {TRIES} tries:", *tries]))

    def begin_and_go_away(self, path: str, body: bytes, after_bytes: int) -> None:
        """Read so much of a stream, and close the connection."""
        headers = {"content-type": "application/json"}
        with (
            httpx.Client(base_url=self.url, timeout=PATIENCE_SECONDS) as client,
            client.stream("POST", path, content=body, headers=headers) as reply,
        ):
            read = 0
            for piece in reply.iter_raw():
                read += len(piece)
                if read >= after_bytes:
                    return


@contextmanager
def watched_server(directory: Path, *flags: str, first: str = "") -> Iterator[Watched]:
    """`danlu serve` of this model until the end; what it writes to its log is an error at the end.

    Args:
        first: Python that the process runs before.
    """
    code = f"{first}\nfrom danlu.cli import main; main()"
    line = [sys.executable, "-c", code, "serve", str(directory), "--port=0", *flags]
    log = directory.parent / "server.log"
    with log.open("w") as errors:
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            ready = process.stdout.readline()
            assert ready.startswith("ready: "), log.read_text("utf-8")
            url = ready.removeprefix("ready: ").strip().removesuffix("/v1")
            with closing(Watched(url, psutil.Process(process.pid))) as running:
                yield running
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE_SECONDS)
    assert "Traceback" not in log.read_text("utf-8"), log.read_text("utf-8")[-5000:]


# -- what an answer must be

_INTERNAL = (
    "Traceback", "pydantic", "input_value", "input_type=", "function-", "constrained-", "site-packages", ".py", "0x7f",
    "%llguidance", "after validation", "valid tuple", "valid dictionary or instance", "sys.", "Errno", "/tmp",
)  # fmt: skip


def check_error(document: Any, changed: tuple[str, ...] = ()) -> None:
    """The shape of OpenAI's errors, in words for people."""
    assert set(document) == {"error"}
    fault = document["error"]
    assert set(fault) == {"message", "type", "param", "code"}
    assert isinstance(fault["message"], str)
    assert fault["message"].strip()
    assert fault["param"] is None or isinstance(fault["param"], str)
    shown = [word for word in _INTERNAL if word in fault["message"]]
    assert not shown, fault
    assert fault["code"] != "internal_error", fault


def check_whole(reply: httpx.Response) -> Any:
    """An answer or an error, never a 5xx, and JSON as the standard has it."""
    assert reply.status_code < 500, (reply.status_code, reply.text)
    document = json.loads(reply.content.decode("utf-8"), parse_constant=_refuse)
    if reply.status_code >= 400:
        check_error(document)
    return document


def _refuse(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")


def check_stream(reply: httpx.Response, is_response: bool) -> None:
    """Events one after another, and one that says that this is all."""
    text = reply.content.decode("utf-8")
    assert text.endswith("\n\n"), text[-200:]
    events = [event for event in text.removesuffix("\n\n").split("\n\n") if not event.startswith(":")]
    data = [line.removeprefix("data: ") for event in events for line in event.split("\n") if line.startswith("data: ")]
    assert len(data) == len(events), text[-500:]
    documents = [json.loads(one, parse_constant=_refuse) for one in data if one != "[DONE]"]
    if is_response:
        assert documents[-1]["type"] in ("response.completed", "response.incomplete", "response.failed", "error"), data[
            -1
        ]
        fault = documents[-1].get("response", {}).get("error") or (documents[-1]["type"] == "error" and documents[-1])
        assert not fault or "server" not in str(fault.get("code")), documents[-1]
    elif "error" in documents[-1]:
        check_error(documents[-1])
        assert documents[-1]["error"]["type"] not in ("server_error", "timeout_error"), documents[-1]
    else:
        assert data[-1] == "[DONE]"
