"""A step that proves what will be served: `danlu serve` with the model and a collection, asked over HTTP by a client.

The server is a process of its own on a free loopback port, ended with the step. Kept is what was asked and answered,
how many answers name a passage that they were given, and, where rows say which is right, how many name that one.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from pydantic import Field

from danlu.config import PathText
from danlu.errors import ConfigError, DataError, GateFailed, ModelError
from danlu.evaluate.bootstrap import bootstrap_mean
from danlu.evaluate.overlap import chrf
from danlu.evaluate.rows import Row, read_rows
from danlu.hub import Say
from danlu.steps.directory import opened
from danlu.steps.recall import COLLECTION
from danlu.steps.step import Kind, Place, Product, Show, StepOptions

# It ends when whoever started it does: a `kill -9` closes its standard input.
_CHILD = (
    "import os, signal, sys, threading\n"
    "ends = lambda: (sys.stdin.buffer.read(), os.kill(os.getpid(), signal.SIGTERM))\n"
    "threading.Thread(target=ends, daemon=True).start()\n"
    "from danlu.cli import main\n"
    "main()\n"
)
_READY = re.compile(r"ready: (\S+)")
_CITED = re.compile(r"\[(\d+)\]")
_STOP_SECONDS, _POLL_SECONDS, _SHOWN = 30.0, 0.2, 5
_LAST = 2000  # characters of a server's output that an error quotes


class ServeStep(StepOptions):
    """The model of a step before, served with a collection, and asked."""

    data: PathText = Field(
        description="file of questions; passage is the id of the one that answers, where it is known"
    )
    collection: PathText | None = Field(
        None, description="where passages are found; of the last step of kind recall if none is named"
    )
    questions: int = Field(20, ge=1, description="questions that are asked, evenly taken from the file")
    top: int = Field(3, ge=1, le=50, description="passages that come with a question")
    max_new_tokens: int = Field(64, ge=1, description="tokens of an answer at most")
    least_citing: float = Field(
        0.5, ge=0, le=1, description="share of answers that have to name a passage; below it the chain stops"
    )
    start_timeout_seconds: float = Field(300.0, gt=0, description="the server has this long to load the model")


def _collection(options: ServeStep, place: Place) -> str:
    return options.collection or place.latest(COLLECTION, "collection")


def _inputs(options: ServeStep, place: Place) -> dict[str, str]:
    return place.read(options.data, _collection(options, place))


def _check(options: ServeStep, place: Place, start: Product, is_made: bool) -> None:
    if start.judges:
        raise ConfigError(f"{start.place} is a reward model: it answers nothing", fix="start from a model that answers")
    if place.is_there(options.data):
        _asked(options)


def _asked(options: ServeStep) -> list[Row]:
    """Raises DataError for a file without questions."""
    rows = [row for row in read_rows(Path(options.data), answers=False) if isinstance(row, Row)]
    rows = [row for row in rows if row.given("question")]
    if not rows:
        raise DataError(f"{options.data}: no row has a question", fix="name the column question, query or prompt")
    return [
        rows[at * len(rows) // min(options.questions, len(rows))] for at in range(min(options.questions, len(rows)))
    ]


def _run(options: ServeStep, place: Place, start: Product, show: Show, go_on: bool) -> None:
    rows = _asked(options)
    with opened(place, options, show, go_on) as journal:
        show.say(f"serving {start.place}")
        with _server(_words(options, place, start), options.start_timeout_seconds, show.say) as address:
            show.say(f"asking {len(rows)} questions at {address}")
            found = [_answer(address, row, options) for row in rows]
        figures = _figures(found)
        journal.result("served", {**figures, "uses": _uses(options, place, start), "shown": found[:_SHOWN]})
        told = f"{figures['citing']} of {len(found)} answers name a passage they were given"
        if figures["known"]:
            told += f", {figures['right']} of {figures['known']} the right one"
        journal.event("served", told, **{name: one for name, one in figures.items() if not isinstance(one, dict)})
        show.say(told)
        if figures["citing"] < options.least_citing * len(found):
            raise GateFailed(
                f"{told}; {options.least_citing:.0%} have to",
                fix="train on what a step `cite` writes, or lower least_citing",
            )


def _words(options: ServeStep, place: Place, start: Product) -> list[str]:
    """Of the command that serves it."""
    adapter = ["--adapter", start.adapter] if start.adapter else []
    licence = ["--accept_licence"] if start.accept_licence else []
    return ["serve", start.model, *adapter, *licence, "--collection", f"docs={_collection(options, place)}"]


@contextmanager
def _server(words: Sequence[str], seconds: float, say: Say) -> Iterator[str]:
    """The address of a server, while it runs. Raises ModelError where it ends before it is ready, or never is."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, *words, "--port", "0"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield _ready(process, output, seconds)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdin is not None, "it was started with a pipe"
            process.stdin.close()


