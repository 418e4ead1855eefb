"""Bodies of requests -> knobs: OpenAI's habits kept, contradictions and unknown names refused by name."""

from __future__ import annotations

import pytest
from http_bodies import HELLO, chat, fault, text

from danlu.errors import ConfigError, Interrupted, MemoryShortage
from danlu.generate.params import GenerationParams
from danlu.serve.faults import ApiFault, as_fault, blamed
from danlu.serve.wire.bodies import ChatBody, CompletionBody
from danlu.serve.wire.body import parse
from danlu.serve.wire.schema import INERT, NOT_YET, read_chat, schema_of

# --- whether to draw


@pytest.mark.parametrize(
    ("given", "strategy"),
    [
        ({}, "sample"),
        ({"temperature": 0}, "greedy"),
        ({"temperature": 0.0, "top_p": 0.5, "seed": 3, "top_k": 4}, "greedy"),
        ({"temperature": 0.5}, "sample"),
        ({"do_sample": False}, "greedy"),
        ({"do_sample": False, "seed": 1}, "greedy"),
        ({"do_sample": True, "temperature": 2}, "sample"),
        ({"num_beams": 2}, "beam"),
        ({"num_beams": 2, "seed": 5}, "beam"),
        ({"num_beams": 1}, "sample"),
        ({"num_beams": 2, "temperature": 0}, "beam"),
        ({"num_beams": 2, "temperature": 0.7}, "beam_sample"),
        ({"num_beams": 2, "do_sample": True}, "beam_sample"),
        ({"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 1}, "group_beam"),
        ({"num_beams": 2, "force_words": ["fox"]}, "constrained_beam"),
        ({"force_words": ["fox"]}, "constrained_greedy"),
        ({"force_words": ["fox"], "temperature": 0.7}, "constrained_sample"),
    ],
)
def test_which_strategy(given, strategy):
    assert chat(**given).params.strategy == strategy
    assert text(**given).params.strategy == strategy


def test_temperature_zero_leaves_other_knobs_checked():
    assert fault(chat, temperature=0, top_p="high").param == "top_p"
    assert fault(chat, temperature=0, seed=-2).param == "seed"
    assert "temperature" in fault(chat, temperature=0, do_sample=True).message


# --- names


def test_openai_names_are_the_knobs_of_danlu():
    params = chat(n=3, stop="x", max_tokens=5, logit_bias={"7": 2}, presence_penalty=1, seed=4).params
    assert params == GenerationParams(
        do_sample=True, num_return_sequences=3, stop_sequences=("x",), max_new_tokens=5, logit_bias={7: 2},
        presence_penalty=1, seed=4,
    )  # fmt: skip
    assert chat(max_completion_tokens=6).params.max_new_tokens == 6
    assert chat(stop=["a", "b"]).params.stop_sequences == ("a", "b")


@pytest.mark.parametrize("knob", sorted(GenerationParams.model_fields))
def test_every_knob_is_known_under_its_own_name(knob):
    error = fault(chat, **{knob: [{"no": "value"}]})
    assert (error.param, error.code) == (knob, "invalid_value")


@pytest.mark.parametrize(
    "pair",
    [
        {"n": 2, "num_return_sequences": 2},
        {"max_tokens": 2, "max_new_tokens": 2},
        {"max_tokens": 2, "max_completion_tokens": 3},
        {"stop": "a", "stop_sequences": ["b"]},
    ],
)
def test_one_thing_said_twice_names_both(pair):
    error = fault(chat, **pair)
    assert all(name in error.message for name in pair)
    assert error.param in pair


def test_errors_speak_the_clients_words():
    error = fault(chat, n=0)
    assert error.param == "n"
    assert "num_return_sequences" not in error.message
    assert fault(chat, max_tokens=-2).param == "max_tokens"
    error = fault(chat, n=2, do_sample=False)
    assert (error.param, "num_return_sequences" in error.message) == ("n", False)
    assert fault(chat, diversity_penalty=1.0).param == "diversity_penalty"


def test_unknown_names_are_refused_with_the_nearest():
    error = fault(chat, temprature=1)
    assert (error.param, error.code) == ("temprature", "unknown_parameter")
    assert "'temperature'" in error.message


@pytest.mark.parametrize("name", sorted(INERT))
def test_inert_names_are_passed_over(name):
    assert chat(**{name: "x"}) == chat()


@pytest.mark.parametrize("name", sorted(NOT_YET))
def test_what_is_not_there_yet_says_so(name):
    error = fault(chat, **{name: [1]})
    assert (error.param, error.code) == (name, "unsupported")


def test_null_is_not_given():
    assert chat(stop=None, n=None, temperature=None, tools=None, top_k=None) == chat()


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "default": None}}}


