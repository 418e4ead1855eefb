"""The form of calls is read off a template; what that writes, the grammar lets by and the reader reads."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import templates
from tokenizers import AddedToken

from danlu.data.chat import Chat
from danlu.generate.params import GenerationParams
from danlu.generate.scores.grammar import Grammars
from danlu.serve.calls.callarguments import arguments_of
from danlu.serve.calls.callforms import GENERIC, Notation, Tagged
from danlu.serve.calls.reasoning import Marks
from danlu.serve.calls.talking import Conversations
from danlu.serve.wire.messages import Talk, Tool, ToolUse
from tiny import make_tokenizer

PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "place": {"type": "object", "properties": {"lat": {"type": "number"}}, "additionalProperties": False},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["city"],
    "additionalProperties": False,
}
CALLS = [
    ("weather", {"city": 'Pa "r"\nis <b> 北京', "days": 3, "unit": "C", "place": {"lat": 1.5}, "tags": ["a", "b"]}),
    ("weather_now", {}),
]
FORMS = {
    name: getattr(templates, name)
    for name in (
        "HERMES", "CODER", "GLM", "LLAMA", "MISTRAL", "MISTRAL_LATER", "DEEPSEEK", "DEEPSEEK_R1", "KIMI", "GEMMA",
        "PLAIN", "THINKING", "THINKS_AT_ONCE",
    )
}  # fmt: skip
MARKS = [
    "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "[TOOL_CALLS]", "[ARGS]",
    "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>",
    "<|calls_begin|>", "<|call_begin|>", "<|arguments|>", "<|call_end|>", "<|calls_end|>", "<|call>", "<call|>",
    "<|q|>", "<think>", "</think>", "<|channel>", "<channel|>",
]  # fmt: skip


def tool(name, parameters=None, **more):
    function = {"name": name, "description": "says the weather", "parameters": parameters, **more}
    return Tool.model_validate({"type": "function", "function": function})


WEATHER = (tool("weather", PARAMETERS), tool("weather_now"))


def use(tools=WEATHER, must_call=False, parallel=True):
    return ToolUse(tools, tools, must_call, parallel)


def chat_of(template, marks="text"):
    """A chat whose marks are text, tokens of the tokenizer's own, or control tokens."""
    tokenizer = make_tokenizer()
    if marks != "text":
        is_control = marks == "control"
        added = [AddedToken(mark, special=is_control) for mark in MARKS]
        tokenizer.add_tokens(added, special_tokens=is_control)
    return Chat(tokenizer, frozenset([tokenizer.eos_token_id]), template)


