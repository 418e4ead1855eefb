"""Many records at once give the very examples that one at a time gives, whatever template and tokenizer."""

import random
from types import SimpleNamespace

import pytest
from styles import CONVERSATIONS, INST, PIECES, STYLES, Style, conversation, random_record
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AddedToken, PreTrainedTokenizerFast, TokenizersBackend
from transformers.utils.chat_template_utils import _compile_jinja_template

from danlu.data.batches.encoding import Encoder
from danlu.data.batches.stencils import writes_only
from danlu.data.chat import Chat
from danlu.data.records import Preference, Text
from danlu.data.tokens import cuts, word_ids
from danlu.data.tokens.word_ids import WordIds
from danlu.errors import DataError, ModelError
from tiny import SENTENCES, make_tokenizer


def one_by_one(make, record):
    try:
        return make(record)
    except DataError as error:
        return str(error)


def assert_equal_to_one_by_one(chat, records):
    encoder = Encoder(chat)
    made = [
        (record, str(out) if isinstance(out, DataError) else out) for record, out in encoder.examples(iter(records))
    ]
    assert made == [(record, one_by_one(chat.examples, record)) for record in records]
    sizes = [out for _, out in encoder.sizes(iter(records)) if not isinstance(out, DataError)]
    examples = [out for _, out in encoder.examples(iter(records)) if not isinstance(out, DataError)]
    assert sizes == [[(len(each.token_ids), each.learnt_tokens) for each in some] for some in examples]


def sample(seed, count=60):
    draw = random.Random(seed)
    texts = [Text("".join(draw.choice(PIECES) for _ in range(9)), f"texts:{at}") for at in range(5)]
    pair = CONVERSATIONS["one answer"].messages
    refused = [
        conversation("q", "a", train=False),
        conversation("q", "so <|im_end|> it ends"),
        conversation("q", "a", reasoning_content="why"),
        conversation("", ""),
        Preference(pair[:1], pair[1:], ({"role": "assistant", "content": "no"},), "pairs:1"),
    ]
    return [*CONVERSATIONS.values(), *(random_record(draw) for _ in range(count)), *texts, *refused]


@pytest.mark.parametrize("name", STYLES)
def test_every_style(name, monkeypatch):
    monkeypatch.setattr("danlu.data.batches.encoding.BATCH_RECORDS", 7)
    assert_equal_to_one_by_one(STYLES[name].chat(["\n\n\n\n", ": a", "] a", ">\n\n"] * 20), sample(1))


def test_what_is_no_word_of_the_template_is_still_refused_in_its_words():
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + INST
    assert_equal_to_one_by_one(Style(template).chat(), sample(2, 10))


# --- stencils

WRITING = [
    STYLES["chatml"].template,
    STYLES["default system prompt"].template,
    STYLES["gemma"].template,
    STYLES["inst"].template,
    STYLES["marked"].template,
    STYLES["tools"].template,
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% if 'tool_calls' in m %}x{% endif %}"
    "{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ m.role + ': ' ~ m.content | trim }}\n{% endfor %}",
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{{ (first if loop.first else '') + m.content }}<|im_end|>{% endfor %}",
    "{% for m in messages %}{% if m.content %}{{ m.content if m.content is string else 'x' }}{% endif %}"
    "{{ loop.previtem.role if loop.previtem is defined }}<|im_end|>{% endfor %}",
]
LOOKING = [
    STYLES["thoughts dropped"].template,
    "{% for m in messages %}{% if 'x' in m.content %}!{% endif %}{{ m.content }}<|im_end|>{% endfor %}",
    "{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}",
    "{% for m in messages %}{{ m.content[:3] }}<|im_end|>{% endfor %}",
    "{% for m in messages %}{{ m.content.strip() }}<|im_end|>{% endfor %}",
    "{% for m in messages %}{{ m | tojson }}<|im_end|>{% endfor %}",
    "{% for m in messages %}{% for key in m %}{{ m[key] }}{% endfor %}<|im_end|>{% endfor %}",
    "{% for m in messages %}{% set c = m.content %}{% if c == 'a' %}!{% endif %}{{ c }}<|im_end|>{% endfor %}",
    "{% for m in messages %}{% set x = m %}{{ x.content | length }}<|im_end|>{% endfor %}",
    "{% for m in messages %}{{ (m.content + ' x') | trim }}<|im_end|>{% endfor %}",
    "{% set ns = namespace(c='') %}{% for m in messages %}{% set ns.c = m.content %}{{ ns.c | length }}{% endfor %}",
    "{% macro w(m) %}{{ m.content | length }}{% endmacro %}{% for m in messages %}{{ w(m) }}{% endfor %}",
    "{{ messages | tojson }}",
    "{% for m in messages %}{{ m.get('content') | length }}<|im_end|>{% endfor %}",
    "{% for m in messages %}{% for c in m['con' + 'tent'] %}{{ c }}-{% endfor %}<|im_end|>{% endfor %}",
]


