"""Where a text may be cut so that its pieces, tokenized each by itself, have the ids that the whole has.

Two kinds of cuts. Where the tokenizer's splitting pattern always begins a new piece: before the space in front of a
word, after a word, after a single line end. And between two Chinese characters, or one and a full stop or the like,
which no token of the vocabulary reaches across: what no token spans, no merge ever joins. A tokenizer whose parts do
not say so for certain gets no cuts. Many texts are cut in one go.

Knows no messages and no templates.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# Splitting patterns of which no match holds a space after anything but white space: a single space between two other
# characters always begins a new piece. Of more white space before a letter, all but the last character is one match (or
# two, after its last line end), and a last space goes with the letter. No letter or number takes in what follows it and
# is neither; punctuation may. Letters run on, with at most one other character in front.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # nothing but a space in front
_PARTS_AT_SPACES = {
    _GPT2,
    # Llama 3, GLM 4, Tekken
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)"
    r"|\s+",
    # Qwen 2, 2.5, 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    # Qwen 3.5
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
}
_LOCAL_STEPS = {"NFC", "NFKC", "NFD", "NFKD", "Lowercase", "Replace", "Split", "Digits", "ByteLevel", "Punctuation"}

WIDEST = 16  # blocks without a place to cut, after which none is looked for

Codes = npt.NDArray[np.uint32]  # code points
Flags = npt.NDArray[np.bool_]
_HAN, _STOP = 1, 2  # Chinese characters; full stops and the like, no two of which are parted
_STOPS = "、。，：；！？“”‘’（）《》【】「」…—"
_KINDS = np.zeros(0x110000, np.uint8)
_KINDS[0x4E00:0xA000] = _HAN
_KINDS[[ord(stop) for stop in _STOPS]] = _STOP
_SPACES = np.zeros(0x110000, np.bool_)
_SPACES[[code for code in range(0x3001) if chr(code).isspace()]] = True
_LETTERS = _KINDS == _HAN
_LETTERS[[ord(letter) for letter in string.ascii_letters]] = True
_WORDS = _LETTERS.copy()
_WORDS[[ord(digit) for digit in string.digits]] = True
_OTHERS = np.zeros(0x110000, np.bool_)  # what ends a word, but the apostrophe, which may begin an ending such as 's
_OTHERS[[ord(other) for other in {*string.punctuation, *" \t\n\r"} - {"'"}]] = True
_SIGNS = _OTHERS & ~_SPACES


class Cuts:
    """Args:
    backend: the tokenizer's part in Rust; None for one that has code of its own.
    """

    def __init__(self, backend: Any) -> None:
        self.is_local = backend is not None and _is_local(backend) and not _reaches_out(backend)
        self.joiners = _joiners(backend) if self.is_local else None
        self._splits = self.joiners is not None and _splits_for_certain(backend)
        self._parts_signs = self._splits and _is_gpt2(backend)
        self._added = finder(_added(backend)) if self._splits else None  # in such a text, nothing is cut
        self._spans = _spans_of(backend) if self.joiners is not None else None
        self._unparted = _SPACES.copy()  # after these, a space begins no new piece
        self._unparted[[ord(joiner) for joiner in self.joiners or ()]] = True

    def pieces(self, texts: Sequence[str]) -> tuple[list[str], npt.NDArray[np.int64]]:
        """(the pieces of all texts, in order, at least one of each; which of them is the first of each text)."""
        if self.joiners is None or not texts:
            return list(texts), np.arange(len(texts))
        whole = "\n".join(texts) + "\n"
        codes = np.frombuffer(whole.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        follows = np.cumsum([len(text) + 1 for text in texts])  # where the next text begins
        is_text = np.zeros(len(codes) + 1, np.bool_)
        is_text[follows] = is_text[0] = True
        is_piece = is_text.copy()
        for at in self._inside(codes):
            is_piece[at] = True
        if self._added is not None and self._added(whole):
            for text, follow in zip(texts, follows.tolist(), strict=True):
                if self._added(text):
                    is_piece[follow - len(text) : follow] = False
        is_piece[follows - 1] = False  # the line ends between texts belong to none
        is_piece |= is_text  # an empty text is a piece
        starts = np.flatnonzero(is_piece)
        stops = starts[1:] - is_text[starts[1:]]
        cut = [whole[start:stop] for start, stop in zip(starts[:-1].tolist(), stops.tolist(), strict=True)]
        return cut, np.flatnonzero(is_text[starts[:-1]])

    def blocks(self, text: str, size: int) -> Iterator[str]:
        """The text in blocks of at most `size` characters, each of whole pieces; longer where nothing is cut.

        A text in which `size * WIDEST` characters have no place to cut is left whole from there on.
        """
        if self.joiners is None or (self._added is not None and self._added(text)):
            yield text
            return
        start, room = 0, size
        while len(text) - start > room and room <= size * WIDEST:
            # A place is judged by the characters on its two sides, which must be those of the whole text.
            codes = np.frombuffer(text[start : start + room].encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
            last = max((int(places[places < room - 1].max(initial=0)) for places in self._inside(codes)), default=0)
            if last:
                yield text[start : start + last]
                start, room = start + last, size
            else:
                room *= 2
        yield text[start:]

    def _inside(self, codes: Codes) -> Iterator[npt.NDArray[np.int64]]:
        """Where a piece begins that is not the first of a text: before none of the line ends between texts."""
        spaces = np.flatnonzero(codes[1:-1] == ord(" ")) + 1
        before, after = codes[spaces - 1], codes[spaces + 1]
        yield spaces[~(self._unparted[before] | _SPACES[after])]
        if self._splits:
            yield spaces[_SPACES[before] & _LETTERS[after]]
            is_word, is_other = _WORDS[codes], _OTHERS[codes]
            yield np.flatnonzero(is_word[:-1] & is_other[1:]) + 1
            if self._parts_signs:
                yield np.flatnonzero(_SIGNS[codes[:-1]] & is_word[1:]) + 1
            ends = np.flatnonzero(codes[1:-1] == ord("\n")) + 1
            yield ends[~(_SPACES[codes[ends - 1]] | _SPACES[codes[ends + 1]])] + 1
        if self._spans is not None and codes.max(initial=0) >= 0x4E00:
            kinds = _KINDS[codes]
            both = kinds[:-1] * kinds[1:]
            pairs = np.flatnonzero((both == _HAN * _HAN) | (both == _HAN * _STOP)) + 1
            yield pairs[~self._spans.over(codes[pairs - 1], codes[pairs])]


class _Spans:
    """Pairs of characters, of three bytes each in UTF-8, that some token reaches across.

    A token may hold the last one, two or three bytes of the first and the first one, two or three of the second. Each
    of the nine kinds has a table of flags under a hash of both; a pair that hits another's flag is not cut, no more.
    """

    _BITS = 20

    def __init__(self) -> None:
        self._tables: dict[tuple[int, int], Flags] = {}

    def add(self, sizes: tuple[int, int], first: Codes, second: Codes) -> None:
        """Args: how many bytes of both; those bytes without their marks, as code points have them."""
        if len(first):
            table = self._tables.setdefault(sizes, np.zeros(2**self._BITS, np.bool_))
            table[self._hash(first, second)] = True

    def over(self, first: Codes, second: Codes) -> Flags:
        found = np.zeros(len(first), np.bool_)
        for (left, right), table in self._tables.items():
            found |= table[self._hash(first & np.uint32((1 << 6 * left) - 1), second >> np.uint32(18 - 6 * right))]
        return found

    def _hash(self, first: Codes, second: Codes) -> Codes:
        mixed = (first * np.uint32(0x9E3779B1)) ^ (second * np.uint32(0x85EBCA77))  # of 32 bits, the upper are mixed
        return mixed >> np.uint32(32 - self._BITS)


def _spans_of(backend: Any) -> _Spans | None:
    """What tokens reach across; None where Chinese characters beside each other cannot be told apart for certain."""
    vocabulary = [*backend.get_vocab(with_added_tokens=False)]
    spans = _Spans()
    spans.add((3, 3), *_pairs(_added(backend)))
    if any(step["type"] == "ByteLevel" for step in _parts_of(backend.pre_tokenizer)):
        _add_bytes(spans, vocabulary)
    elif backend.model.byte_fallback or not backend.model.fuse_unk:
        if any("<0x" in token and len(token) > 6 for token in vocabulary):
            return None
        spans.add((3, 3), *_pairs(vocabulary))
    else:
        return None
    return spans


def _pairs(tokens: Iterable[str]) -> tuple[Codes, Codes]:
    """Neighbours inside the tokens."""
    codes = np.frombuffer("\n".join(tokens).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    wide = np.flatnonzero((_KINDS[codes[:-1]] > 0) & (_KINDS[codes[1:]] > 0))
    return codes[wide], codes[wide + 1]


def _add_bytes(spans: _Spans, tokens: Iterable[str]) -> None:
    """The same of tokens whose characters stand for bytes."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    end = 256
    values = np.full(0x110000, end, np.int32)
    for value, character in bytes_to_unicode().items():
        values[ord(character)] = value
    text = "\n\n\n" + "\n".join(tokens) + "\n\n\n"  # no character of a token is a line end
    row = values[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)]
    ends, goes_on, begins = row == end, row & ~0x3F == 0x80, row & ~0x0F == 0xE0
    at = np.flatnonzero(begins[3:-3] & ~ends[2:-4]) + 3  # of the second character, the first byte
    low = (row & 0x3F).astype(np.uint32)
    six, twelve = np.uint32(6), np.uint32(12)
    one = low[at - 1]
    two = (low[at - 2] << six) | one
    three = ((row[at - 3] & 0x0F).astype(np.uint32) << twelve) | two
    last = goes_on[at - 1]
    left = {
        1: (last & ends[at - 2], one),
        2: (last & goes_on[at - 2] & ends[at - 3], two),
        3: (last & goes_on[at - 2] & begins[at - 3], three),
    }
    head = (row[at] & 0x0F).astype(np.uint32)
    middle = (head << six) | low[at + 1]
    right = {
        1: (ends[at + 1], head),
        2: (goes_on[at + 1] & ends[at + 2], middle),
        3: (goes_on[at + 1] & goes_on[at + 2], (middle << six) | low[at + 2]),
    }
    for size, (is_first, first) in left.items():
        for length, (is_second, second) in right.items():
            both = is_first & is_second
            spans.add((size, length), first[both], second[both])


