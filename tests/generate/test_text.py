"""Text as it grows: characters over several tokens, and stop strings, in three kinds of tokenizers."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from danlu.generate.scores.history import Automaton
from danlu.generate.scores.text import ByBytes, ByWindow, Detokenizer, Pieces, TextStream, detokenizer, word_forms
from tiny import make_tokenizer

TEXT = "the fox 丹炉把数据炼成模型, naïve 👩‍🔬🇨🇳 one two"
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def wrapped(tokenizer: Tokenizer) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", clean_up_tokenization_spaces=False)


def sentencepiece(strip: bool) -> Any:
    """Words of two kinds and bytes for all else, decoded as Llama 2 (strip) or Gemma does."""
    words = ["</s>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACE, "a", "t", "the", f"{SPACE}the", f"{SPACE}fox"]
    bpe = Tokenizer(models.BPE({word: at for at, word in enumerate(words)}, [], byte_fallback=True))
    bpe.add_special_tokens(["</s>"])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    bpe.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    return wrapped(bpe)


def wordpiece() -> Any:
    words = {word: at for at, word in enumerate(["</s>", "the", "fox", "##es", "炉"])}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="</s>"))
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return wrapped(tokenizer)


BYTE_LEVEL = make_tokenizer()


def pieces_of(words: Detokenizer, tokens: list[int]) -> list[str]:
    return [*(words.append(token) for token in tokens), words.finish()]


def as_bytes(text: str) -> list[int]:
    """Sentencepiece ids of the bytes of a text."""
    return [1 + byte for byte in text.encode()]


# -- characters


@pytest.mark.parametrize("kind", ["bytes", "window"])
def test_pieces_together_are_the_text(kind):
    tokens = BYTE_LEVEL.encode(TEXT, add_special_tokens=False)
    words = detokenizer(BYTE_LEVEL) if kind == "bytes" else ByWindow(BYTE_LEVEL)
    pieces = pieces_of(words, tokens)
    assert "".join(pieces) == TEXT == BYTE_LEVEL.decode(tokens)
    assert not any("\ufffd" in piece for piece in pieces)
    assert "" in pieces  # inside a character


def test_the_fast_way_is_taken_where_the_decoder_is_known():
    assert isinstance(detokenizer(BYTE_LEVEL), ByBytes)
    assert isinstance(detokenizer(sentencepiece(strip=True)), ByBytes)
    assert isinstance(detokenizer(sentencepiece(strip=False)), ByBytes)
    assert isinstance(detokenizer(wordpiece()), ByWindow)
    other = sentencepiece(strip=True)
    other.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(Regex("x"), " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    assert not Pieces.can_read(other)


def test_random_tokens_as_the_tokenizer_decodes_them():
    dice = random.Random(0)
    for _ in range(50):
        tokens = [dice.randrange(len(BYTE_LEVEL)) for _ in range(30)] + BYTE_LEVEL.encode("end")
        assert "".join(pieces_of(detokenizer(BYTE_LEVEL), tokens)) == BYTE_LEVEL.decode(
            tokens, skip_special_tokens=True
        )


@pytest.mark.parametrize("strip", [True, False])
def test_sentencepiece_by_hand(strip):
    tokenizer = sentencepiece(strip)
    the, fox = tokenizer.convert_tokens_to_ids([f"{SPACE}the", f"{SPACE}fox"])
    tokens = [the, fox, *as_bytes("炉👩"), 0, the]
    pieces = pieces_of(detokenizer(tokenizer), tokens)
    first = "the" if strip else " the"
    assert pieces == [first, " fox", "", "", "炉", "", "", "", "👩", "", " the", ""]
    assert "".join(pieces) == tokenizer.decode(tokens, skip_special_tokens=True)


def test_words_joined_by_the_tokenizer_itself():
    tokens = [1, 2, 3, 0, 4]
    pieces = pieces_of(detokenizer(wordpiece()), tokens)
    assert pieces == ["the", " fox", "es", "", " 炉", ""]
    assert "".join(pieces) == wordpiece().decode(tokens, skip_special_tokens=True)


def test_what_goes_on_with_a_prompt_joins_its_last_words():
    assert pieces_of(detokenizer(wordpiece()).after([1, 0, 2]), [3, 4]) == ["es", " 炉", ""]
    assert pieces_of(detokenizer(wordpiece()).after([0]), [1, 2]) == ["the", " fox", ""]


@pytest.mark.parametrize("prompt", ["丹" * 9, "a丹" * 9, "é" * 9, "👩" * 9])
def test_a_prompt_of_bytes_is_not_looked_at_from_inside_a_character(prompt):
    tokenizer = sentencepiece(strip=True)
    for words in (detokenizer(tokenizer), ByWindow(tokenizer)):
        assert "".join(pieces_of(words.after(as_bytes(prompt)), as_bytes(" 炉"))) == " 炉"


def test_half_a_character_at_the_end_is_left_out():
    for words in (detokenizer(BYTE_LEVEL), ByWindow(BYTE_LEVEL)):
        tokens = BYTE_LEVEL.encode("a👩", add_special_tokens=False)
        assert "".join(pieces_of(words, tokens[:-1])) == "a"


def test_bytes_that_are_no_character_are_shown_once_that_is_certain():
    tokenizer = sentencepiece(strip=False)
    (a,) = tokenizer.convert_tokens_to_ids(["a"])
    assert pieces_of(detokenizer(tokenizer), [1 + 0xE4, a, 1 + 0x80, a]) == ["", "\ufffda", "\ufffd", "a", ""]


def test_control_tokens_are_left_out_unless_asked_for():
    end = BYTE_LEVEL.eos_token_id
    assert detokenizer(BYTE_LEVEL).append(end) == ""
    assert detokenizer(BYTE_LEVEL, skip_special_tokens=False).append(end) == "<|im_end|>"
    assert detokenizer(BYTE_LEVEL).append(10**6) == ""  # models have more rows than their tokenizer has words


@pytest.mark.parametrize("words", [detokenizer(BYTE_LEVEL), ByWindow(BYTE_LEVEL)])
def test_a_text_forks_inside_a_character(words):
    tokens = BYTE_LEVEL.encode("炉", add_special_tokens=False)
    words = words.fork()
    assert words.append(tokens[0]) == ""
    other = words.fork()
    assert [words.append(token) for token in tokens[1:]][-1] == "炉"
    assert [other.append(token) for token in tokens[1:]][-1] == "炉"


# -- stop strings


class Letters:
    """A detokenizer whose token n is the n-th of some strings."""

    def __init__(self, *strings: str) -> None:
        self.strings = strings

    def append(self, token: int) -> str:
        return self.strings[token]

    def finish(self) -> str:
        return ""

    def fork(self) -> Letters:
        return self


def run(stream: TextStream, count: int) -> list[str]:
    pieces: list[str] = []
    for token in range(count):
        if stream.stop is None:
            pieces.append(stream.push(token))
    return [*pieces, stream.finish()]


@pytest.mark.parametrize(
    ("strings", "stops", "pieces", "stop"),
    [
        (["ab", "cd"], [], ["ab", "cd", ""], None),
        (["ab", "cd"], ["bc"], ["a", "", ""], "bc"),  # over tokens, and it ends inside one
        (["ab", "xd"], ["bc"], ["a", "bxd", ""], None),  # it was none
        (["aSTOPb"], ["STOP"], ["a", ""], "STOP"),  # inside one token
        (["ab"], ["bc"], ["a", "b"], None),  # held at the end
        (["aa", "ab"], ["aab"], ["", "a", ""], "aab"),  # overlapping beginnings
        (["丹", "炉成"], ["炉成型", "炉"], ["丹", "", ""], "炉"),  # the first to be complete
        (["xyz"], ["yz", "xyz"], ["", ""], "xyz"),  # complete at once: the longest
        (["xyz"], ["z", "xy"], ["", ""], "xy"),
        (["👩", "‍", "🔬!"], ["‍🔬"], ["👩", "", "", ""], "‍🔬"),
    ],
)
def test_stops_by_hand(strings, stops, pieces, stop):
    stream = TextStream(Letters(*strings), stops)
    assert run(stream, len(strings)) == pieces
    assert (stream.stop, stream.text) == (stop, "".join(pieces))


def test_a_stop_can_be_kept():
    stream = TextStream(Letters("ab", "cde"), ["bc"], include_stop=True)
    assert run(stream, 2) == ["a", "bc", ""]
    assert stream.stop == "bc"


def test_a_stop_waits_until_the_answer_is_long_enough():
    stream = TextStream(Letters("aSb", "S", "c"), ["S"])
    assert stream.push(0, armed=False) == "aSb"
    assert stream.push(1, armed=False) == "S"
    assert stream.push(2) == "c"
    early = TextStream(Letters("aS", "To"), ["ST"])
    assert [early.push(0, armed=False), early.push(1)] == ["a", ""]  # it ends in time
    assert early.stop == "ST"


def test_nothing_of_a_stop_is_ever_handed_out_early():
    dice = random.Random(4)
    for _ in range(300):
        strings = ["".join(dice.choice("abc") for _ in range(dice.randint(0, 3))) for _ in range(8)]
        stops = ["".join(dice.choice("abc") for _ in range(dice.randint(1, 4))) for _ in range(dice.randint(1, 3))]
        stream = TextStream(Letters(*strings), stops)
        text = "".join(strings)
        ends = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text]
        run(stream, 8)
        assert stream.text == (text[: min(ends)[1]] if ends else text)
        assert stream.stop == (min(ends)[2] if ends else None)


def test_stops_of_token_ids():
    tokens = Automaton([[1, 2]])
    stream = TextStream(Letters("a", "b", "c", "d"), [], tokens)
    assert [stream.push(0), stream.push(1), stream.push(2)] == ["a", "", ""]
    assert (stream.stop, stream.text) == ((1, 2), "a")
    broken = TextStream(Letters("a", "b", "c", "d"), [], tokens)
    assert [broken.push(0), broken.push(1), broken.push(3), broken.finish()] == ["a", "", "bd", ""]
    kept = TextStream(Letters("a", "b", "c"), [], tokens, include_stop=True)
    assert run(kept, 3) == ["a", "", "bc", ""]
    late = TextStream(Letters("a", "b", "c", "d"), [], tokens)
    assert [late.push(1, armed=False), late.push(2, armed=False), late.push(3)] == ["", "", "bcd"]


def test_stops_of_both_kinds():
    stream = TextStream(Letters("x", "ab", "cd"), ["bc"], Automaton([[1, 2]]))
    assert run(stream, 3) == ["x", "", "a", ""]
    assert stream.stop == "bc"  # it is complete first
    assert stream.text == "xa"


def test_a_stream_forks():
    stream = TextStream(Letters("ab", "c", "x"), ["bc"])
    stream.push(0)
    other = stream.fork()
    assert (stream.push(1), other.push(2)) == ("", "bx")
    assert (stream.text, stream.stop) == ("a", "bc")
    assert (other.text, other.stop) == ("abx", None)


def test_words_in_both_forms():
    for form in word_forms(BYTE_LEVEL, "fox"):
        assert BYTE_LEVEL.decode(list(form)).strip() == "fox"
    assert len(word_forms(BYTE_LEVEL, "fox")) == 2
    assert word_forms(wordpiece(), "fox") == [(2,)]