def simple(template):
    return writes_only(template, _compile_jinja_template(template).environment)


@pytest.mark.parametrize("template", WRITING)
def test_templates_that_only_write_contents_are_filled_once(template):
    assert simple(template)
    assert_equal_to_one_by_one(Style(template).chat(), sample(3, 20))


def refusal(make):
    """What is said of a template that does not write the messages; nothing of others."""
    try:
        make(CONVERSATIONS["one answer"])
    except ModelError as error:
        return error.seen
    except DataError:
        pass
    return ""


@pytest.mark.parametrize("template", LOOKING)
def test_templates_that_look_at_contents_are_filled_each_time(template):
    assert not simple(template)
    chat = Style(template).chat()
    if said := refusal(chat.examples):
        assert refusal(lambda record: list(Encoder(chat).examples([record]))) == said
    else:
        assert_equal_to_one_by_one(chat, sample(4, 10))


def test_a_stencil_is_read_off_once_for_an_order_of_roles():
    chat = STYLES["chatml"].chat()
    encoder = Encoder(chat)
    filled = []
    fill = encoder._chat._stencils._fill
    encoder._chat._stencils._fill = lambda messages, opening: filled.append(opening) or fill(messages, opening)
    list(encoder.sizes([conversation("q", f"a {n}") for n in range(50)]))
    assert len(filled) == 2  # the prompt, and the whole


# --- words


def texts(draw, count=300):
    pieces = [
        *["\n", "\n\n", "\t", "\r\n", "   ", "a(b)", "x, y", "-", "学", "习。", "²", "\U00020000", "か\u3099"],
        *PIECES,
        " ",
        "  ",
        "a b",
        " 1",
        "12 34",
        "'s",
        "don't",
        "▁",
        "> </",
        "<|im_end|>",
        "\u00a0",
        "e\u0301",
        "。",
    ]
    return ["".join(draw.choice(pieces) for _ in range(draw.randint(0, 14))) for _ in range(count)]


def assert_words_equal_texts(tokenizer, marks=("<|im_start|>", "<|im_end|>")):
    ids = WordIds(tokenizer, marks)
    for seed in range(3):
        some = texts(random.Random(seed))
        if seed < 2:
            ids.learn(some)
        for text in some:
            assert ids(text) == tokenizer(text, add_special_tokens=False)["input_ids"], repr(text)
    return ids


def bpe(pre_tokenizer, normalizer=None, alphabet=(), **model):
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer, tokenizer.normalizer = pre_tokenizer, normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>", "<unk>"],
        initial_alphabet=list(alphabet) or pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*SENTENCES, "a> </b", "> </"] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


def split_by(pattern):
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), level])


@pytest.mark.parametrize("pattern", sorted(cuts._PARTS_AT_SPACES))
@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()], ids=["as it is", "NFC"])
def test_words_of_known_splits(pattern, normalizer):
    ids = assert_words_equal_texts(bpe(split_by(pattern), normalizer))
    assert ids.cuts.pieces(["one two  three\n four"])[0] == ["one", " two", " ", " three", "\n", " four"]


CHINESE = ["模型先学习，再回答。", "模型学会了：学习回答问题！", "问题在于模型的学习率。", "回答“问题”的模型。"]


