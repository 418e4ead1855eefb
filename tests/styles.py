"""Chat templates, each in the style of a family, conversations for them, and what is to be learnt of each."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

from transformers import AddedToken

from danlu.data.chat import Chat
from danlu.data.records import Conversation
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
    assert lengths(chat, record)[1] == sum(end - start for _, start, end in answers)
    return [chat.tokenizer.decode(token_ids[start:end]) for token_ids, start, end in answers]


def lengths(chat, record):
    """(tokens, learnt tokens) of all examples of a record."""
    examples = chat.examples(record)
    return sum(len(example.token_ids) for example in examples), sum(example.learnt_tokens for example in examples)


def expected_texts(style, record):
    last = len(record.messages) - 1
    return [
        style.answer(message["content"], at < last)
        for at, message in enumerate(record.messages)
        if message["role"] == "assistant" and message.get("train", True)
    ]


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


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"city": "string"}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "北京"}}}
ASKED = conversation(
    {"role": "user", "content": "天气？"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "晴", "name": "weather"},
    {"role": "assistant", "content": "晴天。", "reasoning_content": "工具说晴"},
    tools=(WEATHER,),
)
