"""Tool calls, reasoning, prefill and /v1/responses over HTTP, with a model that says what it is told."""

from __future__ import annotations

import json
from dataclasses import replace

import openai
import pytest
import scripts
import templates
from fastapi import Response
from serving import CHAT, HELLO, chat, error, events

from danlu import Engine
from danlu.serve.calls.talking import Conversations
from danlu.serve.faults import ApiFault
from danlu.serve.replies.replies import event_of
from danlu.serve.response_events import ResponseStream
from danlu.serve.wire.responses import read_responses
from danlu.serve.wire.schema import read_chat
from tiny import make_tiny_model

RESPONSES = "/v1/responses"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
PARIS = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>'
NOON = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'


class Told:
    """An engine that says `answer`, with a template of one's own. `prompts` are those that it was asked."""

    def __init__(self, directory):
        self.engine = Engine(directory, dtype="float32")
        self.own, self.answer, self.prompts = self.engine.chat, "", []
        scripts.say(self.engine, self._said)

    def _said(self, prompt):
        self.prompts.append(prompt)
        return self.answer

    def says(self, answer, template=templates.HERMES):
        self.engine.chat = replace(self.own, template=template)
        self.answer, self.prompts = answer, []


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    made = Told(str(make_tiny_model(tmp_path_factory.mktemp("told"), changes={"max_position_embeddings": 4096})))
    yield made
    made.engine.close()


@pytest.fixture
def engine(told):
    """What the fixtures `post` and `start` serve."""
    return told.engine


def asked(**more):
    return chat(tools=[WEATHER, CLOCK], max_tokens=200, temperature=0, **more)


def calls_of(message):
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message["tool_calls"]]


# -- calls


def test_text_before_a_call_is_content_and_calls_are_apart(told, post):
    told.says(f"Let me see.\n{PARIS}\n{NOON}")
    choice = post(CHAT, asked()).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    assert calls_of(choice["message"]) == [("weather", {"city": "Paris", "days": 2}), ("clock", {})]
    names = [call["id"] for call in choice["message"]["tool_calls"]]
    assert len(set(names)) == 2
    assert all(name.startswith("call_") for name in names)
    assert '"weather"' in told.prompts[0]


def test_a_call_alone_has_no_content(told, post):
    told.says(PARIS)
    message = post(CHAT, asked()).json()["choices"][0]["message"]
    assert message["content"] is None
    assert calls_of(message) == [("weather", {"city": "Paris", "days": 2})]


def test_an_answer_without_calls_is_as_ever(told, post):
    told.says("It is  5 < 6\n")
    choice = post(CHAT, asked()).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("It is  5 < 6\n", "stop")
    assert "tool_calls" not in choice["message"]


def test_calls_are_streamed_as_openai_streams_them(told, post):
    told.says(f"Let me see.\n{PARIS}\n{NOON}")
    deltas = [piece["choices"][0] for piece in events(post(CHAT, asked(stream=True)))]
    assert deltas[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert "".join(one["delta"].get("content") or "" for one in deltas) == "Let me see."
    pieces = [call for one in deltas for call in one["delta"].get("tool_calls", ())]
    for index, (name, arguments) in enumerate([("weather", {"city": "Paris", "days": 2}), ("clock", {})]):
        first, *rest = [piece for piece in pieces if piece["index"] == index]
        assert first["id"].startswith("call_")
        assert (first["type"], first["function"]) == ("function", {"name": name, "arguments": ""})
        assert all(set(piece) == {"index", "function"} for piece in rest)
        assert json.loads("".join(piece["function"]["arguments"] for piece in rest)) == arguments
    assert len([piece for piece in pieces if piece["index"] == 0]) > 3
    assert [one["finish_reason"] for one in deltas if one["finish_reason"]] == ["tool_calls"]


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", ["weather", "clock"]),
        ({"type": "function", "function": {"name": "clock"}}, ["clock"]),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "clock"}}]},
            },
            ["clock"],
        ),
    ],
    ids=["required", "named", "allowed"],
)
def test_a_call_that_must_come_comes(told, post, choice, names):
    told.says("I had rather talk.")
    answer = post(CHAT, asked(tool_choice=choice)).json()["choices"][0]
    if answer["finish_reason"] == "tool_calls":
        assert {name for name, _ in calls_of(answer["message"])} <= set(names)
    assert answer["message"]["content"] is None


def test_no_call_comes_where_none_may(told, post):
    told.says(PARIS)
    choice = post(CHAT, asked(tool_choice="none")).json()["choices"][0]
    assert "tool_calls" not in choice["message"]
    assert "<tool_call>" not in choice["message"]["content"]
    assert '"weather"' in told.prompts[0]


