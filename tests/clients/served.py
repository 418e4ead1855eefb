"""A server for clients to ask: a tiny model that says what fits the question, and a tiny embedder.

It asks for the key "none", and holds four prompts at once.

    python tests/clients/served.py              prints the ready line, and serves until it is told to stop
    python tests/clients/served.py gguf DIR     writes the tiny model for llama.cpp, and a template that knows tools

Runs in Danlu's own environment, while the clients have theirs.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import scripts
import templates
from encoders import make_tiny_encoder

from danlu import Engine
from danlu.recall.embed import Embedder
from danlu.serve.api import make_app
from danlu.serve.embeddings import Embeddings
from danlu.serve.options import ServeOptions
from danlu.serve.server import Server, listen
from tiny import make_tiny_gguf, make_tiny_model

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "@CITY@"}}\n</tool_call>'
PERSON = '{"name": "Ada", "age": 36}'


def answer(prompt: str) -> str:
    """What the model says to a prompt."""
    asked = prompt.rpartition("<|im_start|>user\n")[2]
    if "rain" in asked:
        return "It rains in Paris."
    if "weather" in asked:
        calls = [CALL.replace("@CITY@", city) for city in ("Paris", "Rome") if city in asked]
        return "\n".join(calls if "must" in asked else ["Let me see.", *calls])
    if "count" in asked:
        return "1 " * 3000
    if '"name": "Person"' in prompt or '"name":"Person"' in prompt:  # a form asked for as a tool
        return '<tool_call>\n{"name": "Person", "arguments": ' + PERSON + "}\n</tool_call>"
    if "Ada" in asked:
        return PERSON
    if "think" in asked:
        return "<think>\nHm.\n</think>\n\nYes."
    return "Hello there."


def main() -> None:
    if sys.argv[1:2] == ["gguf"]:
        with tempfile.TemporaryDirectory() as directory:
            make_tiny_gguf(make_tiny_model(directory), Path(sys.argv[2]) / "tiny.gguf")
        (Path(sys.argv[2]) / "tools.jinja").write_text(templates.HERMES, "utf-8")
        return
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        changes = {"max_position_embeddings": 8192}
        engine = Engine(str(make_tiny_model(home / "model", changes=changes)), dtype="float32")
        engine.chat = replace(engine.chat, template=templates.THINKING)
        scripts.say(engine, answer)
        make_tiny_encoder(home / "encoder")
        options = ServeOptions(port=0, api_key="none", max_queue=4)
        embedder = Embeddings("tiny-embedder", lambda: Embedder(str(home / "encoder")), options)
        app, taken = make_app(engine, options, "tiny", embedder), listen(options)
        Server(app, options, lambda line: print(line, flush=True)).run(sockets=[taken])
        engine.close()


if __name__ == "__main__":
    main()