def call_message(calls):
    made = [
        {"id": f"call_{at}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for at, (name, arguments) in enumerate(calls)
    ]
    return {"role": "assistant", "content": "", "tool_calls": made}


def written(conversations, chat, calls):
    """The calls as the template writes them in an earlier answer, in which they are all there is."""
    question = {"role": "user", "content": "?"}
    tools = [one.plain for one in WEATHER]

    def through(*turns):
        messages, _ = conversations._with_tools([question, *turns], None)
        return chat.prompt_text(messages, tools, add_generation_prompt=False)

    said = through({"role": "assistant", "content": "SAID"})
    before, _, after = said.partition("SAID")
    return through(call_message(calls))[len(before) :].removesuffix(after)


def matched(chat, ready, answer):
    """(tokens that the grammar lets by, all tokens, whether the answer may end there)."""
    matcher = Grammars(chat, len(chat.tokenizer)).of(GenerationParams(), ready.form).begin()
    ids = chat.tokenizer(answer, add_special_tokens=False)["input_ids"]
    return matcher.try_consume_tokens(ids), len(ids), matcher.is_accepting()


def read(reader, text, step):
    pieces = [piece for at in range(0, len(text), step) for piece in reader.feed(text[at : at + step])]
    pieces += reader.finish()
    said, thought, calls = "", "", []
    for piece in pieces:
        if piece.kind == "content":
            said += piece.text
        elif piece.kind == "reasoning":
            thought += piece.text
        elif piece.kind == "call":
            calls.append([piece.text, ""])
        else:
            calls[piece.index][1] += piece.text
    return said, thought, [(name, json.loads(arguments)) for name, arguments in calls]


@pytest.mark.parametrize("marks", ["text", "token", "control"])
@pytest.mark.parametrize("name", FORMS)
def test_what_a_template_writes_is_let_by_and_read(name, marks):
    chat = chat_of(FORMS[name], marks)
    conversations = Conversations(chat)
    form = conversations.calls
    ready = conversations.ready([{"role": "user", "content": "weather?"}], Talk(use=use()), GenerationParams())
    calls = CALLS if form.between is not None else CALLS[:1]
    answer = written(conversations, chat, calls)
    if not form.at_start:
        answer = "Let me see." + answer
    if ready.form.thinking != "no":
        answer = ("<think>" if ready.form.thinking == "may" else "") + "\nhm <tool\n</think>\n\n" + answer
    assert matched(chat, ready, answer) == (len(chat.tokenizer(answer)["input_ids"]),) * 2 + (True,)
    said = "" if form.at_start else "Let me see."
    thought = "" if ready.form.thinking == "no" else "hm <tool"
    for step in (1, 4, len(answer)):
        assert read(ready.reader(), answer, step) == (said, thought, calls)


def test_forms_are_what_the_templates_show():
    forms = {name: Conversations(chat_of(template)).calls for name, template in FORMS.items()}
    assert [name for name, form in forms.items() if not form.native] == ["PLAIN"]
    assert forms["PLAIN"] == GENERIC
    assert [name for name, form in forms.items() if not form.tells] == ["DEEPSEEK", "PLAIN"]
    assert [name for name, form in forms.items() if form.at_start] == ["LLAMA"]
    assert [name for name, form in forms.items() if form.between is None] == ["LLAMA"]
    assert [name for name, form in forms.items() if form.ids == "nine"] == ["MISTRAL"]
    assert [name for name, form in forms.items() if isinstance(form.arguments, Tagged)] == ["CODER", "GLM"]
    assert forms["GEMMA"].arguments == Notation("<|q|>")
    assert forms["HERMES"].begin.strip() == '<tool_call>\n{"name": "'
    assert forms["CODER"].arguments == Tagged("<parameter=", ">\n", "\n</parameter>\n")


@pytest.mark.parametrize("name", FORMS)
def test_arguments_and_names_are_held_to_the_tools(name):
    chat = chat_of(FORMS[name])
    conversations = Conversations(chat)
    ready = conversations.ready([{"role": "user", "content": "?"}], Talk(use=use(must_call=True)), GenerationParams())
    before = {"may": "", "no": "", "must": "</think>"}[ready.form.thinking]
    for wrong in (
        [("weather", {"city": "x", "days": "three"})],
        [("weather", {"city": "x", "unit": "K"})],
        [("storm", {"city": "x"})],
        [("weather", {"days": 3})],
    ):
        taken, tokens, _ = matched(chat, ready, before + written(conversations, chat, wrong).lstrip())
        assert taken < tokens, wrong
    taken, tokens, _ = matched(chat, ready, before + "just words")
    assert taken < tokens


def test_one_call_alone_and_none():
    chat = chat_of(templates.HERMES)
    conversations = Conversations(chat)
    question = [{"role": "user", "content": "?"}]
    both, one = written(conversations, chat, CALLS), written(conversations, chat, CALLS[:1])
    single = conversations.ready(question, Talk(use=use(parallel=False)), GenerationParams())
    assert matched(chat, single, one)[2]
    taken, tokens, _ = matched(chat, single, both)
    assert taken < tokens
    nothing = conversations.ready(question, Talk(use=ToolUse(WEATHER, (), False, True)), GenerationParams())
    assert nothing.reader() is None
    assert matched(chat, nothing, "just words")[2]
    taken, tokens, _ = matched(chat, nothing, one)
    assert taken < tokens


def test_reasoning_may_speak_of_calls():
    chat = chat_of(templates.THINKING)
    ready = Conversations(chat).ready([{"role": "user", "content": "?"}], Talk(use=use()), GenerationParams())
    answer = "<think>perhaps <tool_call> or not</think>No."
    assert matched(chat, ready, answer)[2]
    assert read(ready.reader(), answer, 3) == ("No.", "perhaps <tool_call> or not", [])


def test_a_form_asked_for_comes_after_the_reasoning():
    chat = chat_of(templates.THINKING)
    params = GenerationParams(
        json_schema={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    )
    ready = Conversations(chat).ready([{"role": "user", "content": "?"}], Talk(), params)
    assert matched(chat, ready, '<think>hm</think>\n\n{"a": 1}')[2]
    assert matched(chat, ready, '{"a": 1}')[2]
    taken, tokens, _ = matched(chat, ready, "<think>hm</think>\n\nwords")
    assert taken < tokens


@pytest.mark.parametrize(
    ("strict", "is_held"), [(None, False), (False, False), (True, True)], ids=["open", "not strict", "strict"]
)
def test_parts_of_a_schema_that_cannot_be_held(strict, is_held):
    odd = {"type": "object", "properties": {"a": {"type": "string", "contentEncoding": "base64", "not": {}}}}
    chat = chat_of(templates.HERMES)
    asked = Talk(use=use((tool("weather", odd, strict=strict),)))
    ready = Conversations(chat).ready([{"role": "user", "content": "?"}], asked, GenerationParams())
    if is_held:
        with pytest.raises(Exception, match="tools"):
            Grammars(chat, len(chat.tokenizer)).of(GenerationParams(), ready.form)
    else:
        assert Grammars(chat, len(chat.tokenizer)).of(GenerationParams(), ready.form) is not None


def test_marks_are_what_the_template_writes_around_reasoning():
    assert Conversations(chat_of(templates.CHANNEL)).marks == Marks("<|channel>thought", "<channel|>")
    assert Conversations(chat_of(templates.THINKS_AT_ONCE)).marks == Marks("<think>", "</think>")
    assert Conversations(chat_of(templates.HERMES)).marks is None
    own = templates.THINKING.replace("think>", "mm:think>")
    assert Conversations(chat_of(own)).marks == Marks("<mm:think>", "</mm:think>")


@pytest.mark.parametrize("marks", ["text", "token", "control"])
def test_a_model_may_think_twice(marks):
    chat = chat_of(templates.CHANNEL, marks)
    ready = Conversations(chat).ready([{"role": "user", "content": "?"}], Talk(use=use()), GenerationParams())
    answer = "<|channel>thought\none<channel|>\n<|channel>thought\ntwo<channel|>So."
    assert matched(chat, ready, answer)[2]
    said, thought, calls = read(ready.reader(), answer, 2)
    assert (said, thought.split(), calls) == ("So.", ["onetwo"], [])


@pytest.mark.parametrize(("name", "key"), [("Place", "Place"), ("a/b~ c", "a~1b~0%20c")])
def test_arguments_of_tags_follow_references(name, key):
    parameters = {
        "type": "object",
        "properties": {"place": {"$ref": f"#/$defs/{key}"}, "note": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
        "required": ["place"],
        "$defs": {name: {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]}},
    }
    chat = chat_of(templates.CODER)
    asked = Talk(use=use((tool("weather", parameters),), must_call=True))
    ready = Conversations(chat).ready([{"role": "user", "content": "?"}], asked, GenerationParams())

    def answer(place, note):
        tags = f"<parameter=place>\n{place}\n</parameter>\n<parameter=note>\n{note}\n</parameter>\n"
        return f"<tool_call>\n<function=weather>\n{tags}</function>\n</tool_call>"

    for note, value in (("null", None), ("rain\nsoon", "rain\nsoon")):
        text = answer('{"lat": 1.5}', note)
        assert matched(chat, ready, text)[2]
        assert read(ready.reader(), text, 3)[2] == [("weather", {"place": {"lat": 1.5}, "note": value})]
    taken, tokens, _ = matched(chat, ready, answer('"here"', "null"))
    assert taken < tokens


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (Tagged("<p=", ">", "</p>"), "<p=n>" + "[" * 30_000 + "</p></f>"),
        (Notation('"'), "{n:" + "[" * 30_000),
    ],
    ids=["tagged", "notation"],
)
def test_a_value_that_is_nested_without_end_breaks_no_answer(arguments, said):
    form = replace(GENERIC, arguments=arguments)
    told, _, _ = arguments_of(form, tool("f", {"properties": {"n": {}}}).function).read(said)
    assert told in ("", json.dumps({"n": "[" * 30_000}))