def test_one_call_where_several_are_not_wanted(told, post):
    told.says(f"{PARIS}\n{NOON}")
    choice = post(CHAT, asked(parallel_tool_calls=False)).json()["choices"][0]
    assert calls_of(choice["message"]) == [("weather", {"city": "Paris", "days": 2})]


def test_arguments_that_do_not_fit_do_not_come(told, post):
    told.says('<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": "two"}}\n</tool_call>')
    body = asked()
    body["max_tokens"] = 80
    choice = post(CHAT, body).json()["choices"][0]
    arguments = choice["message"]["tool_calls"][0]["function"]["arguments"]
    assert arguments.startswith('{"city": "Paris", "days": ')
    assert not arguments.startswith('{"city": "Paris", "days": "')


def test_a_call_that_is_cut_off_ends_with_length(told, post):
    told.says(PARIS)
    body = asked()
    body["max_tokens"] = len(told.own.tokenizer(PARIS[:60])["input_ids"])
    choice = post(CHAT, body).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"].startswith('{"city"')


HISTORY = [
    *HELLO,
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "call_x", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}},
        {"id": "call_y", "type": "function", "function": {"name": "clock", "arguments": ""}},
    ]},
    {"role": "tool", "tool_call_id": "call_x", "content": [{"type": "text", "text": "rain"}]},
    {"role": "tool", "tool_call_id": "call_y", "content": "noon"},
]  # fmt: skip


@pytest.mark.parametrize("name", ["HERMES", "LLAMA", "MISTRAL", "DEEPSEEK", "DEEPSEEK_R1", "CODER", "GEMMA", "PLAIN"])
@pytest.mark.parametrize("tools", [[WEATHER, CLOCK], None], ids=["tools", "none"])
def test_calls_and_their_results_stand_in_the_prompt(told, post, name, tools):
    told.says("Rain.", getattr(templates, name))
    history = HISTORY
    if name == "LLAMA":  # it takes one call alone
        history = [HISTORY[0], {**HISTORY[1], "tool_calls": HISTORY[1]["tool_calls"][:1]}, HISTORY[2]]
    reply = post(CHAT, chat(messages=history, max_tokens=8, temperature=0, **({"tools": tools} if tools else {})))
    assert reply.json()["choices"][0]["message"]["content"] == "Rain."
    assert "rain" in told.prompts[0]
    assert "weather" in told.prompts[0].rpartition("what is")[2]
    assert ("The weather of a city." in told.prompts[0]) == (tools is not None)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "storm"}}}, "tool_choice"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"functions": [WEATHER["function"]]}, "functions"),
        ({"messages": [{"role": "user", "content": None}]}, "messages"),
        ({"messages": [{"role": "user", "content": "?", "tool_call_id": "x"}]}, "messages"),
        (
            {"messages": [*HELLO, {"role": "assistant", "tool_calls": [
                {"id": "x", "type": "function", "function": {"name": "weather", "arguments": '{"city"'}}]}]},
            "messages",
        ),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
        ({"reasoning_effort": "much"}, "reasoning_effort"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"continue_final_message": True, "add_generation_prompt": True,
          "messages": [*HELLO, {"role": "assistant", "content": "It"}]}, "continue_final_message"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(told, post, body, param):
    told.says("Never.")
    assert error(post(CHAT, chat(**body)), 400)["param"] == param


@pytest.mark.parametrize("name", ["HERMES", "CODER", "GLM", "MISTRAL", "DEEPSEEK", "GEMMA"])
def test_names_may_be_chinese(told, post, name):
    function = {**WEATHER["function"], "name": "查天气"}
    template = getattr(templates, name)
    told.says("x", template)
    conversations = Conversations(told.engine.chat)
    form = conversations.calls
    arguments = '{"city": "北京"}'
    if name == "GEMMA":
        arguments = "{city:<|q|>北京<|q|>}"
    elif form.arguments is not None:
        kind = form.arguments
        arguments = f"{kind.opening}city{kind.middle}北京{kind.close}"
    middle, end = form.middle, form.end.replace("\x00", "000000000")
    told.says(f"{form.begin.lstrip()}查天气{middle}{arguments}{end}", template)
    body = chat(tools=[{"type": "function", "function": function}], max_tokens=200, temperature=0)
    assert calls_of(post(CHAT, body).json()["choices"][0]["message"]) == [("查天气", {"city": "北京"})]


