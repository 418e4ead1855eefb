"""Base or instruct: the model's own end of turn decides, whatever templates and files say; what is left to learn."""

from __future__ import annotations

import json

import pytest
import torch

from danlu.data.chat import Chat
from danlu.data.example import Example
from danlu.data.tokens.templates import CHATML
from danlu.errors import ModelError
from danlu.hub import KNOWN, kind_of_name, recorded_kind, write_origin
from danlu.model.turns import EXCHANGES, LEAST, end_share, find_kind, left_to_learn, named, unknown_tokens
from tiny import CHAT_TEMPLATE, SPECIAL_TOKENS, make_tokenizer

DOCUMENT_END, OPEN, CLOSE = range(3)  # of tiny.SPECIAL_TOKENS
# As base models of the Qwen family have it: the configuration names the end of a document alone.
BASE_ENDS = type("config", (), {"eos_token_id": DOCUMENT_END})


def tokenizer_with(template=CHAT_TEMPLATE, eos="<|endoftext|>", bos=None):
    tokenizer = make_tokenizer()
    tokenizer.chat_template, tokenizer.eos_token, tokenizer.bos_token = template, eos, bos
    return tokenizer


def chat_of(template=CHAT_TEMPLATE, ends=BASE_ENDS, **options):
    return Chat.of(tokenizer_with(template, **options), ends)


def scores_with(share, token=CLOSE, languages=(True, True), chat=None):
    """A model that gives `token` this probability after a text of these languages, and the rest to nothing special."""

    def scores(ids):
        text = (chat or chat_of()).tokenizer.decode(list(ids))
        is_chinese = any("\u4e00" <= one <= "\u9fff" for one in text)
        p = torch.full((len(ids), 320), (1 - share) / 319)
        if languages[is_chinese]:
            p[:, token] = share
        return p.log()

    return scores


def refuse(_ids):
    raise AssertionError("nobody needs to look")


# --- the end of a turn


def test_the_end_that_the_template_writes_ends_answers_too():
    """Or a model that was trained with it never stops."""
    assert chat_of().end_of_turn == CLOSE
    assert chat_of().stop_ids == {DOCUMENT_END, CLOSE}


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        ("{% for m in messages %}{{ m['content'] }}<|endoftext|>{% endfor %}", {DOCUMENT_END}),
        ("{% for m in messages %}{{ m['content'] }}<|im_end|>\n<|endoftext|>{% endfor %}", {DOCUMENT_END}),  # Phi 3's
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}", {DOCUMENT_END}),  # none at all
        ("{{ raise_exception('no plain exchange') }}", {DOCUMENT_END}),
        (None, {DOCUMENT_END}),
    ],
)
def test_where_an_end_is_known_or_none_is_written_nothing_is_added(template, ends):
    assert chat_of(template).stop_ids == ends


# --- base or instruct


@pytest.mark.parametrize(
    ("share", "kind"), [(0.9, "instruct"), (LEAST + 0.01, "instruct"), (0.09, "base"), (1e-9, "base")]
)
def test_the_probability_of_the_end_decides(share, kind):
    finding = find_kind(chat_of(), scores_with(share))
    assert finding.kind == kind
    assert f"after a short answer it gives <|im_end|> a probability of {share:.2g}" in finding.reason


def test_one_language_is_enough_but_one_answer_is_not():
    assert find_kind(chat_of(), scores_with(0.8, languages=(True, False))).kind == "instruct"
    assert find_kind(chat_of(), scores_with(0.8, languages=(False, True))).kind == "instruct"
    seen = []

    def once(ids):  # 0.9 after the first answer of a language alone
        seen.append(ids)
        return scores_with(0.9 if len(seen) in (1, 3) else 0.1)(ids)

    assert end_share(chat_of(), once) == pytest.approx(0.1)


