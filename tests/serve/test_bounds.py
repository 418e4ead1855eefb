"""Bodies made to cost much: one fault of many is enough, and what is too long says by how much."""

from __future__ import annotations

import json

import pytest
from http_bodies import chat, fault, text

from danlu.generate.params import GenerationParams
from danlu.serve.embeddings import EmbeddingBody
from danlu.serve.faults import ApiFault
from danlu.serve.tokenize import DetokenizeBody
from danlu.serve.wire.bodies import ChatBody, CompletionBody
from danlu.serve.wire.body import parse
from danlu.serve.wire.responses import ResponsesBody


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop_sequences", [*[[5]] * 100_000, "x"]),
        ("bad_words_ids", [{}] * 100_000),
        ("force_words", [[f"word {at}" for at in range(6000)]]),
        ("logit_bias", {str(at): 1 for at in range(50_000)}),
        ("choices", [f"word {at}" for at in range(50_000)]),
        ("prompt", [[{}]] * 50_000),
        ("prompt", [*[5] * 100_000, "x"]),
        ("prompt", [5, True]),
        ("prompt", []),
    ],
)
def test_one_fault_of_many_is_enough(name, value):
    error = fault(text, **{name: value})
    assert error.param == name
    assert len(error.message) < 2000


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content: "),
        ({"messages": ["x"]}, "messages.0: "),
        ({"stop": [3]}, "stop.0: "),
        ({"eos_token_id": ["x"]}, "eos_token_id.0: "),
        ({"force_words": [[3]]}, "force_words.0.0: "),
        ({"force_words_ids": [[["x"]]]}, "force_words_ids.0.0"),
        ({"stop_sequences": [[3.5]]}, "stop_sequences.0"),
        ({"constraints": [3]}, "constraints.0: "),
        ({"constraints": [{"phrase": 3}]}, "constraints.0.phrase: "),
        ({"constraints": [{"choice": [3.5]}]}, "constraints.0.choice.0: "),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format: the type is 'json_schema', and json_schema is",
        ),
    ],
)
def test_a_fault_inside_is_told_at_its_place_and_no_other(wrong, expected):
    message = fault(chat, **wrong).message
    assert message.startswith(expected)
    inner = ("after validation", "tuple[", "Tuple", "constrained", "function-", ".str", ".int")
    assert not any(word in message for word in inner)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"messages": []}, "messages: at least 1 item; seen 0"),
        ({"stop": ["a"] * 65}, "stop: at most 64 items; seen 65"),
        ({"stop": ["a", "a" * 9000]}, "stop.1: at most 8192 characters; seen 9000"),
        ({"stop_sequences": ["a", ""]}, "stop_sequences.1: at least 1 character; seen 0"),
        ({"stop_sequences": [[]]}, "stop_sequences.0: at least 1 item; seen 0"),
        ({"stop_sequences": [[5] * 2000]}, "stop_sequences.0: at most 1024 items; seen 2000"),
        ({"stop_token_ids": [5] * 20_000}, "stop_token_ids: at most 16384 items; seen 20000"),
        ({"eos_token_id": [5] * 20_000}, "eos_token_id: at most 16384 items; seen 20000"),
        ({"bad_words": ["a"] * 20_000}, "bad_words: at most 16384 items; seen 20000"),
        ({"bad_words_ids": [[5]] * 20_000}, "bad_words_ids: at most 16384 items; seen 20000"),
        ({"logit_bias": {str(at): 1 for at in range(4100)}}, "logit_bias: at most 4096 items; seen 4100"),
        ({"force_words": ["a"] * 65}, "force_words: at most 64 items; seen 65"),
        ({"force_words": [["a"] * 6000]}, "force_words.0: at most 256 items; seen 6000"),
        ({"force_words_ids": [[5]] * 65}, "force_words_ids: at most 64 items; seen 65"),
        ({"force_words_ids": [[[5]] * 300]}, "force_words_ids.0: at most 256 items; seen 300"),
        ({"constraints": [{"phrase": "a"}] * 65}, "constraints: at most 64 items; seen 65"),
        ({"constraints": [{"phrase": []}]}, "constraints.0.phrase: at least 1 item; seen 0"),
        ({"constraints": [{"choice": ["a"] * 300}]}, "constraints.0.choice: at most 256 items; seen 300"),
        ({"choices": ["a"] * 5000}, "choices: at most 4096 items; seen 5000"),
        ({"guided_choice": ["a"] * 5000}, "guided_choice: at most 4096 items; seen 5000"),
        ({"structured_outputs": {"choice": ["a"] * 5000}}, "structured_outputs: at most 4096 items; seen 5000"),
        ({"regex": "a" * 70_000}, "regex: at most 65536 characters; seen 70000"),
        ({"grammar": ""}, "grammar: at least 1 character; seen 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_too_long_or_too_short_says_by_how_much(wrong, expected):
    assert fault(chat, **wrong).message == expected


def test_every_bound_of_a_knob_is_one_of_those_above():
    """A list that gets one has to be told in the same words; lists without one are bounded by the body."""
    bounded = {name for name, field in GenerationParams.model_fields.items() if "MaxLen" in repr(field)}
    (told,) = (mark for mark in test_what_is_too_long_or_too_short_says_by_how_much.pytestmark if mark.args)
    names = {name for wrong, _ in told.args[1] for name in wrong}
    assert bounded <= names


def lists_in(schema):
    """The schemas of lists of any length in one of pydantic's."""
    if isinstance(schema, dict):  # a validator of ours stands in the way of what is only described
        parts = [part for key, part in schema.items() if key not in ("metadata", "serialization")]
    else:
        parts = schema if isinstance(schema, list) else ()
    if isinstance(schema, dict) and schema.get("type") in ("list", "tuple") and "variadic_item_index" in schema:
        yield schema
    for part in parts:
        yield from lists_in(part)


@pytest.mark.parametrize(
    "body", [ChatBody, CompletionBody, ResponsesBody, EmbeddingBody, DetokenizeBody, GenerationParams]
)
def test_a_list_of_faults_costs_no_more_than_its_first(body):
    found = list(lists_in(body.__pydantic_core_schema__))
    assert all(one.get("fail_fast") for one in found), [one for one in found if not one.get("fail_fast")]


def test_unknown_keys_of_a_part_are_few():
    many = {f"k{at}": 1 for at in range(5000)}
    with pytest.raises(ApiFault, match="5000 keys; at most 4096"):
        parse(json.dumps({"stream_options": many}).encode())
    message = fault(chat, response_format={"type": "text", **dict(list(many.items())[:99])}).message
    assert message.count("unknown key") == 8
    assert "allowed: type, json_schema, regex, schema" in message
