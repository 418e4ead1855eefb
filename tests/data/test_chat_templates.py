"""Templates and tokenizers of a chat: where they come from, and those that will not do."""

import random
from datetime import date
from types import SimpleNamespace

import pytest
from styles import (
    ASKED,
    CHATML,
    CONVERSATIONS,
    DEFAULT_SYSTEM,
    OPEN,
    STYLES,
    SYSTEM,
    TOOLS,
    Style,
    conversation,
    expected_texts,
    learnt_texts,
    random_record,
)

from danlu.data.chat import Chat
from danlu.data.records import Conversation, Text
from danlu.errors import ConfigError, DataError, ModelError
from tiny import make_tokenizer

# --- tokenizers and templates that will not do ---


def test_no_template_is_an_error_that_offers_one():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="has no chat template") as caught:
        Chat.of(tokenizer, None).prompt([{"role": "user", "content": "q"}])
    assert "data.chat_template=chatml" in caught.value.fix
    record = conversation("q", "a")
    assert learnt_texts(Chat.of(tokenizer, None, "chatml"), record) == ["a<|im_end|>"]


def test_the_tokenizers_own_template_is_the_default():
    record = conversation("q", "a", "q", "b")
    assert Chat.of(make_tokenizer(), None).examples(record) == STYLES["chatml"].chat().examples(record)
    several = make_tokenizer()
    several.chat_template = {"default": CHATML, "other": "x"}
    assert Chat.of(several, None).examples(record) == STYLES["chatml"].chat().examples(record)


def test_tools_have_the_template_of_their_own():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = {"default": CHATML, "tool_use": TOOLS}
    assert Chat.of(tokenizer, None).examples(ASKED) == STYLES["tools"].chat().examples(ASKED)
    tokenizer.chat_template = {"rag": CHATML}
    assert Chat.of(tokenizer, None).prompt([SYSTEM]) == STYLES["chatml"].chat().prompt([SYSTEM])
    tokenizer.chat_template = {"rag": CHATML, "tool_use": TOOLS}
    with pytest.raises(ModelError, match="none called default: rag, tool_use"):
        Chat.of(tokenizer, None).prompt([SYSTEM])


def test_a_template_is_read_from_its_file(tmp_path):
    path = tmp_path / "my.jinja"
    path.write_text(CHATML, "utf-8")
    record = conversation("q", "a")
    assert Chat.of(make_tokenizer(), None, str(path)).examples(record) == STYLES["chatml"].chat().examples(record)


@pytest.mark.parametrize("name", ["chatlm", "qwen", "no/such.jinja"])
def test_a_template_that_is_none_is_refused(name):
    with pytest.raises(ConfigError, match="is no name, no file and no Jinja text") as caught:
        Chat.of(make_tokenizer(), None, name)
    assert ("chatml" in caught.value.fix) == (name == "chatlm")


def test_a_template_that_writes_no_message_is_refused():
    with pytest.raises(ModelError, match="does not write the messages"):
        Style("{{ 'hello' }}{% for m in messages %}{% endfor %}").chat().examples(conversation("q", "a"))


def test_values_for_a_template_are_those_of_training_and_of_answering():
    template = CHATML + "{% if add_generation_prompt and enable_thinking is false %}{{ '<think></think>' }}{% endif %}"
    tokenizer = make_tokenizer()
    chat = Chat.of(tokenizer, None, template, template_values={"enable_thinking": False})
    kept = Chat.of(tokenizer, None, chat.own_template)
    asked = [{"role": "user", "content": "q"}]
    assert chat.prompt(asked) == kept.prompt(asked) != Chat.of(tokenizer, None, template).prompt(asked)
    with pytest.raises(ConfigError, match="thinking has no effect"):
        Chat.of(tokenizer, None, template, template_values={"thinking": False}).prompt(asked)


def test_the_date_of_a_template_can_be_held():
    template = CHATML + "{{ strftime_now('%d %b %Y') }}"
    chat = Chat.of(make_tokenizer(), None, template, today=date(2025, 3, 4))
    assert chat.tokenizer.decode(chat.prompt([{"role": "user", "content": "q"}])).endswith("04 Mar 2025")
    assert chat.own_template == template


def test_documents_need_no_template():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    chat = Chat.of(tokenizer, None)
    assert not chat.has_template
    assert chat.examples(Text("x y", "p")) == STYLES["chatml"].chat().examples(Text("x y", "p"))


def test_a_refusal_of_the_template_names_the_place():
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    chat = Style(template).chat()
    assert learnt_texts(chat, conversation("q", "a")) == ["a<|im_end|>"]
    with pytest.raises(DataError, match="rows:7: the chat template refuses these messages: no system role"):
        chat.examples(CONVERSATIONS["a system prompt"])
    with pytest.raises(DataError, match="the chat template refuses these messages: no system role"):
        chat.prompt([SYSTEM])


def test_a_broken_template_is_not_the_datas_fault():
    with pytest.raises(ModelError, match=r"no valid Jinja: .* \(line 1\)"):
        Style("{% for m in messages %}").chat().examples(conversation("q", "a"))


def test_ends_come_from_the_tokenizer_and_from_the_generation_config():
    tokenizer = make_tokenizer()
    end, text_end = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    for eos, stops in ((None, {end}), (text_end, {end, text_end}), ([text_end, end], {end, text_end})):
        assert Chat.of(tokenizer, SimpleNamespace(eos_token_id=eos)).stop_ids == stops
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="names no token that ends an answer"):
        Chat.of(tokenizer, None)


@pytest.mark.parametrize("template", ["chatml", OPEN])
def test_an_end_that_only_the_configuration_names_closes_answers(template):
    tokenizer = make_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    tokenizer.eos_token = None
    chat = Chat.of(tokenizer, SimpleNamespace(eos_token_id=end), template)
    assert [text.strip() for text in learnt_texts(chat, conversation("q", "a"))] == ["a<|endoftext|>"]
    assert chat.examples(Text("x y", "p"))[0].token_ids[-1] == end


def test_decoding_leaves_control_tokens_out():
    chat = STYLES["chatml"].chat()
    assert chat.decode(chat.tokenizer("好<|im_end|>")["input_ids"]) == "好"


@pytest.mark.real_model
def test_the_real_template_keeps_the_rule():
    from danlu.hub import cache_directory, resolve
    from danlu.model.load import load_tokenizer

    chat = Chat.of(load_tokenizer(resolve("smollm2-135m", cache=cache_directory())), None)
    style = Style(DEFAULT_SYSTEM)
    draw = random.Random(0)
    records = [*CONVERSATIONS.values(), *(random_record(draw) for _ in range(100))]
    for record in records:
        assert learnt_texts(chat, record) == expected_texts(style, record)
    assert len(chat.examples(CONVERSATIONS["three answers"])) == 1


@pytest.mark.parametrize("name", ["f", "im", "end", "start"])
def test_a_call_is_not_taken_for_written_because_its_name_stands_in_a_control_token(name):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": name, "arguments": {}}}]}
    record = Conversation(({"role": "user", "content": "go"}, call), "a.jsonl:1")
    with pytest.raises(DataError, match=f"leaves out a call of '{name}'"):
        Chat.of(make_tokenizer(), None, "chatml").examples(record)