@pytest.mark.parametrize(
    ("given", "knobs"),
    [
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"json_schema": {"type": "object"}}),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": SCHEMA, "strict": True},
                }
            },
            {"json_schema": SCHEMA},
        ),
        ({"response_format": {"type": "regex", "regex": "[ab]+"}}, {"regex": "[ab]+"}),
        ({"guided_json": SCHEMA}, {"json_schema": SCHEMA}),
        ({"guided_json": '{"type": "array"}'}, {"json_schema": {"type": "array"}}),
        ({"guided_regex": "[ab]+"}, {"regex": "[ab]+"}),
        ({"json_schema": SCHEMA}, {"json_schema": SCHEMA}),
        ({"regex": "[ab]+"}, {"regex": "[ab]+"}),
    ],
)
def test_forms_of_answers(given, knobs):
    for make in (chat, text):
        assert make(**given).params == GenerationParams(do_sample=True, **knobs)


@pytest.mark.parametrize(
    ("given", "param", "words"),
    [
        ({"response_format": {"type": "grammar"}}, "response_format", "'json_schema'"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema is missing"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format", "name"),
        ({"response_format": {"type": "json_object", "regex": "a"}}, "response_format", "regex belongs to the type"),
        ({"guided_json": "{"}, "guided_json", "guided_json is no valid JSON"),
        ({"guided_json": SCHEMA, "json_schema": SCHEMA}, "guided_json", "keep one of them"),
        ({"guided_json": SCHEMA, "guided_regex": "a"}, "guided_json", "guided_json and guided_regex both say"),
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "response_format", "response_format and regex"),
    ],
)
def test_forms_that_make_no_sense(given, param, words):
    error = fault(chat, **given)
    assert error.param == param
    assert words in error.message


# --- values


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "0.5"), ("temperature", True), ("temperature", -1), ("max_tokens", "5"), ("max_tokens", 2.5),
        ("max_tokens", 10**30), ("n", 10**12), ("n", True), ("top_p", 2), ("seed", 1.5), ("stream", 1), ("stop", 5),
        ("stop", ["a", 3]), ("logit_bias", {"x": 1}), ("logit_bias", {"1": 1000}), ("model", 3), ("do_sample", "yes"),
        ("num_beams", [2]), ("stop", [""]), ("bad_words_ids", [[]]),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_by_name(name, value):
    assert fault(chat, **{name: value}).param == name


def test_messages():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "be kind"}, {"role": "user", "content": parts}]
    assert chat(messages=messages).prompts == (
        ({"role": "system", "content": "be kind"}, {"role": "user", "content": "ab"}),
    )
    answered = {"role": "assistant", "content": "x", "refusal": None, "annotations": [], "tool_calls": None}
    assert chat(messages=[*HELLO, answered, *HELLO]).prompts[0][1] == {"role": "assistant", "content": "x"}
    for wrong in (
        [],
        "hello",
        [3],
        [{"role": "king", "content": "x"}],
        [{"role": "user"}],
    ):
        assert fault(chat, messages=wrong).param.startswith("messages")
    image = {"type": "image_url", "image_url": {"url": "x"}}
    refused = fault(chat, messages=[{"role": "user", "content": [{"type": "text", "text": "look"}, image]}])
    assert (refused.param, refused.code) == ("messages.0.content.1", "unsupported")
    assert refused.message == "messages.0.content.1: its type is 'image_url'; only text is read here"
    wrong = fault(chat, messages=[{"role": "king", "content": "x"}])
    assert "at least 1 item" not in wrong.message
    with pytest.raises(ApiFault, match="messages"):
        read_chat({"model": "tiny"})