def test_without_a_token_at_the_end_any_end_counts():
    chat = chat_of("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
    assert find_kind(chat, scores_with(0.7, DOCUMENT_END, chat=chat)).kind == "instruct"
    assert find_kind(chat, scores_with(0.7, CLOSE, chat=chat)).kind == "base"


def test_the_model_is_asked_where_the_end_would_stand():
    ends = []

    def scores(ids):
        ends.append(chat_of().tokenizer.decode(list(ids)[-3:]))
        return torch.zeros(len(ids), 320)

    end_share(chat_of(), scores)
    answers = [answer for pairs in EXCHANGES for _, answer in pairs]
    assert all(answer.endswith(end) for answer, end in zip(answers, ends, strict=True))


def test_what_is_known_needs_no_look():
    assert find_kind(chat_of(), refuse, told="base").kind == "base"
    assert find_kind(chat_of(), refuse, told="instruct", recorded="base").kind == "instruct"
    assert find_kind(chat_of(), refuse, recorded="instruct").kind == "instruct"
    assert find_kind(chat_of(), refuse, recorded="base").kind == "base"
    assert find_kind(chat_of(None), refuse).reason == "it has no chat template"
    assert find_kind(chat_of(None), refuse, recorded="instruct").kind == "base"  # nothing can render its messages
    with pytest.raises(ModelError, match="no chat template"):
        find_kind(chat_of(None), refuse, told="instruct")


def test_a_template_that_renders_no_plain_exchange_is_believed():
    assert find_kind(chat_of("{{ raise_exception('no') }}"), refuse).kind == "instruct"


# --- what is left to learn


def examples_of(chat, *messages):
    record = tuple(chat.whole(messages or [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]))
    return [Example(record, tuple(at >= len(record) - 3 for at in range(len(record))))]


def test_tokens_that_the_model_does_not_give_are_learnt():
    chat = chat_of()
    tokens = unknown_tokens(chat, scores_with(1e-6), examples_of(chat))
    assert list(tokens) == [OPEN, CLOSE]
    assert tokens[CLOSE] == pytest.approx(1e-6)
    assert list(named(chat, tokens)) == ["<|im_start|>", "<|im_end|>"]


def test_only_a_base_model_has_something_to_learn():
    chat = chat_of()
    assert list(left_to_learn(chat, scores_with(1e-6), examples_of(chat))[1]) == [OPEN, CLOSE]
    assert left_to_learn(chat, scores_with(0.9), examples_of(chat))[1] == {}
    assert left_to_learn(chat, scores_with(1e-6), examples_of(chat), told="instruct")[1] == {}
    assert left_to_learn(chat_of(None), refuse, [])[1] == {}


def test_a_token_that_it_gives_is_not_learnt_again_unless_it_ends_the_answers():
    chat = chat_of()
    assert list(unknown_tokens(chat, scores_with(0.9, OPEN), examples_of(chat))) == [CLOSE]
    assert list(unknown_tokens(chat, scores_with(0.9, CLOSE), examples_of(chat))) == [OPEN, CLOSE]


def test_the_beginning_of_every_text_is_known():
    template = "{{ bos_token }}" + CHAT_TEMPLATE
    tokenizer = tokenizer_with(template, bos="<|endoftext|>")
    tokenizer.backend_tokenizer.post_processor = beginning_with("<|endoftext|>", DOCUMENT_END)
    chat = Chat.of(tokenizer, BASE_ENDS)
    assert chat.whole([{"role": "user", "content": "a"}])[0] == DOCUMENT_END
    assert list(unknown_tokens(chat, scores_with(1e-6), examples_of(chat))) == [OPEN, CLOSE]


def beginning_with(token, number):
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(single=f"{token} $A", special_tokens=[(token, number)])


def test_a_template_of_plain_words_has_only_an_end_to_learn():
    """Danlu's chatml on a tokenizer without its tokens."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.add_special_tokens([])
    chat = Chat.of(tokenizer_with(CHATML.replace("<|im_start|>", "[").replace("<|im_end|>", "]")), BASE_ENDS)
    assert list(unknown_tokens(chat, scores_with(1e-6), examples_of(chat))) == [DOCUMENT_END]


def test_nothing_is_learnt_that_the_examples_do_not_hold():
    assert len(SPECIAL_TOKENS) == 3
    assert unknown_tokens(chat_of(), scores_with(1e-6), []) == {}


# --- what is written beside a model


def test_a_directory_says_what_it_is(tmp_path):
    assert recorded_kind(tmp_path) is None
    write_origin(tmp_path, source="a run")
    assert recorded_kind(tmp_path) is None
    write_origin(tmp_path, kind="instruct")
    assert recorded_kind(tmp_path) == "instruct"
    assert json.loads((tmp_path / "origin.json").read_text()) == {"source": "a run", "kind": "instruct"}


@pytest.mark.parametrize("text", ["", "[]", '{"kind": "chatty"}', '{"kind": ["base"]}', "[" * 9000, "\ufeff"])
def test_what_others_wrote_says_nothing(tmp_path, text):
    (tmp_path / "origin.json").write_text(text, "utf-8")
    assert recorded_kind(tmp_path) is None


def test_known_models_have_it(tmp_path):
    assert {name: known.kind for name, known in KNOWN.items()} == {"smollm2-135m": "instruct", "gemma3-270m": "base"}
    assert kind_of_name("gemma3-270m", tmp_path) == "base"
    write_origin(tmp_path, kind="instruct")
    assert kind_of_name(str(tmp_path), tmp_path) == "instruct"


@pytest.mark.real_model
@pytest.mark.slow
def test_the_default_model_ends_its_turn():
    from functools import partial

    from danlu.device import Device
    from danlu.hub import cache_directory, resolve
    from danlu.model.company.check import alone
    from danlu.model.load import load_model, load_tokenizer

    directory = resolve("smollm2-135m", cache=cache_directory())
    model = load_model(directory, device=Device("cpu", 1, 10**10, has_bfloat16=False), dtype=torch.float32)
    chat = Chat.of(load_tokenizer(directory), model.generation_config)
    assert end_share(chat, partial(alone, model)) > 0.7
