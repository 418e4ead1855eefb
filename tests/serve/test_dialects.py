"""Requests in other servers' words: every knob has a name there, or is refused by its name here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from danlu.generate.params import GenerationParams
from danlu.serve.faults import ApiFault
from danlu.serve.others.dialects import DIALECTS, worded
from danlu.serve.wire.schema import KNOBS, read_chat, read_completion

MESSAGES = [{"role": "user", "content": "hi"}]

# A value for each knob that is not its default, and what it needs beside it.
VALUES = {
    "max_new_tokens": {"max_new_tokens": 7},
    "max_length": {"max_length": 90},
    "min_new_tokens": {"min_new_tokens": 2},
    "min_length": {"min_length": 3},
    "eos_token_id": {"eos_token_id": [5]},
    "stop_sequences": {"stop_sequences": ["END"]},
    "include_stop": {"include_stop": True, "stop_sequences": ["END"]},
    "do_sample": {"do_sample": False},
    "temperature": {"temperature": 0.5},
    "top_k": {"top_k": 40},
    "top_p": {"top_p": 0.9},
    "min_p": {"min_p": 0.1},
    "typical_p": {"typical_p": 0.9},
    "seed": {"seed": 3},
    "num_return_sequences": {"num_return_sequences": 2},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "presence_penalty": {"presence_penalty": 0.5},
    "frequency_penalty": {"frequency_penalty": 0.5},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 3},
    "bad_words_ids": {"bad_words_ids": [[4]]},
    "bad_words": {"bad_words": ["bad"]},
    "logit_bias": {"logit_bias": {"5": 1.0}},
    "num_beams": {"num_beams": 3, "num_return_sequences": 2},
    "num_beam_groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "diversity_penalty": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "length_penalty": {"num_beams": 3, "length_penalty": 0.5},
    "early_stopping": {"num_beams": 3, "early_stopping": True},
    "force_words_ids": {"num_beams": 3, "force_words_ids": [[4]]},
    "force_words": {"num_beams": 3, "force_words": ["fox"]},
    "constraints": {"num_beams": 3, "constraints": [{"phrase": "fox"}]},
    "exact_reference": {"num_beams": 3, "force_words": ["fox"], "exact_reference": True},
    "logprobs": {"logprobs": 2},
    "use_cache": {"use_cache": False},
    "json_schema": {"json_schema": {"type": "object"}},
    "regex": {"regex": "[a-z]+"},
    "stop_token_ids": {"stop_token_ids": [5]},
    "skip_special_tokens": {"skip_special_tokens": False},
    "choices": {"choices": ["a", "b"]},
    "grammar": {"grammar": 'start: "a"'},
}
# Besides OpenAI's, which every one of them has.
OPENAI = {
    "max_new_tokens", "do_sample", "temperature", "top_p", "seed", "num_return_sequences", "stop_sequences",
    "presence_penalty", "frequency_penalty", "logprobs", "json_schema",
}  # fmt: skip
HAS = {
    "openai": {"logit_bias"},
    "vllm": {
        "logit_bias", "top_k", "min_p", "repetition_penalty", "min_new_tokens", "bad_words", "eos_token_id",
        "include_stop", "num_beams", "length_penalty", "regex", "choices", "skip_special_tokens", "stop_token_ids",
    },
    "sglang": {
        "logit_bias", "top_k", "min_p", "repetition_penalty", "min_new_tokens", "eos_token_id", "include_stop",
        "regex", "skip_special_tokens", "stop_token_ids",
    },
    "llama.cpp": {"logit_bias", "top_k", "min_p", "typical_p", "repetition_penalty"},
    "rtp-llm": {"top_k", "repetition_penalty", "min_new_tokens", "no_repeat_ngram_size", "stop_token_ids"},
}  # fmt: skip


def chat(flavour, **more):
    return worded(read_chat({"model": "m", "messages": MESSAGES, **more}), flavour, True, 512)


def text(flavour, **more):
    return worded(read_completion({"model": "m", "prompt": "hi", **more}), flavour, False, 512)


def fault(make, *arguments, **more):
    with pytest.raises(ApiFault) as caught:
        make(*arguments, **more)
    assert caught.value.status == 400
    assert "danlu" in caught.value.message
    return caught.value


def test_no_knob_is_forgotten():
    assert VALUES.keys() == KNOBS
    assert HAS.keys() == DIALECTS.keys()


@pytest.mark.parametrize("flavour", DIALECTS)
@pytest.mark.parametrize("knob", VALUES)
def test_each_knob_is_sent_or_refused(flavour, knob):
    """What is sent differs from a request without the knob."""
    if knob in OPENAI | HAS[flavour]:
        without = {name: value for name, value in VALUES[knob].items() if name != knob}
        assert chat(flavour, **VALUES[knob]) != chat(flavour, **without)
    else:
        assert fault(chat, flavour, **VALUES[knob]).param in VALUES[knob]


@pytest.mark.parametrize("knob", VALUES)
def test_another_danlu_has_every_knob(knob):
    sent = worded(read_chat({"model": "m", "messages": MESSAGES, **VALUES[knob]}), "danlu", True, 512)
    again = read_chat({"model": "m", **sent})
    given = read_chat({"model": "m", "messages": MESSAGES, "max_new_tokens": 512} | VALUES[knob])
    expected = GenerationParams.model_validate(given.params.model_dump())
    assert again.params == (
        expected if knob != "max_length" else given.params.model_copy(update={"max_new_tokens": None})
    )
    assert again.prompts == given.prompts


def test_openais_words():
    assert chat("openai") == {"messages": MESSAGES, "max_completion_tokens": 512, "temperature": 1.0}
    assert chat("openai", temperature=0, stop="END", n=1, max_tokens=4, stream=True) == {
        "messages": MESSAGES, "stream": True, "max_completion_tokens": 4, "stop": ["END"], "temperature": 0.0,
    }  # fmt: skip
    assert chat("openai", logprobs=True, top_logprobs=3)["top_logprobs"] == 3
    assert "top_logprobs" not in chat("openai", logprobs=True)
    assert text("openai", logprobs=2, echo=False)["logprobs"] == 2
    assert text("openai", echo=True)["echo"] is True
    assert text("openai", prompt=["a", "b"])["prompt"] == ["a", "b"]
    assert text("openai", prompt=[1, 2])["prompt"] == [1, 2]
    asked = chat("openai", stream=True, stream_options={"include_usage": True})
    assert asked["stream_options"] == {"include_usage": True}


def test_vllms_words():
    sent = text(
        "vllm", top_k=40, min_p=0.1, repetition_penalty=1.2, min_new_tokens=2, stop=["END"], include_stop=True,
        bad_words=["bad"], logit_bias={"5": 1}, seed=1, max_tokens=9,
    )  # fmt: skip
    assert sent == {
        "prompt": "hi", "max_tokens": 9, "temperature": 1.0, "top_p": 1.0, "top_k": 40, "min_p": 0.1,
        "repetition_penalty": 1.2, "min_tokens": 2, "stop": ["END"], "include_stop_str_in_output": True,
        "bad_words": ["bad"], "logit_bias": {"5": 1.0}, "seed": 1,
    }  # fmt: skip
    ends = chat("vllm", eos_token_id=[4, 5], stop_sequences=[[6], "END"])
    assert (ends["ignore_eos"], ends["stop_token_ids"], ends["stop"]) == (True, [6, 4, 5], ["END"])
    assert fault(chat, "vllm", stop_sequences=[[6, 7]]).param == "stop_sequences"


def test_vllms_beams():
    assert chat("vllm", num_beams=4, n=2, length_penalty=0.5, max_tokens=9) == {
        "messages": MESSAGES, "max_tokens": 9, "use_beam_search": True, "n": 4, "length_penalty": 0.5,
        "temperature": 0.0,
    }  # fmt: skip
    assert chat("vllm", num_beams=4, eos_token_id=[])["ignore_eos"] is True
    for more in ({"stop": "x"}, {"repetition_penalty": 2.0}, {"logprobs": True}, {"do_sample": True}, {"stream": True}):
        assert fault(chat, "vllm", num_beams=4, **more).param in {*more, "num_beams"}


def test_the_other_flavours_own_words():
    assert chat("sglang", stop="END", include_stop=True)["no_stop_trim"] is True
    llama = chat("llama.cpp", repetition_penalty=1.2)
    assert (llama["repeat_penalty"], llama["repeat_last_n"], llama["top_k"]) == (1.2, 131072, 0)
    assert chat("llama.cpp", eos_token_id=[])["ignore_eos"] is True
    assert fault(text, "llama.cpp", logprobs=1).param == "logprobs"
    assert fault(text, "llama.cpp", echo=True).param == "echo"
    rtp = chat("rtp-llm", no_repeat_ngram_size=3, stop_sequences=[[6, 7]], repetition_penalty=1.2)
    extra = {"no_repeat_ngram_size": 3, "repetition_penalty": 1.2, "stop_words_list": [[6, 7]]}
    assert rtp["extra_configs"] == extra
    assert chat("rtp-llm", top_k=3)["extra_configs"] == {"top_k": 3}
    assert "top_k" not in chat("rtp-llm", top_k=3)
    with pytest.raises(ApiFault, match="has no /completions"):
        text("rtp-llm")


def test_a_refusal_uses_the_clients_own_word():
    refused = fault(chat, "openai", stop_sequences=[[1]])
    assert (refused.param, refused.code) == ("stop_sequences", "unsupported_by_backend")
    assert fault(chat, "openai", top_k=4).param == "top_k"


def test_a_limit_leaves_room_for_the_least():
    assert chat("vllm", min_new_tokens=900)["max_tokens"] == 900


class Formed(GenerationParams):
    json_schema: dict[str, Any] | None = None
    regex: str | None = None


def formed(flavour, is_chat, **form):
    ask = (
        read_chat({"model": "m", "messages": MESSAGES}) if is_chat else read_completion({"model": "m", "prompt": "hi"})
    )
    return worded(replace(ask, params=Formed(do_sample=True, **form)), flavour, is_chat, 512)


def test_forms_of_answers():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    named = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    for flavour in DIALECTS:
        assert formed(flavour, True, json_schema=schema)["response_format"] == named
        assert formed(flavour, True, json_schema={"type": "object"})["response_format"] == {"type": "json_object"}
    assert formed("vllm", False, json_schema=schema)["response_format"] == named
    assert fault(formed, "openai", False, json_schema=schema).param == "json_schema"
    assert formed("vllm", True, regex="a+")["structured_outputs"] == {"regex": "a+"}
    assert formed("sglang", True, regex="a+")["regex"] == "a+"
    assert fault(formed, "llama.cpp", True, regex="a+").param == "regex"


@pytest.mark.parametrize("flavour", ["danlu", "openai", "vllm"])
def test_a_text_that_is_only_scored(flavour):
    body = text(flavour, echo=True, max_tokens=0, logprobs=1)
    assert (body["echo"], body["max_tokens"], body["logprobs"]) == (True, 0, 1)
    assert "max_new_tokens" not in body


def test_the_best_of_many_and_scores_of_a_prompt():
    for flavour in ("openai", "danlu"):
        body = text(flavour, best_of=4, n=2)
        assert (body["best_of"], body["n"]) == (4, 2)
        assert "num_return_sequences" not in body
    assert chat("danlu", best_of=4)["best_of"] == 4
    for flavour in ("vllm", "danlu"):
        assert text(flavour, prompt_logprobs=3)["prompt_logprobs"] == 3
        assert text(flavour, prompt_logprobs=0, max_tokens=0)["max_tokens"] == 0
    for make, flavour in ((chat, "openai"), (text, "vllm"), (text, "sglang"), (text, "llama.cpp")):
        assert fault(make, flavour, best_of=4).param == "best_of"
    for flavour in ("openai", "sglang", "llama.cpp"):
        assert fault(text, flavour, prompt_logprobs=0).param == "prompt_logprobs"


def test_only_another_danlu_says_which_beam_leads():
    wish = {"num_beams": 2, "stream": True, "stream_options": {"include_leading": True, "include_usage": True}}
    assert chat("danlu", **wish)["stream_options"] == {"include_leading": True, "include_usage": True}
    assert chat("danlu", **{**wish, "stream_options": {"include_usage": True}})["stream_options"] == {
        "include_usage": True
    }
    for flavour in ("openai", "vllm", "sglang"):
        with pytest.raises(ApiFault, match="include_leading") as caught:
            chat(flavour, **wish)
        assert (caught.value.status, caught.value.param) == (400, "stream_options")


TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "c", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "UTC"}'}}


def test_tools_and_calls_go_to_another_server_as_they_came():
    history = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    history.append({"role": "tool", "tool_call_id": "c", "content": "noon"})
    given = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "reasoning_effort": "low"}
    for flavour in ("openai", "vllm", "sglang", "llama.cpp", "danlu"):
        body = worded(read_chat({"model": "m", "messages": history, **given}), flavour, True, 64)
        assert {key: body[key] for key in given} == given
        assert body["messages"][1]["tool_calls"] == [CALL]
        assert body["messages"][2] == {"role": "tool", "tool_call_id": "c", "content": "noon"}


@pytest.mark.parametrize("flavour", sorted(DIALECTS))
def test_what_says_nothing_is_not_sent(flavour):
    """OpenAI refuses a choice of tools, or an empty list of them, where there is no tool."""
    moot = {"tools": [], "tool_choice": "auto", "parallel_tool_calls": False, "chat_template_kwargs": {}}
    moot |= {"continue_final_message": False, "add_generation_prompt": True}
    body = worded(read_chat({"model": "m", "messages": MESSAGES, **moot}), flavour, True, 64)
    assert not body.keys() & moot.keys()


NAMED = {"type": "function", "function": {"name": "clock"}}
OTHER = {"type": "function", "function": {"name": "date"}}


@pytest.mark.parametrize("flavour", ["openai", "vllm", "sglang", "llama.cpp", "danlu"])
@pytest.mark.parametrize(
    ("choice", "knowing", "instead"),
    [
        (NAMED, {"openai", "vllm", "sglang", "danlu"}, {"tool_choice": "required", "parallel_tool_calls": False}),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}},
            {"openai", "danlu"},
            {"tool_choice": "required"},
        ),
        ({"type": "allowed_tools", "allowed_tools": {"tools": [NAMED]}}, {"openai", "danlu"}, {"tool_choice": "auto"}),
    ],
)
def test_a_choice_that_the_server_does_not_know_is_made_here(flavour, choice, knowing, instead):
    """llama.cpp reads every choice that is no word as auto, and says nothing."""
    asked = {"model": "m", "messages": MESSAGES, "tools": [TOOL, OTHER], "tool_choice": choice}
    body = worded(read_chat(asked), flavour, True, 64)
    expected = {"tools": [TOOL, OTHER], "tool_choice": choice} if flavour in knowing else {"tools": [TOOL], **instead}
    talk = ("tools", "tool_choice", "parallel_tool_calls")
    assert {name: body[name] for name in talk if name in body} == expected


def test_log_probabilities_without_alternatives():
    """llama.cpp makes twenty of none."""
    assert "top_logprobs" not in chat("vllm", logprobs=True)
    assert chat("llama.cpp", logprobs=True)["top_logprobs"] == 1
    assert chat("llama.cpp", logprobs=True, top_logprobs=3)["top_logprobs"] == 3


@pytest.mark.parametrize(
    ("flavour", "given"),
    [
        ("openai", {"chat_template_kwargs": {"enable_thinking": False}}),
        ("openai", {"add_generation_prompt": False}),
        ("sglang", {"add_generation_prompt": False}),
        ("rtp-llm", {"tools": [TOOL], "parallel_tool_calls": False}),
    ],
)
def test_what_shapes_a_prompt_and_is_not_known_there_is_refused(flavour, given):
    with pytest.raises(ApiFault) as caught:
        worded(read_chat({"model": "m", "messages": MESSAGES, **given}), flavour, True, 64)
    assert caught.value.code == "unsupported_by_backend"
    assert caught.value.param in given
