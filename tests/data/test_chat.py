"""What is learnt is the answer with its end, and what stands before it is what generation is fed."""

import random

import pytest
from styles import (
    ASKED,
    CONVERSATIONS,
    OPENING,
    STYLES,
    TURN,
    Style,
    conversation,
    expected_texts,
    learnt_texts,
    marked,
    random_record,
    runs,
)
from tokenizers.processors import TemplateProcessing

from danlu.data.chat import Chat
from danlu.data.formats import record_from_row
from danlu.data.records import Conversation, Preference, Text
from danlu.errors import DataError
from tiny import make_tokenizer


@pytest.fixture(scope="module", params=STYLES)
def style(request):
    return STYLES[request.param]


@pytest.fixture(scope="module")
def chat(style):
    return style.chat()


@pytest.mark.parametrize("record", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_the_answer_and_its_end_are_learnt_after_what_generation_is_fed(style, chat, record):
    assert learnt_texts(chat, record) == expected_texts(style, record)


def test_answers_share_a_sequence_where_they_can(style, chat):
    assert len(chat.examples(CONVERSATIONS["three answers"])) == style.sequences


@pytest.mark.parametrize("seed", range(3))
def test_random_conversations_keep_the_rule(style, seed):
    draw = random.Random(seed)
    chat = style.chat(["\n\n\n\n", "\n \n", ": a", "] a", ">\n\n", "  x"] * 20)  # many merges at the borders
    for _ in range(40):
        record = random_record(draw)
        assert learnt_texts(chat, record) == expected_texts(style, record), record


# --- borders ---


def test_an_answer_that_merges_with_its_prompt_is_learnt_after_the_same_prompt():
    chat = STYLES["chatml"].chat(["\n\n"] * 50)
    record = conversation("q", "\n\nfirst", "q", "second")
    prompt = chat.prompt(record.messages[:1])
    merged = chat.tokenizer("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n\n\nfirst")["input_ids"]
    assert merged[: len(prompt)] != prompt
    assert learnt_texts(chat, record) == ["\n\nfirst<|im_end|>", "second<|im_end|>"]
    assert len(chat.examples(record)) == 2


def test_thoughts_that_later_turns_drop_are_still_learnt():
    chat = STYLES["thoughts dropped"].chat()
    record = conversation("q", "<think>so</think>\n\none", "q", "<think>hm</think>\n\ntwo")
    assert learnt_texts(chat, record) == ["<think>so</think>\n\none<|im_end|>", "<think>hm</think>\n\ntwo<|im_end|>"]
    first, second = chat.examples(record)
    assert "so" in chat.decode(first.token_ids)
    assert "so" not in chat.decode(second.token_ids)


def test_a_template_that_ignores_the_generation_prompt_is_fed_its_own_opening():
    with_opening, without = STYLES["chatml"].chat(), STYLES["no opening"].chat()
    record = conversation("one", "two", "three", "four")
    assert without.prompt(record.messages[:3]) == with_opening.prompt(record.messages[:3])
    assert without.examples(record) == with_opening.examples(record)


def test_an_answer_to_nothing_is_refused_where_the_template_writes_something_before_it():
    greeting = {"role": "assistant", "content": "hello"}
    record = conversation(greeting, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})
    assert learnt_texts(STYLES["chatml"].chat(), record) == ["hello<|im_end|>", "a<|im_end|>"]
    with pytest.raises(DataError, match=r"rows:7: .* message 0 ") as caught:
        STYLES["default system prompt"].chat().examples(record)
    assert caught.value.fix == "put a user turn before it"


def test_an_answer_that_does_not_continue_its_prompt_is_refused_with_its_place():
    template = "{% for m in messages %}" + TURN + "{% endfor %}{% if add_generation_prompt %}{{ '<think>' }}{% endif %}"
    with pytest.raises(DataError, match=r"rows:7: .* message 1 .* does not continue the prompt"):
        Style(template).chat().examples(conversation("q", "a"))


def test_only_the_completion_is_learnt():
    row = {
        "prompt": [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": "three"},
        ],
        "completion": "four",
    }
    assert learnt_texts(STYLES["chatml"].chat(), record_from_row(row, "prompt_completion", "p")) == ["four<|im_end|>"]


def test_no_learnt_turn_is_an_error():
    with pytest.raises(DataError, match="rows:7: no assistant turn to learn"):
        STYLES["chatml"].chat().examples(conversation("q", "a", train=False))


# --- tools and reasoning ---


def test_calls_and_reasoning_are_learnt_and_tools_are_fed():
    chat = STYLES["tools"].chat()
    call = '<tool_call>{"name": "weather", "arguments": {"city": "北京"}}</tool_call><|im_end|>'
    assert learnt_texts(chat, ASKED) == [call, "<think>工具说晴</think>晴天。<|im_end|>"]
    assert len(chat.examples(ASKED)) == 1


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (ASKED, "the tool 'weather'"),
        (Conversation(ASKED.messages, "rows:7"), "a call of 'weather'"),
        (conversation("q", "a", reasoning_content="because"), "the reasoning of an answer"),
    ],
)
def test_what_a_template_would_drop_in_silence_is_an_error(record, what):
    with pytest.raises(DataError, match=f"rows:7: the chat template leaves out {what}"):
        STYLES["chatml"].chat().examples(record)