def test_prompts():
    assert text(prompt=["a", "b"]).prompts == ("a", "b")
    assert text(prompt=[1, 2]).prompts == ((1, 2),)
    assert text(prompt=[[1, 2], [3]]).prompts == ((1, 2), (3,))
    for wrong in ([], 3, [1, "a"], [[1], "a"]):
        assert fault(text, prompt=wrong).param == "prompt"


def test_logprobs():
    assert chat(logprobs=True).params.logprobs == 0
    assert chat(logprobs=True, top_logprobs=3).params.logprobs == 3
    assert chat(logprobs=2).params.logprobs == 2
    assert chat(logprobs=False).params.logprobs is None
    assert text(logprobs=2).params.logprobs == 2
    assert fault(chat, top_logprobs=3).param == "top_logprobs"
    assert fault(chat, logprobs=True, top_logprobs=99).param == "top_logprobs"


def test_no_new_tokens_only_with_echo():
    ask = text(echo=True, max_tokens=0, logprobs=1)
    assert (ask.echo, ask.only_echo, ask.params.logprobs) == (True, True, 1)
    assert not text(echo=True, max_tokens=3).only_echo
    assert fault(text, max_tokens=0).param == "max_tokens"
    assert fault(text, max_tokens=0, max_new_tokens=4, echo=True).param == "max_tokens"
    assert fault(chat, max_tokens=0).param == "max_tokens"


def test_stream_options():
    assert chat(stream=True, num_beams=2, stream_options={"include_leading": True}).include_leading
    assert fault(chat, stream=True, stream_options={"include_leading": True}).param == "stream_options"
    assert chat(stream=True, stream_options={"include_usage": True}).include_usage
    assert fault(chat, stream_options={"include_usage": True}).param == "stream_options"


# --- JSON


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"3", b"nul", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": 1e999}', b'{"a": 1, "a": 2}',
        b'{"a": "\\ud800"}', b'{"\\udc00": 1}', b"\xff", b'{"a": ' + b"[" * 200_000, b'{"a": ' + b"9" * 10_000 + b"}",
    ],
)  # fmt: skip
def test_malformed_json(body):
    with pytest.raises(ApiFault, match="JSON") as caught:
        parse(body)
    assert caught.value.code == "invalid_json"


def test_a_pair_of_surrogates_is_a_character():
    assert parse(b'{"a": "\\ud83d\\ude00\\u0000"}') == {"a": "\N{GRINNING FACE}\0"}


# --- descriptions


def test_blame_falls_on_the_first_name_in_the_message():
    assert blamed("top_p has no effect without do_sample", ["do_sample", "top_p", "p"]) == "top_p"
    assert blamed("nothing", ["top_p"]) is None


def test_errors_of_ours_have_their_status():
    statuses = {Interrupted("closed"): 503, MemoryShortage("m"): 400, ConfigError("c"): 400, KeyError("k"): 500}
    for error, status in statuses.items():
        assert as_fault(error).status == status
    assert "k" not in as_fault(KeyError("a key")).message.split()
    assert len(as_fault(ConfigError("x" * 9999)).body["error"]["message"]) < 1100


def test_the_schema_lists_every_knob():
    for model in (ChatBody, CompletionBody):
        schema, _ = schema_of(model)
        assert set(GenerationParams.model_fields) | set(model.model_fields) == set(schema["properties"])
