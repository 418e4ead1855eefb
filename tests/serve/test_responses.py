"""/v1/responses over HTTP, with a model that says what it is told."""

from __future__ import annotations

import json

import openai
import pytest
import templates
from fastapi import Response
from serving import HELLO, error
from tooling import PARIS, WEATHER

from danlu.serve.faults import ApiFault
from danlu.serve.replies.replies import event_of
from danlu.serve.response_events import ResponseStream
from danlu.serve.wire.responses import read_responses

RESPONSES = "/v1/responses"


@pytest.fixture
def engine(told):
    """What the fixtures `post` and `start` serve."""
    return told.engine


def items(**more):
    return {
        "model": "tiny",
        "input": "what is the capital of France?",
        "max_output_tokens": 150,
        "temperature": 0,
        **more,
    }


FLAT = {"type": "function", "strict": True, **WEATHER["function"]}


def test_a_response_has_its_items_in_their_order(told, post):
    told.says(f"<think>\nHm.\n</think>\n\nLet me see.\n{PARIS}", templates.THINKING)
    body = post(RESPONSES, items(tools=[FLAT], instructions="Be brief.", metadata={"a": "b"})).json()
    thought, said, call = body["output"]
    assert (thought["type"], thought["content"]) == ("reasoning", [{"type": "reasoning_text", "text": "Hm."}])
    assert (said["type"], said["content"][0]["text"]) == ("message", "Let me see.")
    assert (call["type"], call["name"], json.loads(call["arguments"])) == (
        "function_call", "weather", {"city": "Paris", "days": 2},
    )  # fmt: skip
    assert (body["status"], body["store"], body["metadata"]) == ("completed", False, {"a": "b"})
    assert body["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    assert body["usage"]["total_tokens"] == body["usage"]["input_tokens"] + body["usage"]["output_tokens"]
    assert "Be brief." in told.prompts[0]


def test_a_form_of_a_response_comes_after_the_reasoning(told, post):
    told.says('<think>\nA number.\n</think>\n\n{"n": 7}', templates.THINKING)
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form = {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}}
    body = post(RESPONSES, items(text=form)).json()
    assert [item["type"] for item in body["output"]] == ["reasoning", "message"]
    assert json.loads(body["output"][1]["content"][0]["text"]) == {"n": 7}


def test_items_of_a_conversation_become_its_prompt(told, post):
    told.says("Rain.", templates.THINKING)
    conversation = [
        {"role": "user", "content": [{"type": "input_text", "text": "How is Paris?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Ask."}]},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
         "content": [{"type": "output_text", "text": "Let me see.", "annotations": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "weather", "arguments": '{"city": "Paris"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
    ]  # fmt: skip
    body = post(RESPONSES, items(input=conversation, tools=[FLAT])).json()
    assert body["output"][0]["content"][0]["text"] == "Rain."
    assert "<think>\nAsk.\n</think>\n\nLet me see." in told.prompts[0]
    assert '"arguments": {"city": "Paris"}' in told.prompts[0]
    assert "rain" in told.prompts[0]


def test_a_response_that_was_cut_off_is_incomplete(told, post):
    told.says("It is Paris, the one in France.")
    body = post(RESPONSES, items(max_output_tokens=2)).json()
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert body["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input.0"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"tools": [FLAT], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 100000}, "max_output_tokens"),
        ({"n": 2}, "n"),
        ({"truncation": "auto"}, "truncation"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_what_a_response_cannot_be_is_refused(told, post, more, param):
    told.says("Never.")
    assert error(post(RESPONSES, items(**more)), 400)["param"] == param


@pytest.mark.parametrize("named", [{"name": "weather"}, {"function": {"name": "weather"}}], ids=["flat", "nested"])
def test_a_response_that_must_call(told, post, named):
    """LlamaIndex names the function as in chats."""
    told.says(PARIS)
    body = post(RESPONSES, items(tools=[FLAT], tool_choice={"type": "function", **named})).json()
    assert [item["type"] for item in body["output"]] == ["function_call"]


def told_events(response):
    assert response.status_code == 200, response.text
    parts = [part.split("\n", 1) for part in response.text.split("\n\n") if part]
    return [json.loads(data.removeprefix("data: ")) for _, data in parts]


def test_a_response_is_streamed_in_openais_events(told, post):
    told.says(f"<think>\nHm.\n</think>\n\nYes.\n{PARIS}", templates.THINKING)
    found = told_events(post(RESPONSES, items(tools=[FLAT], stream=True)))
    kinds = [one["type"].removeprefix("response.") for one in found]
    assert [kind for at, kind in enumerate(kinds) if kind != kinds[at - 1]] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    assert [one["sequence_number"] for one in found] == list(range(len(found)))
    done = [one["item"] for one in found if one["type"] == "response.output_item.done"]
    assert found[-1]["response"]["output"] == done
    assert [one["output_index"] for one in found if "output_index" in one] == sorted(
        one["output_index"] for one in found if "output_index" in one
    )
    arguments = [one["delta"] for one in found if one["type"] == "response.function_call_arguments.delta"]
    assert json.loads("".join(arguments)) == {"city": "Paris", "days": 2}
    assert found[-1]["response"]["usage"]["output_tokens"] > 0


def test_openais_client_reads_a_response_and_its_stream(told, start):
    told.says("Yes, it is.")
    with openai.OpenAI(base_url=start().url, api_key="none", max_retries=0) as client:
        whole = client.responses.create(model="tiny", input="Is it?", temperature=0, max_output_tokens=40)
        assert (whole.output_text, whole.status) == ("Yes, it is.", "completed")
        with client.responses.stream(model="tiny", input="Is it?", temperature=0, max_output_tokens=40) as stream:
            said = [event.delta for event in stream if event.type == "response.output_text.delta"]
            final = stream.get_final_response()
        assert "".join(said) == final.output_text == "Yes, it is."


def test_openais_client_reads_calls(told, start):
    told.says(PARIS)
    with openai.OpenAI(base_url=start().url, api_key="none", max_retries=0) as client:
        with client.chat.completions.stream(
            model="tiny", messages=HELLO, tools=[{**WEATHER, "function": {**WEATHER["function"], "strict": True}}],
            max_tokens=150, temperature=0,
        ) as stream:  # fmt: skip
            stream.until_done()
            choice = stream.get_final_completion().choices[0]
        assert choice.finish_reason == "tool_calls"
        call = choice.message.tool_calls[0].function
        assert (call.name, call.parsed_arguments) == ("weather", {"city": "Paris", "days": 2})


def test_an_error_in_the_middle_of_a_responses_stream_is_an_event():
    _, wishes = read_responses({"model": "tiny", "input": "?", "stream": True})
    stream = ResponseStream(Response(), wishes)
    assert stream._told(b": still working\n\n") == b": still working\n\n"
    half = event_of({"choices": [{"delta": {"content": "It"}}]})
    assert stream._told(half[:9]) == b""
    assert b"response.output_text.delta" in stream._told(half[9:])
    kind, data = stream._told(event_of(ApiFault(504, "too long", code="timeout").body)).decode().strip().split("\n")
    assert kind == "event: error"
    assert json.loads(data.removeprefix("data: ")) == {
        "type": "error", "sequence_number": 3, "code": "timeout", "message": "too long", "param": None,
    }  # fmt: skip