def test_a_stream_that_is_cut_off_says_what_the_whole_answer_says(told, post):
    told.says(f"<think>\nHm.\n</think>\n\nLet me see.\n{PARIS}", templates.THINKING)
    body = asked()
    for limit in range(1, 90, 4):
        body["max_tokens"] = limit
        whole = post(CHAT, body).json()["choices"][0]
        pieces = [piece["choices"][0] for piece in events(post(CHAT, {**body, "stream": True}))]
        deltas = [piece["delta"] for piece in pieces]
        calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
        assert "".join(delta.get("content") or "" for delta in deltas) == (whole["message"]["content"] or "")
        assert "".join(delta.get("reasoning", "") for delta in deltas) == whole["message"].get("reasoning", "")
        assert "".join(call["function"]["arguments"] for call in calls) == "".join(
            call["function"]["arguments"] for call in whole["message"].get("tool_calls", ())
        )
        assert pieces[-1]["finish_reason"] == whole["finish_reason"]
        assert "<tool_call>" not in (whole["message"]["content"] or "")


# -- reasoning


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", ["THINKING", "THINKS_AT_ONCE"])
def test_reasoning_comes_apart(told, post, name, stream):
    begin = "<think>\n" if name == "THINKING" else ""
    told.says(f"{begin}Which one? Paris.\n</think>\n\nIt is Paris.", getattr(templates, name))
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    reply = post(CHAT, chat(max_tokens=150, temperature=0, **more))
    if stream:
        *pieces, last = events(reply)
        deltas = [piece["choices"][0]["delta"] for piece in pieces]
        message = {
            key: "".join(delta.get(key) or "" for delta in deltas)
            for key in ("content", "reasoning_content", "reasoning")
        }
        assert all(not (delta.get("content") and delta.get("reasoning")) for delta in deltas)
        usage = last["usage"]
    else:
        message, usage = reply.json()["choices"][0]["message"], reply.json()["usage"]
    assert message["content"] == "It is Paris."
    assert message["reasoning_content"] == message["reasoning"] == "Which one? Paris."
    thought = f"{begin}Which one? Paris.\n</think>"
    tokens = usage["completion_tokens_details"]["reasoning_tokens"]
    assert tokens == len(told.own.tokenizer(thought)["input_ids"])
    assert usage["completion_tokens"] > tokens


def test_a_model_that_thinks_may_answer_at_once(told, post):
    told.says("It is Paris.", templates.THINKING)
    body = post(CHAT, chat(max_tokens=50, temperature=0)).json()
    assert body["choices"][0]["message"]["content"] == "It is Paris."
    assert "reasoning" not in body["choices"][0]["message"]
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}


def test_reasoning_that_never_ends_is_all_there_is(told, post):
    told.says("<think>\nWhich one? Which one?", templates.THINKING)
    choice = post(CHAT, chat(max_tokens=150, temperature=0)).json()["choices"][0]
    assert choice["message"]["content"] is None
    assert choice["message"]["reasoning"] == "Which one? Which one?"