def _parts_of(component: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, as their files describe them."""
    if component is None:
        return []
    described = json.loads(component.__getstate__())
    return list(described.get("normalizers") or described.get("pretokenizers") or [described])


def _is_local(backend: Any) -> bool:
    """No step treats the beginning of a text otherwise than the beginning of a piece."""
    steps = _parts_of(backend.normalizer) + _parts_of(backend.pre_tokenizer)
    return (
        all(step["type"] in _LOCAL_STEPS for step in steps)
        and type(backend.model).__name__ == "BPE"
        and not backend.model.dropout
        and not (backend.model.continuing_subword_prefix or backend.model.end_of_word_suffix)
        and not backend.encode_special_tokens
    )


def _reaches_out(backend: Any) -> bool:
    """Some added token takes in what stands beside it."""
    added = backend.get_added_tokens_decoder().values()
    return any(token.lstrip or token.rstrip or token.single_word for token in added)


def _joiners(backend: Any) -> frozenset[str] | None:
    """Characters after which a space begins no new piece; None where a space never does so for certain."""
    if any(re.search(r"\S\s", token.content) for token in backend.get_added_tokens_decoder().values()):
        return None
    normalizers, splits = _parts_of(backend.normalizer), _parts_of(backend.pre_tokenizer)
    if _is_replacing(backend):
        return _joined_by_tokens(backend, normalizers[0], splits)
    if any(step["type"] != "NFC" for step in normalizers):
        return None
    patterns = [step["pattern"].get("Regex") for step in splits if step["type"] == "Split"]
    levels = [step for step in splits if step["type"] == "ByteLevel"]
    if len(patterns) + len(levels) + sum(step["type"] == "Digits" for step in splits) < len(splits):
        return None
    if any(step["add_prefix_space"] for step in levels) or not set(patterns) <= _PARTS_AT_SPACES:
        return None
    return frozenset() if patterns or any(step["use_regex"] for step in levels) else None


def _is_replacing(backend: Any) -> bool:
    return [step["type"] for step in _parts_of(backend.normalizer)] == ["Replace"]


def _splits_for_certain(backend: Any) -> bool:
    """A pattern splits, and no added token is found in a text that does not show it."""
    decoder = backend.get_added_tokens_decoder().values()
    return not _is_replacing(backend) and not (backend.normalizer and any(token.normalized for token in decoder))


def _is_gpt2(backend: Any) -> bool:
    patterns = [step["pattern"].get("Regex") for step in _parts_of(backend.pre_tokenizer) if step["type"] == "Split"]
    return all(pattern == _GPT2 for pattern in patterns)


def _added(backend: Any) -> list[str]:
    return [token.content for token in backend.get_added_tokens_decoder().values()]


def finder(names: Iterable[str]) -> Callable[[str], bool]:
    """Whether a text holds one of the names. A search for a known first character is many times as fast as for any."""
    rests: dict[str, list[str]] = {}
    for name in filter(None, names):
        rests.setdefault(name[0], []).append(re.escape(name[1:]))
    searches = [re.compile(f"{re.escape(first)}(?:{'|'.join(each)})").search for first, each in rests.items()]
    return lambda text: any(search(text) for search in searches)


def _joined_by_tokens(backend: Any, replace: dict[str, Any], splits: Sequence[dict[str, Any]]) -> frozenset[str] | None:
    """Where spaces become "▁" and nothing is split: what no token of the vocabulary reaches across, no merge does."""
    if replace["pattern"] != {"String": " "} or replace["content"] != "▁":
        return None
    if any(step["type"] != "Split" or step["pattern"] != {"String": " "} for step in splits):
        return None
    vocabulary = backend.get_vocab(with_added_tokens=False)
    if "▁" not in vocabulary:
        return None
    reaching = (token for token in vocabulary if "▁" in token[1:])
    return frozenset("▁").union(before for token in reaching for before in re.findall("([^▁])▁", token))
