"""What is learnt is the answer with its end, and what stands before it is what generation is fed."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from types import SimpleNamespace

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AddedToken

from danlu.data.chat import Chat
from danlu.data.formats import record_from_row
from danlu.data.records import Conversation, Preference, Text
from danlu.errors import ConfigError, DataError, ModelError
from tiny import make_tokenizer

# --- templates, each in the style of a family ---

TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
OPENING = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = "{% for m in messages %}" + TURN + "{% endfor %}" + OPENING
NO_OPENING = "{% for m in messages %}" + TURN + "{% endfor %}"
DEFAULT_SYSTEM = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}" + TURN + "{% endfor %}" + OPENING
)


def marked(answer):
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
        + answer
        + "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        + OPENING
    )


MARKED = marked("{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}")
MARKED_WITHOUT_END = marked("{% generation %}{{ m.content }}{% endgeneration %}{{ '<|im_end|>\n' }}")
MARKED_WITHOUT_LINE = marked("{%- generation -%}{{ m.content }}{%- endgeneration -%}{{ '\n<|im_end|>\n' }}")
# Qwen3: earlier answers lose their thoughts.
THINK = marked(
    "{% if loop.last %}{{ m.content }}{% else %}{{ m.content.split('</think>')[-1].lstrip('\n') }}{% endif %}"
    "{{ '<|im_end|>\n' }}"
)
# Llama 2: the sentence marks are the template's; nothing opens an answer.
INST = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ bos_token + '<<SYS>>' + m.content + '<</SYS>>' }}"
    "{% elif m.role == 'user' %}{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Base models: words alone tell the turns apart.
OPEN = (
    "{% for m in messages %}{{ ('Assistant: ' if m.role == 'assistant' else 'User: ') + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
# GLM: the next speaker's mark ends an answer.
GLM = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# Phi 3: the whole conversation is closed once more.
CLOSED_TWICE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}"
)
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for t in tools %}{{ t | tojson + '\n' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '<tool_call>' + c.function | tojson + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}" + OPENING
)


@dataclass(frozen=True)
class Style:
    """A template, the text that is learnt for a content, and what its tokenizer and configuration name.

    Attributes:
        answer: (content, whether a message follows) -> what generation has to make.
        sequences: whether three plain answers share one sequence.
        extra_stops: tokens that only the generation config calls an end.
    """

    template: str
    answer: Callable[[str, bool], str] = lambda content, _: content + "<|im_end|>"
    sequences: int = 1
    special: tuple[str, ...] = ()
    extra_stops: tuple[str, ...] = ()
    named: tuple[tuple[str, str], ...] = ()

    def chat(self, texts=None):
        tokenizer = make_tokenizer(texts)
        tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in self.special])
        if self.named:
            tokenizer.add_special_tokens(dict(self.named))
        stops = tokenizer.convert_tokens_to_ids(list(self.extra_stops))
        return Chat.of(tokenizer, SimpleNamespace(eos_token_id=stops or None), self.template)


STYLES = {
    "chatml": Style(CHATML),
    "built-in chatml": Style("chatml"),
    "marked": Style(MARKED),
    "marked without the end": Style(MARKED_WITHOUT_END),
    "marked without the last line": Style(MARKED_WITHOUT_LINE, lambda content, _: content + "\n<|im_end|>"),
    "default system prompt": Style(DEFAULT_SYSTEM),
    "inst": Style(
        INST,
        lambda content, _: f" {content.strip()} </s>",
        named=(("bos_token", "<s>"), ("eos_token", "</s>")),
    ),
    "gemma": Style(
        GEMMA,
        lambda content, _: content.strip() + "<end_of_turn>",
        special=("<start_of_turn>", "<end_of_turn>", "<eos>"),
        extra_stops=("<end_of_turn>",),
        named=(("eos_token", "<eos>"),),
    ),
    "thoughts dropped": Style(THINK),
    "no end token": Style(OPEN, lambda content, _: f" {content}<|im_end|>", sequences=3),
    "no opening": Style(NO_OPENING),
    "next speaker ends": Style(
        GLM,
        lambda content, followed: "\n" + content + ("<|user|>" if followed else "<|im_end|>"),
        special=("<|user|>", "<|assistant|>", "<|system|>"),
        extra_stops=("<|user|>",),
    ),
    "closed twice": Style(CLOSED_TWICE, sequences=3, extra_stops=("<|endoftext|>",)),
    "tools": Style(TOOLS),
}


@pytest.fixture(scope="module", params=STYLES)
def style(request):
    return STYLES[request.param]


@pytest.fixture(scope="module")
def chat(style):
    return style.chat()


def conversation(*turns, tools=None, **last):
    """Contents in order, user first; a dict stands for itself."""
    roles = ("user", "assistant")
    messages = [t if isinstance(t, dict) else {"role": roles[at % 2], "content": t} for at, t in enumerate(turns)]
    messages[-1] = {**messages[-1], **last}
    return Conversation(tuple(messages), "rows:7", "a group", tools)


def runs(example):
    """(first, last + 1) of each stretch of learnt tokens."""
    edges = [
        at for at in range(len(example.learnt) + 1) if (*example.learnt, False)[at] != (False, *example.learnt)[at]
    ]
    return list(zip(edges[::2], edges[1::2], strict=True))


def learnt_texts(chat, record):
    """The texts learnt, in order; what stands before each must be what generation is fed."""
    examples = chat.examples(record)
    answers = [(example.token_ids, *run) for example in examples for run in runs(example)]
    turns = [at for at, m in enumerate(record.messages) if m["role"] == "assistant" and m.get("train", True)]
    assert len(answers) == len(turns)
    for at, (token_ids, start, _) in zip(turns, answers, strict=True):
        assert list(token_ids[:start]) == chat.prompt(record.messages[:at], record.tools)
    for token_ids, start, end in answers:
        assert [token in chat.stop_ids for token in token_ids[start:end]] == [False] * (end - start - 1) + [True]
    for example in examples:
        assert len(example.token_ids) == len(example.learnt)
        assert (example.place, example.group) == (record.place, record.group)
    assert chat.lengths(record) == (
        sum(len(example.token_ids) for example in examples),
        sum(end - start for _, start, end in answers),
    )
    return [chat.tokenizer.decode(token_ids[start:end]) for token_ids, start, end in answers]


def expected_texts(style, record):
    last = len(record.messages) - 1
    return [
        style.answer(message["content"], at < last)
        for at, message in enumerate(record.messages)
        if message["role"] == "assistant" and message.get("train", True)
    ]


# --- every style ---

SYSTEM = {"role": "system", "content": "你是助手。"}
CONVERSATIONS = {
    "one answer": conversation("what is the capital of France?", "The capital is Paris."),
    "three answers": conversation("one", "two", "three", "four", "five", "six"),
    "Chinese": conversation("什么是丹炉？", "炼丹的炉子。🔥", "谢谢", "不客气！"),
    "a system prompt": conversation(SYSTEM, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}),
    "an answer that is not learnt": conversation("q", {"role": "assistant", "content": "x", "train": False}, "q", "a"),
    "the last answer is not learnt": conversation("q", "a", "q", "x", train=False),
    "leading white space": conversation("q", "\n\n  a", "q", " a"),
    "trailing white space": conversation("q ", "a\n", "q\n", "a \n\n"),
    "an answer that repeats the question": conversation("a", "a", "a", "a"),
}


@pytest.mark.parametrize("record", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_the_answer_and_its_end_are_learnt_after_what_generation_is_fed(style, chat, record):
    assert learnt_texts(chat, record) == expected_texts(style, record)


def test_answers_share_a_sequence_where_they_can(style, chat):
    assert len(chat.examples(CONVERSATIONS["three answers"])) == style.sequences


PIECES = [
    *"abc xyz\n\t.<>|{}[]/",
    "\n\n",
    "  ",
    "the",
    " fox",
    "im_end",
    "|>",
    "<|",
    "丹",
    "炉",
    "🔥",
    "é",
    "\u3000",
    "'",
]


def random_record(draw):
    def text():
        words = "".join(draw.choice(PIECES) for _ in range(draw.randint(1, 12)))
        return words if words.strip() else "x" + words

    turns = [text() for _ in range(2 * draw.randint(1, 4))]
    record = conversation(*turns)
    messages = [dict(message) for message in record.messages]
    for message in messages[1:-1:2]:
        if draw.random() < 0.3:
            message["train"] = False
    if draw.random() < 0.4:
        messages.insert(0, {"role": "system", "content": text()})
    return Conversation(tuple(messages), record.place, record.group)


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

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"city": "string"}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "北京"}}}
ASKED = conversation(
    {"role": "user", "content": "天气？"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "晴", "name": "weather"},
    {"role": "assistant", "content": "晴天。", "reasoning_content": "工具说晴"},
    tools=(WEATHER,),
)


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


# --- control tokens ---

SPELT_OUT = {
    "a question": conversation("q<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\nq", "a"),
    "an answer": conversation("q", "a<|im_end|>b"),
    "one token after another": conversation("<|im_start|><|im_end|><|endoftext|>", "<|im_end|>", "q", "<|im_start|>"),
    "a system prompt": conversation(
        {"role": "system", "content": "<|im_end|>"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ),
    "an answer that is not learnt": conversation(
        "q", {"role": "assistant", "content": "x<|im_end|>", "train": False}, "q", "a"
    ),
    "a token of which half is the template's": conversation("q<|im_end|", "|>a<|im_start"),
}


def texts_and_turns(chat, token_ids):
    """The text between the control tokens of a sequence, and these."""
    texts, turns, start = [], [], 0
    for at, token in enumerate(token_ids):
        if token in chat.tokenizer.all_special_ids or token == chat.tokenizer.convert_tokens_to_ids("<|endoftext|>"):
            texts.append(chat.tokenizer.decode(token_ids[start:at]))
            turns.append(chat.tokenizer.convert_ids_to_tokens(token))
            start = at + 1
    return [*texts, chat.tokenizer.decode(token_ids[start:])], turns


@pytest.mark.parametrize("record", SPELT_OUT.values(), ids=SPELT_OUT)
def test_control_tokens_in_a_message_are_text(record):
    chat = STYLES["chatml"].chat()
    assert learnt_texts(chat, record) == expected_texts(STYLES["chatml"], record)
    (example,) = chat.examples(record)
    texts, turns = texts_and_turns(chat, example.token_ids)
    assert turns == ["<|im_start|>", "<|im_end|>"] * len(record.messages)
    said = [f"{message['role']}\n{message['content']}" for message in record.messages]
    assert texts == ["", *(text for one in said for text in (one, "\n"))]


def test_the_same_holds_for_tokens_that_only_the_template_calls_control():
    style = Style(GLM, special=("<|user|>", "<|assistant|>", "<|system|>"))
    tokenizer = style.chat().tokenizer
    tokenizer.add_tokens([AddedToken("<turn>", special=False, normalized=False)])
    chat = Chat.of(tokenizer, None, GLM.replace("m.content", "m.content + '<turn>'", 1))
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    assert chat.prompt([{"role": "user", "content": "a<turn>b"}]).count(turn) == 1


def test_words_of_calls_tools_names_and_thoughts_make_no_control_token():
    end = "<|im_end|>"
    call = {"type": "function", "function": {"name": f"f{end}", "arguments": {f"k{end}": [f"v{end}"]}}}
    tool = {"type": "function", "function": {"name": f"f{end}", "description": f"d{end}"}}
    record = conversation("q", "", tool_calls=[call], reasoning_content=f"r{end}", tools=(tool,))
    chat = STYLES["tools"].chat()
    (example,) = chat.examples(record)
    assert sum(token in chat.stop_ids for token in example.token_ids) == 3
    assert chat.tokenizer.decode(example.token_ids).count(end) == 3 + 6


def test_a_control_token_of_one_character_is_text_too():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("☃", special=True, normalized=False)])
    chat = Chat.of(tokenizer, None, CHATML.replace("'<|im_end|>", "'☃<|im_end|>"))
    ids = chat.prompt([{"role": "user", "content": "a☃b☃"}])
    assert ids.count(tokenizer.convert_tokens_to_ids("☃")) == 1
    assert "a☃b☃☃<|im_end|>" in tokenizer.decode(ids)


def test_words_that_spell_control_tokens_are_encoded_beside_other_threads(monkeypatch):
    """Of the backend's calls, the one for a single text keeps the interpreter to its end: a second, of long words."""
    control = STYLES["chatml"].chat()._control
    text = control.marked("a<|im_end|>b")
    expected = control.encode(text, list)
    backend = SimpleNamespace(encode_batch_fast=control._text_only.backend.encode_batch_fast)
    monkeypatch.setitem(control.__dict__, "_text_only", control._text_only._replace(backend=backend))
    assert control.encode(text, list) == expected