@pytest.mark.parametrize(
    "more",
    [{"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}],
    ids=["kwargs", "effort"],
)
def test_thinking_is_switched_off(told, post, more):
    told.says("It is Paris.", templates.THINKING)
    body = post(CHAT, chat(max_tokens=50, temperature=0, **more)).json()
    assert told.prompts[0].endswith("<think>\n\n</think>\n\n")
    assert body["choices"][0]["message"]["content"] == "It is Paris."


@pytest.mark.parametrize("effort", ["none", "minimal", "low", "medium", "high", "xhigh", "max"])
def test_an_effort_is_passed_over_where_there_is_no_switch(told, post, effort):
    told.says("Paris.")
    answer = post(CHAT, chat(temperature=0, reasoning_effort=effort)).json()["choices"][0]["message"]["content"]
    post("/v1/responses", {"model": "tiny", "input": HELLO[0]["content"], "reasoning": {"effort": effort}})
    post(CHAT, chat(temperature=0))
    assert answer == "Paris."
    assert told.prompts == [told.prompts[-1]] * 3


def test_reasoning_and_then_a_call(told, post):
    told.says(f"<think>\nI need <tool_call>s.\n</think>\n\n{PARIS}", templates.THINKING)
    choice = post(CHAT, asked()).json()["choices"][0]
    assert choice["message"]["reasoning"] == "I need <tool_call>s."
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
    assert calls_of(choice["message"]) == [("weather", {"city": "Paris", "days": 2})]


def test_a_form_holds_after_the_reasoning(told, post):
    told.says('<think>\nA number.\n</think>\n\n{"n": 7}', templates.THINKING)
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    message = post(CHAT, chat(max_tokens=90, temperature=0, response_format=form)).json()["choices"][0]["message"]
    assert (json.loads(message["content"]), message["reasoning"]) == ({"n": 7}, "A number.")


def test_logprobs_of_every_token_are_told_once(told, post):
    told.says(f"<think>\nHm.\n</think>\n\nYes.\n{PARIS}", templates.THINKING)
    body = asked(logprobs=True)
    whole = post(CHAT, body).json()
    pieces = [piece["choices"][0] for piece in events(post(CHAT, {**body, "stream": True}))]
    streamed = [entry["token"] for piece in pieces for entry in (piece["logprobs"] or {}).get("content", ())]
    assert streamed == [entry["token"] for entry in whole["choices"][0]["logprobs"]["content"]]
    assert len(streamed) == whole["usage"]["completion_tokens"]


def test_a_form_without_reasoning_is_content(told, post):
    told.says('{"n": 7}', templates.THINKING)
    more = {"response_format": {"type": "json_object"}, "chat_template_kwargs": {"enable_thinking": False}}
    message = post(CHAT, chat(max_tokens=90, temperature=0, **more)).json()["choices"][0]["message"]
    assert message["content"] == '{"n": 7}'
    assert "reasoning" not in message


# -- forms and prefill


def test_json_object_with_a_schema(told):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    ask = read_chat(chat(response_format={"type": "json_object", "schema": schema}))
    assert ask.params.json_schema == schema


def test_an_answer_goes_on_with_what_is_given(told, post):
    told.says(" is Paris.")
    begun = {"role": "assistant", "content": "The capital"}
    reply = post(CHAT, chat(messages=[*HELLO, begun], max_tokens=20, temperature=0, continue_final_message=True))
    assert reply.json()["choices"][0]["message"]["content"] == " is Paris."
    assert told.prompts[0].endswith("<|im_start|>assistant\nThe capital")


@pytest.mark.parametrize("words", ["OK!", "OK!\n", "OK! ", " OK", "<|"])
def test_what_is_gone_on_with_stays_as_it_is(told, post, words):
    told.says("yes", templates.HERMES.replace("{{ message.content }}", "{{ message.content | trim }}"))
    begun = {"role": "assistant", "content": words}
    reply = post(CHAT, chat(messages=[*HELLO, begun], max_tokens=9, temperature=0, continue_final_message=True))
    assert reply.status_code == 200, reply.text
    assert told.prompts[0].endswith("<|im_start|>assistant\n" + words.lstrip())


def test_reasoning_that_is_gone_on_with(told, post):
    begun = {"role": "assistant", "content": "<think>\nWhich"}
    body = chat(messages=[*HELLO, begun], max_tokens=60, temperature=0, continue_final_message=True)
    told.says(" one?\n</think>\n\nParis.", templates.THINKING)
    message = post(CHAT, body).json()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("one?", "Paris.")
    closes = templates.THINKING.replace("{{ message.content }}", "<think>\n\n</think>\n\n{{ message.content }}")
    told.says("Never.", closes)
    assert error(post(CHAT, body), 400)["param"] == "continue_final_message"


def test_the_opening_can_be_left_out(told, post):
    told.says("x")
    post(CHAT, chat(max_tokens=4, temperature=0, add_generation_prompt=False))
    assert told.prompts[0].endswith("France?<|im_end|>\n")


# -- /v1/responses


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


@pytest.mark.parametrize("answer", ['{"n": 7}', PARIS], ids=["form", "call"])
def test_a_form_and_tools_together(told, post, answer):
    told.says(answer)
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    message = post(CHAT, asked(response_format=form)).json()["choices"][0]["message"]
    if answer == PARIS:
        assert calls_of(message) == [("weather", {"city": "Paris", "days": 2})]
    else:
        assert (message["content"], "tool_calls" in message) == (answer, False)


def test_each_of_several_answers_has_its_own_calls(told, post):
    told.says(PARIS)
    body = {**asked(stream=True, n=2, seed=1), "temperature": 1}
    pieces = [piece["choices"][0] for piece in events(post(CHAT, body))]
    for index in (0, 1):
        own = [piece for piece in pieces if piece["index"] == index]
        calls = [call for piece in own for call in piece["delta"].get("tool_calls", ())]
        assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"city": "Paris", "days": 2}
        assert {call["index"] for call in calls} == {0}
        assert own[-1]["finish_reason"] == "tool_calls"


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


# -- faults in the client's words


def test_a_fault_in_a_schema_is_told_without_our_own_grammar(told, post):
    told.says("", templates.THINKING)
    faulty = {"type": "object", "properties": {"a": {"type": "nmber"}}}
    named = {"type": "json_schema", "json_schema": {"name": "n", "schema": faulty}}
    message = error(post(CHAT, chat(response_format=named)), 400)["message"]
    assert message.startswith("response_format: Invalid type: nmber (at properties/a)")
    tool = {"type": "function", "function": {"name": "f", "strict": True, "parameters": faulty}}
    message = error(post(CHAT, chat(tools=[tool], tool_choice="required")), 400)["message"]
    assert message.startswith("tools: Invalid type: nmber\n  next")