def _ready(process: subprocess.Popen[bytes], output: Any, seconds: float) -> str:
    end = time.monotonic() + seconds
    while True:
        has_ended = process.poll() is not None
        output.seek(0)
        said = output.read().decode("utf-8", "replace")
        if found := _READY.search(said):
            return found[1]
        if has_ended or time.monotonic() > end:
            why = (
                f"ended with exit code {process.returncode}"
                if has_ended
                else f"was not ready after {seconds:g} seconds"
            )
            raise ModelError(f"the server {why}: {said[-_LAST:].strip() or 'it said nothing'}")
        time.sleep(_POLL_SECONDS)


def _answer(address: str, row: Row, options: ServeStep) -> dict[str, Any]:
    """Raises ModelError for an answer that is an error."""
    body = {
        "model": "", "messages": [{"role": "user", "content": row.question}], "max_tokens": options.max_new_tokens,
        "temperature": 0, "recall": {"collection": "docs", "top": options.top},
    }  # fmt: skip
    begun = time.perf_counter()
    try:
        body["model"] = httpx.get(f"{address}/models", timeout=60).json()["data"][0]["id"]
        response = httpx.post(f"{address}/chat/completions", json=body, timeout=600)
        document = response.json()
        said = str(document["choices"][0]["message"]["content"]).strip()
        citations = {str(one["number"]): one["id"] for one in document["citations"]}
    except (httpx.HTTPError, ValueError, KeyError, IndexError) as error:
        raise ModelError(f"the server's answer to {row.place} is none: {error!r}", fix="ask it yourself") from error
    named = [citations[number] for number in _CITED.findall(said) if number in citations]
    passage = row.others.get("passage")
    return {
        "question": row.question,
        "answer": said,
        "truth": row.truth,
        "named": named,
        "given": list(citations.values()),
        "passage": passage,
        "group": row.group,
        "seconds": time.perf_counter() - begun,
    }


def _figures(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    known = [one for one in found if one["passage"] is not None]
    overlaps = [
        (chrf(_CITED.sub("", one["answer"]), _CITED.sub("", one["truth"])), one) for one in found if one["truth"]
    ]
    figures: dict[str, Any] = {
        "questions": len(found),
        "citing": sum(bool(one["named"]) for one in found),
        "known": len(known),
        "right": sum(one["passage"] in one["named"] for one in known),
        "given": sum(one["passage"] in one["given"] for one in known),
        "seconds": sorted(one["seconds"] for one in found)[len(found) // 2],
    }
    groups = [one["group"] for _, one in overlaps]
    if len(set(groups)) > 1:
        interval = bootstrap_mean([value for value, _ in overlaps], groups)
        figures["overlap"] = {"value": interval.value, "low": interval.low, "high": interval.high}
    return figures


def _uses(options: ServeStep, place: Place, start: Product) -> list[str]:
    collection = shlex.quote(_collection(options, place))
    asked = f'danlu ask {collection} "…" --model {shlex.quote(start.model)}'
    return [
        f"danlu {shlex.join(_words(options, place, start))}",
        asked + (f" --adapter {shlex.quote(start.adapter)}" if start.adapter else ""),
    ]


SERVE = Kind(
    ServeStep,
    needs_adapter=None,
    inputs=_inputs,
    leaves=lambda _options, _place, start: start,
    check=_check,
    run=_run,
    uses=_uses,
)