def test_two_fields_make_no_control_token_together():
    template = "{% for m in messages %}{{ '<|im_start|>' + m.role + ' ' + m.name + m.content }}{% endfor %}" + OPENING
    chat = Style(template).chat()
    for name, content in (("<|im_", "end|>"), ("<", "|im_end|>"), ("<|im_end|", "> and so on")):
        ids = chat.prompt([{"role": "user", "name": name, "content": content}])
        assert sum(token in chat.stop_ids for token in ids) == 0
        assert name + content in chat.tokenizer.decode(ids)


def test_a_role_cannot_spell_a_control_token():
    chat = STYLES["next speaker ends"].chat()
    with pytest.raises(DataError, match="unknown role 'end") as caught:
        chat.prompt([{"role": "end|>x<|user", "content": "q"}])
    assert "assistant" in caught.value.allowed


def test_text_without_control_tokens_has_the_ids_that_it_always_had(style):
    chat, draw = style.chat(), random.Random(5)
    for _ in range(10):
        record = random_record(draw)
        text = chat._templates.render(record.messages, None, opening=True) + chat._missing_opening
        assert chat.prompt(record.messages) == chat.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_raw_text_is_read_as_the_tokenizer_reads_it():
    chat = STYLES["chatml"].chat()
    assert chat.text_prompt("a<|im_end|>")[-1] in chat.stop_ids


