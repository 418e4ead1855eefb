"""Adapters as models of one server: listed, chosen by name, all in one batch."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from adapting import make_adapter
from answering import tolerance_of
from waiting import PATIENCE_SECONDS

from danlu import Engine, GenerationParams
from danlu.cli import call
from danlu.errors import ConfigError
from danlu.serve.api import make_app
from danlu.serve.options import ServeOptions, adapters_named
from danlu.serve.server import Server, listen
from tiny import make_golden_model

HELLO = [{"role": "user", "content": "what is the capital of France?"}]


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory):
    return make_golden_model(tmp_path_factory.mktemp("served") / "tiny", "llama")


@pytest.fixture(scope="module")
def directories(model_directory, tmp_path_factory):
    place = tmp_path_factory.mktemp("adapters")
    return {name: make_adapter(model_directory, place / name, seed, 0.5) for seed, name in enumerate(("law", "art"))}


@pytest.fixture
def served(model_directory, directories):
    """`served(own)` -> (engine, url); `own` names the adapter that the engine is made with."""
    ends = []

    def run(own=None, **options):
        engine = Engine(str(model_directory), dtype="float32", adapter=own and str(directories[own]))
        for name, directory in directories.items():
            if name != own:
                engine.load_adapter(name, directory)
        chosen = ServeOptions(port=0, **options)
        taken, ready = listen(chosen), threading.Event()
        server = Server(make_app(engine, chosen, "tiny"), chosen, lambda _line: ready.set())
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        ends.append((server, thread, taken, engine))
        assert ready.wait(PATIENCE_SECONDS)
        return engine, f"http://127.0.0.1:{taken.getsockname()[1]}/v1"

    yield run
    for server, thread, taken, engine in ends:
        server.should_exit = True
        thread.join(20)
        taken.close()
        engine.close()


def client_of(url):
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=20)


def text_of(client, model, stream=False, **knobs):
    asked = {"model": model, "messages": HELLO, "max_tokens": 16, "temperature": 0, **knobs}
    if not stream:
        answer = client.chat.completions.create(**asked)
        assert answer.model == model
        return answer.choices[0].message.content
    pieces = list(client.chat.completions.create(**asked, stream=True))
    assert {piece.model for piece in pieces} == {model}
    return "".join(piece.choices[0].delta.content or "" for piece in pieces)


def test_each_adapter_is_a_model(served):
    engine, url = served()
    params = GenerationParams(max_new_tokens=16)
    expected = {
        model: engine.generate([HELLO], params, adapter)[0].text
        for model, adapter in (("tiny", None), ("law", "law"), ("art", "art"))
    }
    assert len(set(expected.values())) == 3
    with client_of(url) as client:
        assert [(one.id, one.parent) for one in client.models.list()] == [
            ("tiny", None), ("art", "tiny"), ("law", "tiny"),
        ]  # fmt: skip
        assert client.models.retrieve("law").parent == "tiny"
        asked = [(model, stream) for model in expected for stream in (False, True)] * 4
        with ThreadPoolExecutor(len(asked)) as pool:
            texts = list(pool.map(lambda one: text_of(client, *one), asked))
        assert texts == [expected[model] for model, _ in asked]
        entries = client.chat.completions.create(
            model="law", messages=HELLO, max_tokens=4, temperature=0, logprobs=True
        ).choices[0].logprobs.content  # fmt: skip
        made = engine.generate([HELLO], GenerationParams(max_new_tokens=4, logprobs=0), "law")[0]
        own = [one.logprob for one in made.sequences[0].logprobs]
        assert [one.logprob for one in entries] == pytest.approx(own, abs=tolerance_of(engine, made, "law"))


def test_a_model_with_an_adapter_of_its_own(served):
    engine, url = served("law")
    with client_of(url) as client:
        assert [(one.id, one.parent) for one in client.models.list()] == [
            ("tiny", "base"), ("base", None), ("art", "base"),
        ]  # fmt: skip
        for model, adapter in (("tiny", "default"), ("base", "base"), ("art", "art")):
            expected = engine.generate([HELLO], GenerationParams(max_new_tokens=16), adapter)[0].text
            assert text_of(client, model) == expected


def test_an_unknown_model_is_told_what_there_is(served):
    engine, url = served()
    with client_of(url) as client:
        for ask in (lambda: text_of(client, "low"), lambda: client.models.retrieve("low")):
            with pytest.raises(openai.NotFoundError, match="'low'; this server has 'tiny', 'art', 'law'") as caught:
                ask()
            assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
        engine.unload_adapter("law")
        with pytest.raises(openai.NotFoundError, match="this server has 'tiny', 'art'"):
            text_of(client, "law")


def test_one_name_for_two_models(model_directory, directories):
    engine = Engine(str(model_directory), dtype="float32", adapter=str(directories["law"]))
    engine.load_adapter("art", directories["art"])
    for name in ("art", "base"):
        with pytest.raises(ConfigError, match=f"'{name}' would be the name of two models"):
            make_app(engine, ServeOptions(), name)
    engine.close()


# --- the command's words


def test_words_of_the_command():
    assert adapters_named([]) == (None, {})
    assert adapters_named(["runs/lr=1e-4/adapter"]) == ("runs/lr=1e-4/adapter", {})
    assert adapters_named(["law=runs/law", "runs/own", "art=a=b"]) == ("runs/own", {"law": "runs/law", "art": "a=b"})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runs/a", "runs/b"], "two without a name"),
        (["law=a", "law=b"], "law is given twice"),
        (["=a"], "NAME=DIRECTORY"),
        (["law="], "NAME=DIRECTORY"),
    ],
)
def test_words_that_say_too_little(words, said, model_directory, capsys):
    with pytest.raises(ConfigError, match=said):
        adapters_named(words)
    assert call(["serve", str(model_directory), *[f"--adapter={word}" for word in words]]) == 2
    assert said in capsys.readouterr().err


def test_the_command(model_directory, directories, monkeypatch):
    seen = {}

    def serve_app(app, _options, taken, _say):
        seen.update(app.state.backend.models)
        taken.close()

    monkeypatch.setattr("danlu.serve.command.serve", serve_app)
    flags = ["--adapter", f"law={directories['law']}", "--adapter", str(directories["art"])]
    assert call(["serve", str(model_directory), "--port=0", *flags]) == 0
    assert {name: seen[name] for name in ("tiny", "base", "law")} == {"tiny": "base", "base": None, "law": "base"}
