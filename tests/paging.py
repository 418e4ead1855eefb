"""What the tests of the pages share: runs that were never trained, and clients of the pages."""

from __future__ import annotations

import asyncio
import json

import httpx

from danlu.journal import Journal

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def make_run(folder, name, steps=20, total=None, done=True, **recipe):
    """A run directory as training leaves it, with a loss that falls to 1."""
    directory = folder / name
    directory.mkdir(parents=True, exist_ok=True)
    journal = Journal(directory)
    journal.recipe_path.write_text(json.dumps({"kind": "sft", "name": name, "model": {"name": "tiny"}, **recipe}))
    journal.event("begun", "seed 42", folder="/elsewhere")
    journal.event("plan", "8 examples a step", steps=total or steps)
    add_steps(journal, 1, steps)
    if done:
        journal.result("run", {"seconds": 12.5, "peak_memory_bytes": 10**9})
    return journal


def row_of(step):
    return {
        "step": step, "tokens": 100, "loss": 1 + 2 / step, "lr": 1e-4, "grad_norm": 1.0, "seconds": 0.5,
        "memory_bytes": 2**30,
    }  # fmt: skip


def add_steps(journal, first, last):
    with journal.metrics_path.open("a") as file:
        file.write("".join(json.dumps(row_of(step)) + "\n" for step in range(first, last + 1)))


class Client:
    """Asks an application, as a browser on this machine does; nothing is checked of the answer."""

    def __init__(self, app, host="127.0.0.1:8090"):
        self.app, self.host = app, host

    def ask(self, method, path, **more):
        async def main():
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{self.host}", timeout=30) as client:
                return await client.request(method, path, **more)

        return asyncio.run(main())

    def get(self, path, **more):
        return self.ask("GET", path, **more)

    def post(self, path, body=None, **more):
        return self.ask("POST", path, **({"json": body} if body is not None else {}), **more)

    def api(self, path, body=None, **more):
        """What a route below /ui/api answers; it has to be well."""
        path = f"/ui/api/{path}"
        response = self.get(path, **more) if body is None else self.post(path, body, **more)
        assert response.status_code == 200, response.text
        return response.json()

    def fault(self, path, body=None, status=400, **more):
        """What a route below /ui/api refuses with."""
        path = f"/ui/api/{path}"
        response = self.get(path, **more) if body is None else self.post(path, body, **more)
        assert response.status_code == status, response.text
        assert "Traceback" not in response.text
        return response.json()["error"]


def streamed(app, query, last_id="", until=lambda events: True):
    """(id, kind, data) of what a stream of runs tells until it has told what is waited for."""
    events = []

    async def main():
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
            "path": "/ui/api/runs/stream", "raw_path": b"/ui/api/runs/stream", "query_string": query.encode(),
            "root_path": "", "server": ("127.0.0.1", 8090), "client": ("127.0.0.1", 1),
            "headers": [(b"host", b"127.0.0.1:8090"), *([(b"last-event-id", last_id.encode())] if last_id else [])],
        }  # fmt: skip
        enough = asyncio.Event()

        async def receive():
            await enough.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            text = message.get("body", b"").decode()
            for block in filter(None, text.split("\n\n")):
                told = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
                if "event" in told:
                    events.append((told.get("id"), told["event"], json.loads(told["data"])))
            if until(events):
                enough.set()

        await asyncio.wait_for(app(scope, receive, send), 20)

    asyncio.run(main())
    return events


def make_evaluation(folder, rows=12):
    """An evaluation of `rows` rows, the last of which could not be judged; what people said lies beside it."""
    from danlu.evaluate import written
    from danlu.evaluate.evaluating import Evaluated
    from danlu.evaluate.rows import Row
    from danlu.evaluate.rubrics import load_rubric
    from danlu.evaluate.scale import Failed, judged
    from danlu.evaluate.summary import summarise

    made = [Row(f"r{at}", f"f:{at}", f"answer {HOSTILE if at == 1 else at}", f"question {at}") for at in range(rows)]
    peaks = [[0.7 if score == at % 5 else 0.075 for score in range(5)] for at in range(rows)]
    said = [judged(1, tuple(masses), 0.0, None) for masses in peaks]
    said[-1] = Failed("it said nothing")
    overlaps = [{"chrf": 0.1 * (at * 7 % 10)} for at in range(rows)]
    found = Evaluated(made, {"relevance": said}, overlaps)
    rubric = load_rubric("relevance")
    folder.mkdir(parents=True)
    written.write(folder, found, {**summarise(found, {"relevance": rubric}), "judge": "tiny"})
    rated = folder.parent / "people.jsonl"
    lines = [
        {"id": row.id, "question": row.question, "answer": "x" * at, "relevance": 1 + at % 5 * 0.9}
        for at, row in enumerate(made)
    ]
    rated.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return rated