def test_a_character_that_is_none_is_refused():
    with pytest.raises(DataError, match=r"rows:7: a message holds U\+FDD0"):
        STYLES["chatml"].chat().examples(conversation("\ufdd0", "a"))


def test_a_tokenizer_that_cannot_write_them_as_text_says_so():
    chat = STYLES["chatml"].chat()

    class Slow:
        """A tokenizer without a backend, as those in Python are."""

        def __init__(self, fast):
            self._fast = fast

        def __call__(self, *given, **options):
            return self._fast(*given, **options)

        def __getattr__(self, name):
            if name == "backend_tokenizer":
                raise AttributeError(name)
            return getattr(self._fast, name)

    slow = Chat(Slow(chat.tokenizer), chat.stop_ids)
    assert slow.prompt([{"role": "user", "content": "q"}]) == chat.prompt([{"role": "user", "content": "q"}])
    with pytest.raises(ModelError, match=r"'<\|im_end\|>', a control token"):
        slow.prompt([{"role": "user", "content": "q<|im_end|>"}])


@pytest.mark.parametrize(
    "write",
    [
        "{% for c in m.tool_calls or [] %}{{ c.function.name + ' ' + c.function.arguments }}{% endfor %}",
        "{% if m.content is none %}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}{% endif %}",
    ],
    ids=["arguments as text", "calls only without content"],
)
def test_calls_are_written_in_the_form_that_a_template_wants(write):
    template = marked("{{ m.content or '' }}" + write + "{{ '<|im_end|>\n' }}")
    record = conversation("q", "", tool_calls=[CALL])
    (learnt,) = learnt_texts(Style(template).chat(), record)
    assert "weather" in learnt
    assert '{"city": "北京"}' in learnt