NO_SYSTEM = "{% for m in messages %}{% if m.role != 'system' %}" + TURN + "{% endif %}{% endfor %}" + OPENING
NO_THOUGHTS = marked("{{ m.content.split('</think>')[-1] + '<|im_end|>' }}")


def test_words_that_a_template_drops_are_an_error_in_training_and_in_answering():
    record = CONVERSATIONS["a system prompt"]
    with pytest.raises(DataError, match=r"rows:7: the chat template leaves out words of message 0 \(system\)"):
        Style(NO_SYSTEM).chat().examples(record)
    with pytest.raises(DataError, match=r"the chat template leaves out words of message 0 \(system\)"):
        Style(NO_SYSTEM).chat().prompt(record.messages[:-1])
    with pytest.raises(DataError, match=r"rows:7: the chat template leaves out words of message 1 \(assistant\)"):
        Style(NO_THOUGHTS).chat().examples(conversation("q", "<think>so</think>one"))


def test_thoughts_of_earlier_answers_and_names_are_remarked_on():
    chat = STYLES["thoughts dropped"].chat()
    first, second = chat.examples(conversation("q", "<think>so</think>\n\none", "q", "two"))
    assert (first.left_out, second.left_out) == ((), ("the reasoning of an earlier answer",))
    (named,) = chat.examples(conversation({"role": "user", "content": "q", "name": "Ada"}, "a"))
    assert named.left_out == ("the name of a speaker",)


def test_words_written_in_json_or_with_other_white_space_are_there():
    template = "{% for m in messages %}{{ '<|im_start|>' + m.role + m.content | tojson + '<|im_end|>' }}{% endfor %}"
    assert Style(template + OPENING).chat().prompt([{"role": "user", "content": 'a "b"\n\tc'}])


# --- weights, and the last answer alone ---


def test_only_the_last_answer_is_learnt_where_asked():
    record = conversation("one", "two", "three", "four")
    chat = Chat.of(make_tokenizer(), None, train_on="last")
    (example,) = chat.examples(record)
    assert [chat.tokenizer.decode(example.token_ids[a:b]) for a, b in runs(example)] == ["four<|im_end|>"]
    assert example.token_ids == Chat.of(make_tokenizer(), None).examples(record)[0].token_ids


def test_a_message_weighs_what_its_row_says():
    record = conversation("q", {"role": "assistant", "content": "one", "weight": 0.25}, "q", "two")
    chat = STYLES["chatml"].chat()
    (example,) = chat.examples(record)
    (first, middle), (second, end) = runs(example)
    assert set(example.weights[first:middle]) == {0.25}
    assert set(example.weights[second:end]) == {1.0}
    assert example.weight == 0.25 * (middle - first) + (end - second)
    assert example.learnt_tokens == middle - first + end - second
    assert chat.examples(conversation("q", "two"))[0].weights is None


# --- documents and preferences ---


def test_a_document_is_learnt_whole_and_closed():
    chat = STYLES["chatml"].chat()
    (example,) = chat.examples(Text("丹炉 furnace\n", "p", "g"))
    assert chat.tokenizer.decode(example.token_ids) == "丹炉 furnace\n<|im_end|>"
    assert example.learnt == (False, *[True] * (len(example.token_ids) - 1))
    assert (example.place, example.group) == ("p", "g")


@pytest.mark.parametrize("text", ["丹炉", "丹炉<|im_end|>", "<|im_start|>丹炉"])
def test_a_document_has_one_beginning_and_one_end(text):
    chat = STYLES["chatml"].chat()
    ids = [(token, chat.tokenizer.convert_tokens_to_ids(token)) for token in ("<|im_start|>", "<|im_end|>")]
    both = TemplateProcessing(single="<|im_start|> $A <|im_end|>", special_tokens=ids)
    chat.tokenizer.backend_tokenizer.post_processor = both
    (example,) = chat.examples(Text(text, "p"))
    assert chat.tokenizer.decode(example.token_ids) == "<|im_start|>丹炉<|im_end|>"
    assert chat.tokenizer.decode(chat.text_prompt(text)) == "<|im_start|>" + text.removeprefix("<|im_start|>")


def test_an_empty_document_is_an_error():
    with pytest.raises(DataError, match="p: no text"):
        STYLES["chatml"].chat().examples(Text("", "p"))


def test_a_preference_has_no_single_answer_to_learn():
    chat = STYLES["chatml"].chat()
    earlier = conversation("one", "two", "three", "the quick brown fox").messages
    longer = earlier[3:]
    with pytest.raises(DataError, match="p: a preference pair"):
        chat.examples(Preference(earlier[:3], longer, longer, "p"))
