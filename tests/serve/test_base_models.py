"""A served base model continues the text of messages, and says what it is."""

from __future__ import annotations

import json

import pytest
from adapting import make_adapter
from serving import CHAT, HELLO, TEXT, chat, error, talked, text

from danlu import Engine
from danlu.cli import call
from danlu.hub import write_origin
from danlu.serve.api import make_app
from danlu.serve.options import ServeOptions
from tiny import make_tiny_model


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("base") / "llama", kind=None)


@pytest.fixture(scope="module")
def adapter(directory, tmp_path_factory):
    """Trained on chats, as its directory says."""
    made = make_adapter(directory, tmp_path_factory.mktemp("adapter"))
    write_origin(made, kind="instruct")
    return made


@pytest.fixture(scope="module")
def engine(directory, adapter):
    made = Engine(str(directory), dtype="float32")
    made.load_adapter("qa", adapter)
    yield made
    made.close()


def asking(engine, talk):
    app = make_app(engine, ServeOptions(), "tiny")
    return talked(app, talk), app


def posted(engine, path, body):
    response, _ = asking(engine, lambda client: client.post(path, json=body))
    return response


def said(response):
    choice = response.json()["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"]


def test_the_text_of_messages_is_continued(engine):
    response = posted(engine, CHAT, chat(temperature=0))
    assert response.status_code == 200
    assert said(response) == said(posted(engine, TEXT, text(temperature=0, prompt=HELLO[0]["content"])))
    assert response.json()["usage"]["prompt_tokens"] == len(engine.token_ids(HELLO[0]["content"]))


def test_token_ids_are_no_messages(engine):
    ids = engine.token_ids("one two")
    response = posted(engine, TEXT, text(temperature=0, prompt=ids))
    assert said(response) == said(posted(engine, TEXT, text(temperature=0, prompt="one two")))


def test_of_several_messages_each_is_a_line(engine):
    messages = [{"role": "system", "content": "one two"}, *HELLO, {"role": "assistant", "content": "Paris."},
                {"role": "user", "content": "three"}]  # fmt: skip
    whole = f"one two\n{HELLO[0]['content']}\nParis.\nthree"
    assert said(posted(engine, CHAT, chat(temperature=0, messages=messages))) == said(
        posted(engine, TEXT, text(temperature=0, prompt=whole))
    )


def test_messages_without_a_word_are_refused(engine):
    response = posted(engine, CHAT, chat(temperature=0, messages=[{"role": "user", "content": ""}]))
    assert response.status_code == 400
    assert "base model" in response.json()["error"]["message"]


TOOL = {"type": "function", "function": {"name": "clock"}}
CALL = {"id": "c", "type": "function", "function": {"name": "clock", "arguments": "{}"}}


@pytest.mark.parametrize(
    "given",
    [
        {"tools": [TOOL]},
        {"tools": [TOOL], "tool_choice": "none"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"messages": [*HELLO, {"role": "assistant", "tool_calls": [CALL]}]},
        {"messages": [*HELLO, {"role": "tool", "tool_call_id": "c", "content": "noon"}]},
    ],
)
def test_what_shapes_turns_is_refused(engine, given):
    fault = error(posted(engine, CHAT, chat(temperature=0, **given)), 400)
    assert fault["param"] in given
    assert "tiny is a base model" in fault["message"]
    assert "--kind instruct" in fault["message"]
    assert "base model" not in posted(engine, CHAT, chat(temperature=0, model="qa", **given)).text
    told = {key: value for key, value in chat(**given).items() if key != "max_tokens"}
    assert error(posted(engine, "/tokenize", told), 400)["param"] in given


@pytest.mark.parametrize(
    "given",
    [
        {"tools": []},
        {"tool_choice": "none"},
        {"reasoning_effort": "none"},
        {"reasoning_effort": "high"},
        {"parallel_tool_calls": True},
        {"verbosity": "high"},
        {"chat_template_kwargs": {}},
        {"add_generation_prompt": False},
        {"messages": [*HELLO, {"role": "assistant", "content": "Pa"}], "continue_final_message": True},
    ],
)
def test_what_asks_for_what_is_done_anyway_is_not(engine, given):
    body = chat(temperature=0, **given)
    assert said(posted(engine, CHAT, body)) == said(
        posted(engine, CHAT, chat(temperature=0, messages=body["messages"]))
    )


def test_its_adapter_answers_in_turns(engine):
    rendered = engine.generate([HELLO], _greedy(), adapter="qa")[0].text
    assert said(posted(engine, CHAT, chat(temperature=0, model="qa"))) == rendered


def _greedy():
    from danlu import GenerationParams

    return GenerationParams(max_new_tokens=16)


def test_models_say_what_they_are(engine):
    response, app = asking(engine, lambda client: client.get("/v1/models"))
    kinds = {card["id"]: card.get("kind") for card in response.json()["data"]}
    assert kinds == {"tiny": "base", "qa": "instruct"}
    one, _ = asking(engine, lambda client: client.get("/v1/models/tiny"))
    assert one.json()["kind"] == "base"
    (note,) = app.state.service.notes()
    assert note.startswith("note: tiny is a base model (after a short answer")


def test_told_to_be_instruct_it_is_asked_as_before(directory):
    engine = Engine(str(directory), dtype="float32", kind="instruct")
    assert said(posted(engine, CHAT, chat(temperature=0))) == engine.generate([HELLO], _greedy())[0].text
    engine.close()


def test_a_model_without_a_template_can_be_asked_as_well(directory, tmp_path):
    import shutil

    bare = shutil.copytree(directory, tmp_path / "bare")
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        path = bare / name
        if name.endswith(".jinja"):
            path.unlink(missing_ok=True)
        else:
            document = json.loads(path.read_text())
            document.pop("chat_template", None)
            path.write_text(json.dumps(document))
    engine = Engine(str(bare), dtype="float32")
    assert engine.kind().reason == "it has no chat template"
    assert posted(engine, CHAT, chat(temperature=0)).status_code == 200
    engine.close()


@pytest.mark.parametrize(
    "backend", [["--backend", "vllm"], ["--backend", "openai", "--base_url", "http://127.0.0.1:9/v1"]]
)
def test_another_server_renders_as_it_sees_fit(capsys, backend):
    assert call(["serve", "tiny", *backend, "--kind", "base"]) == 2
    assert "--kind has no effect" in capsys.readouterr().err