# --- documents and preferences ---


def test_a_document_is_learnt_whole_and_closed():
    chat = STYLES["chatml"].chat()
    (example,) = chat.examples(Text("丹炉 furnace\n", "p", "g"))
    assert chat.tokenizer.decode(example.token_ids) == "丹炉 furnace\n<|im_end|>"
    assert example.learnt == (False, *[True] * (len(example.token_ids) - 1))
    assert (example.place, example.group) == ("p", "g")
    assert chat.lengths(Text("丹炉 furnace\n", "p")) == (len(example.token_ids), len(example.token_ids) - 1)


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


def test_a_preference_counts_as_its_prompt_with_the_longer_answer():
    chat = STYLES["chatml"].chat()
    earlier = conversation("one", "two", "three", "the quick brown fox").messages
    longer, shorter = earlier[3:], ({"role": "assistant", "content": "x"},)
    unlearnt = (earlier[0], {**earlier[1], "train": False}, *earlier[2:])
    expected = chat.lengths(Conversation(unlearnt, "p"))
    assert chat.lengths(Preference(earlier[:3], longer, shorter, "p")) == expected
    assert chat.lengths(Preference(earlier[:3], shorter, longer, "p")) == expected
    with pytest.raises(DataError, match="p: a preference pair"):
        chat.examples(Preference(earlier[:3], longer, shorter, "p"))


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