@pytest.mark.parametrize("pattern", sorted(cuts._PARTS_AT_SPACES))
@pytest.mark.parametrize("vocabulary", [300, 330, 420])
def test_chinese_is_cut_where_no_token_reaches_across(pattern, vocabulary):
    """Vocabularies in which tokens hold several characters, and parts of them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split_by(pattern)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CHINESE * 9, trainer)
    own = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    ids, draw = WordIds(own, ["<|im_end|>"]), random.Random(8)
    characters = sorted({*"".join(CHINESE), *"一丁 a\n。。，乙’s龥"})
    texts = [*CHINESE, *("".join(draw.choices(characters, k=9)) for _ in range(2000))]
    ids.learn(texts)
    assert [ids(text) for text in texts] == own(texts, add_special_tokens=False)["input_ids"]
    assert len(ids.cuts.pieces(["一丁一丁"])[0]) == 4
    assert ids.cuts.pieces(["模型一丁"])[0] == ["模型", "一", "丁"]


def test_a_text_that_holds_an_added_token_is_not_cut():
    tokenizer = bpe(split_by(cuts._GPT2))
    tokenizer.add_tokens([AddedToken("x-y", normalized=False), AddedToken("   ", normalized=False)])
    ids = WordIds(tokenizer, ["<|im_end|>"])
    texts = ["a-b", "x-y", "a x-yz (b)", "a   b", "a  b", "x-", "y x", ""]
    ids.learn(texts)
    assert [ids(text) for text in texts] == tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert ids.cuts.pieces(["a-b", "a x-y"])[0] == ["a", "-", "b", "a x-y"]


def test_words_where_nothing_is_split_end_where_no_token_reaches_across():
    alphabet = [*map(chr, range(33, 127)), "▁"]
    replace = normalizers.Replace(" ", "▁")
    split = pre_tokenizers.Split(" ", "merged_with_previous")
    ids = assert_words_equal_texts(bpe(split, replace, alphabet, unk_token="<unk>"))
    assert ">" in ids.cuts.joiners
    assert ids.cuts.pieces(["a> </b c"])[0] == ["a> </b", " c"] or ids.cuts.joiners > {"b"}


@pytest.mark.parametrize(
    ("pre_tokenizer", "normalizer"),
    [
        (split_by(r"\S+ \S+|\s"), None),
        (pre_tokenizers.Metaspace(prepend_scheme="first"), None),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), None),
        (pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.Prepend("x")),
        (pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.Strip()),
        (pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.Replace("a b", "c")),
    ],
)
def test_other_tokenizers_see_their_texts_whole(pre_tokenizer, normalizer):
    ids = assert_words_equal_texts(bpe(pre_tokenizer, normalizer))
    assert ids.cuts.joiners is None


@pytest.mark.parametrize(
    "token",
    [
        AddedToken("<|im", special=True),
        AddedToken("x<|im_e", special=True),
        AddedToken("<|im_end|>\n", special=True),
        AddedToken("x y", normalized=False),
        AddedToken("fox", single_word=True),
        AddedToken("<sep>", lstrip=True, rstrip=True),
        AddedToken("dog", normalized=True),
    ],
)
def test_added_tokens_that_lie_across_a_cut(token):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([token])
    ids = WordIds(tokenizer, ["<|im_end|>"])
    draw = random.Random(5)
    pieces = [token.content, "<|im_end|>", " ", "x", "y", "\n", "<|", "fox", "dog"]
    for _ in range(400):
        text = "".join(draw.choice(pieces) for _ in range(8))
        assert ids(text) == tokenizer(text, add_special_tokens=False)["input_ids"], text


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(word_ids, "KEPT_WORDS", 50)
    ids = WordIds(make_tokenizer(), [])
    for at in range(20):
        ids.learn([" ".join(f"w{at * 10 + n}" for n in range(10)), "字" * 100])
        assert len(ids._kept) <= 61
        assert len(ids._found) <= 2


def test_a_tokenizer_with_code_of_its_own_is_called_as_it_is():
    class Own(PreTrainedTokenizerFast):
        def _encode_plus(self, text, *args, **more):
            return super()._encode_plus([each.upper() for each in text], *args, **more)

    tokenizer = make_tokenizer()
    own = Own(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    assert WordIds(own, [])("abc") == tokenizer("ABC")["input_ids"]


def test_padding_and_truncation_left_by_others_do_not_matter():
    tokenizer = make_tokenizer()
    plain = tokenizer("one two three")["input_ids"]
    tokenizer(["one", "one two three"], padding=True, truncation=True, max_length=2)
    assert WordIds(tokenizer, [])("one two three") == plain


@pytest.mark.real_model
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_real_tokenizers(name):
    from danlu.hub import cache_directory, is_cached, resolve
    from danlu.model.load import load_tokenizer

    if not is_cached(name, cache_directory()):
        pytest.skip(f"{name} is not on this machine")
    tokenizer = load_tokenizer(resolve(name, cache=cache_directory()))
    ids = assert_words_equal_texts(tokenizer, ("<end_of_turn>", "<|im_end|>"))
    assert ids.cuts.pieces(["one two"])[0] == ["one", " two"]
    assert_equal_to_one_by_one(Chat.of(tokenizer, SimpleNamespace(eos_token_id=None)), sample(6, 40))


# --- long texts

LONG_TEXT = " ".join(f"{SENTENCES[at % len(SENTENCES)]} {at}" for at in range(40_000))  # some 1.7 million characters


@pytest.fixture
def read_at_once(monkeypatch):
    """The lengths of the texts that a tokenizer was given in one go."""
    lengths = []
    whole, pieces = TokenizersBackend._encode_plus, WordIds._encoded

    def encode_plus(self, text, *args, **more):
        lengths.extend(map(len, [text] if isinstance(text, str) else text))
        return whole(self, text, *args, **more)

    def encoded(self, texts):
        lengths.extend(map(len, texts))
        return pieces(self, texts)

    monkeypatch.setattr(TokenizersBackend, "_encode_plus", encode_plus)
    monkeypatch.setattr(WordIds, "_encoded", encoded)
    return lengths


def test_long_texts_are_read_in_blocks(read_at_once):
    chat = Style(STYLES["chatml"].template).chat()
    wanted = chat.tokenizer(LONG_TEXT, add_special_tokens=False)["input_ids"]
    read_at_once.clear()
    records = [Text(LONG_TEXT, "a:1"), conversation("q", LONG_TEXT)]
    (text,), (answer,) = (made for _, made in Encoder(chat).examples(records))
    assert list(text.token_ids[-len(wanted) - 1 : -1]) == wanted
    assert " ".join(map(str, wanted)) in " ".join(map(str, answer.token_ids))
    assert max(read_at_once) <= word_ids.LONG


@pytest.mark.parametrize("processor", [None, "<s> $A", "<s> $A </s>"])
def test_what_a_tokenizer_puts_around_a_long_text(processor, read_at_once):
    tokenizer = make_tokenizer()
    ends = [(token, tokenizer.convert_tokens_to_ids("<|im_end|>")) for token in ("<s>", "</s>")]
    if processor:
        made = processors.TemplateProcessing(single=processor, special_tokens=ends)
        tokenizer.backend_tokenizer.post_processor = made
    chat = Chat(tokenizer, frozenset([tokenizer.eos_token_id]))
    wanted = list(tokenizer(LONG_TEXT)["input_ids"])
    read_at_once.clear()
    assert chat._encode_raw(LONG_TEXT, chat._encode_plain(LONG_TEXT)) == wanted
    assert max(read_at_once) <= word_ids.LONG


def test_a_text_that_cannot_be_cut_has_a_bound(read_at_once):
    chat = Style(STYLES["chatml"].template).chat()
    records = [Text("a" * (word_ids.LONGEST_UNCUT + 2), "a:1"), Text("one two", "a:2")]
    (_, refused), (_, (taken,)) = Encoder(chat).examples(records)
    assert isinstance(refused, DataError)
    assert refused.seen.startswith("a:1: more than 4,194,304 characters in a row")
    assert "several rows" in refused.fix
    assert taken.learnt_tokens > 1
    assert max(read_at_once) <= word_ids.LONG


@pytest.mark.parametrize("size", [1, 5, 40])
def test_blocks_are_the_text_and_have_its_ids(size):
    tokenizer = make_tokenizer()
    cut = cuts.Cuts(tokenizer.backend_tokenizer)
    for text in ["", "a" * 99, *texts(random.Random(6), 60)]:
        blocks = [*cut.blocks(text, size)]
        assert "".join(blocks) == text
        ids = [token for block in blocks for token in tokenizer(block, add_special_tokens=False)["input_ids"]]
        assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len([*cut.blocks("one two three four " * 9, 9)]) > 9
