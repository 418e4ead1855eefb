"""Where an answer's text begins: what is added to a text that it goes on with, or a text by itself after an opening.

With tokenizers of three kinds: one that drops a text's first space (Llama 2, Mistral), one whose decoder is read by
itself (Metaspace), and one that drops nothing (Gemma).
"""

from __future__ import annotations

import asyncio

import pytest
import torch
from answering import fixed_scores
from serving import CHAT, TEXT, events
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from danlu import Engine, GenerationParams
from danlu.data.chat import Chat
from danlu.errors import ConfigError
from danlu.generate.scores.text import ByBytes, ByWindow, detokenizer
from danlu.model.turns import Finding

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
WORDS = ["the", "is", "a", "fox", "user", "assistant"]
NAMES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS, *(SPACE + word for word in WORDS)]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} {{ m.role }} {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %} assistant{% endif %}"
)
MESSAGES = [{"role": "user", "content": "the fox"}]
PREFILLED = [*MESSAGES, {"role": "assistant", "content": "the fox"}]
FOX = NAMES.index(f"{SPACE}fox")


def tokenizer_of(kind):
    """Whole words with and without a space before; the rest byte by byte."""
    whole = Tokenizer(models.Unigram([(name, -1.0) for name in NAMES], 0, byte_fallback=True))
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "metaspace":
        whole.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "always", False)
        whole.decoder = decoders.Metaspace(SPACE, "always", False)
    else:
        spaces = [normalizers.Replace(" ", SPACE)]
        whole.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE)] * (kind == "strip") + spaces)
        whole.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * (kind == "strip"))
    whole.add_special_tokens(["<s>", "</s>"])
    marks = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=whole, clean_up_tokenization_spaces=False, **marks)


@pytest.fixture(scope="module", params=["strip", "metaspace", "none"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def engine(kind):
    """An engine that answers "fox" with a space before it, again and again."""
    config = LlamaConfig(
        vocab_size=len(NAMES),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    made = Engine.around(LlamaForCausalLM(config), Chat(tokenizer_of(kind), frozenset({2}), TEMPLATE))
    with pytest.MonkeyPatch.context() as patch:
        fixed_scores(made, patch, {FOX: 5.0, 2: -5.0})
        yield made
    made.close()


@pytest.fixture
def instruct(engine, monkeypatch):
    monkeypatch.setattr(engine._kinds, "of", lambda _adapter: Finding("instruct", "a test says so"))


def text_of(engine, prompt, **knobs):
    (result,) = engine.generate([prompt], GenerationParams(**{"max_new_tokens": 2, **knobs}))
    return result.text


def test_both_ways_of_making_text_are_tried(engine, kind):
    assert isinstance(detokenizer(engine.chat.tokenizer), ByWindow if kind == "metaspace" else ByBytes)


@pytest.mark.parametrize("skip", [True, False])
def test_a_text_is_gone_on_with_as_the_tokenizer_writes_both_together(engine, skip):
    tokenizer = engine.chat.tokenizer
    prompts = ["the fox is", "the", engine.token_ids("the fox is"), engine.chat.words_prompt("the fox"), [3 + 0xE7]]
    prompts += [engine.chat.prompt(PREFILLED, continue_final_message=True)]
    for prompt in prompts:
        (result,) = engine.generate([prompt], GenerationParams(max_new_tokens=2, skip_special_tokens=skip))
        ids = list(result.prompt_token_ids)
        whole = tokenizer.decode([*ids, *result.sequences[0].token_ids], skip_special_tokens=skip)
        assert whole == tokenizer.decode(ids, skip_special_tokens=skip) + result.text
        assert result.text == " fox fox"


def test_an_answer_is_a_text_by_itself(engine, kind):
    opened = engine.token_ids(MESSAGES)
    assert text_of(engine, MESSAGES) == text_of(engine, opened) == text_of(engine, engine.token_ids(opened))
    assert text_of(engine, MESSAGES) == text_of(engine, [1]) == (" fox fox" if kind == "none" else "fox fox")


def test_pieces_and_what_leads_begin_alike(engine):
    knobs = GenerationParams(max_new_tokens=3)
    for prompt in ("the fox", MESSAGES):
        pieces = list(engine.stream(prompt, knobs))
        assert (
            "".join(piece.text for piece in pieces)
            == pieces[-1].answer.text
            == text_of(engine, prompt, max_new_tokens=3)
        )
        beams = list(engine.stream(prompt, GenerationParams(max_new_tokens=3, num_beams=2)))
        assert beams[0].leading == pieces[0].text
        assert asyncio.run(engine.agenerate(prompt, knobs)).text == pieces[-1].answer.text


def test_stop_sequences_see_the_space(engine, kind):
    assert text_of(engine, "the", stop_sequences=(" fox",)) == ""
    assert text_of(engine, MESSAGES, stop_sequences=(" fox",)) == ("" if kind == "none" else "fox")


def test_what_has_a_form_is_a_text_by_itself(engine, kind):
    form = " fox" if kind == "none" else "fox"
    if kind == "metaspace":
        with pytest.raises(ConfigError, match="cannot be followed with this model's tokenizer"):
            text_of(engine, "the", regex=form)
    else:
        assert text_of(engine, "the", regex=form) == form


def test_prompt_and_completion_join(engine, post):
    wish = {"model": "tiny", "max_tokens": 2, "logprobs": 1}
    for prompt in ("the fox is", engine.token_ids("the fox is")):
        (echoed,) = post(TEXT, {**wish, "prompt": prompt, "echo": True}).json()["choices"]
        assert echoed["text"].endswith("the fox is fox fox")
        whole, offsets = echoed["text"], echoed["logprobs"]["text_offset"]
        assert [whole[at:] for at in offsets[-2:]] == [" fox fox", " fox"]
        (alone,) = post(TEXT, {**wish, "prompt": prompt}).json()["choices"]
        assert (alone["text"], alone["logprobs"]["text_offset"]) == (" fox fox", [0, 4])
        pieces = events(post(TEXT, {**wish, "prompt": prompt, "stream": True}))
        assert "".join(piece["choices"][0]["text"] for piece in pieces) == " fox fox"


def test_a_completion_of_nothing_begins_a_text(engine, kind, post):
    first = " fox" if kind == "none" else "fox"
    (one,) = post(TEXT, {"model": "tiny", "prompt": [1], "max_tokens": 2, "logprobs": 1}).json()["choices"]
    assert one["logprobs"]["text_offset"] == [0, len(first)]
    assert one["text"] == f"{first} fox"


def said(post, **more):
    (choice,) = post(CHAT, {"model": "tiny", "messages": MESSAGES, "max_tokens": 2, **more}).json()["choices"]
    return choice["message"]["content"]


def test_a_base_models_chat_goes_on_with_its_text(engine, monkeypatch, post):
    monkeypatch.setattr(engine._kinds, "of", lambda _adapter: Finding("base", "a test says so"))
    assert said(post) == " fox fox"


@pytest.mark.usefixtures("instruct")
def test_a_chat_answer_begins_anew_but_where_it_goes_on(kind, post):
    assert said(post) == (" fox fox" if kind == "none" else "fox fox")
    goes_on = {"messages": PREFILLED, "add_generation_prompt": False, "continue_final_message": True}
    assert said(post, **goes_on) == " fox fox"
