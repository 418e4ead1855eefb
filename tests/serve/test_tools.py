"""Tool calls over HTTP, with a model that says what it is told."""

from __future__ import annotations

import json

import pytest
import templates
from serving import CHAT, HELLO, chat, error, events
from tooling import CLOCK, NOON, PARIS, WEATHER, asked, calls_of

from danlu.serve.calls.talking import Conversations


@pytest.fixture
def engine(told):
    """What the fixtures `post` and `start` serve."""
    return told.engine


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
