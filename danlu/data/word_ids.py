"""Text -> token ids for very many texts: each word is tokenized once, and looked up from then on.

A tokenizer is fast, and its calls are slow: a text costs as much as its words, however often it has seen them. Most
tokenizers take a text apart at their control tokens and at spaces before they do anything else, and what stands
between two cuts does not depend on its neighbours. Where that can be told from the tokenizer's own parts, ids are put
together from those of the pieces; where it cannot, whole texts are tokenized, many in one call. The ids are always
those of `tokenizer(text, add_special_tokens=False)`.

Knows no messages and no templates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from transformers import TokenizersBackend
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

KEPT_WORDS = 200_000  # about 40 MB
LONGEST_KEPT = 24  # characters; what is longer will hardly come again

# Splitting patterns of which no match holds a space after anything but white space: a single space between two other
# characters always begins a new piece.
_PARTS_AT_SPACES = {
    # GPT-2
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    # Llama 3, GLM 4, Tekken
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)"
    r"|\s+",
    # Qwen 2, 2.5, 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    # Qwen 3.5
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
}


class WordIds:
    """Ids of texts from the ids of their pieces. Memory is bounded by KEPT_WORDS and one batch.

    Args:
        tokenizer: a transformers tokenizer.
        marks: tokens that the texts are likely to hold, such as those between turns.
    """

    def __init__(self, tokenizer: Any, marks: Iterable[str]) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer if _is_plain(tokenizer) else None
        self._kept: dict[str, tuple[int, ...]] = {}
        self._segments: dict[str, tuple[int, ...]] = {}
        self._marks, self._joiners = None, None
        if self._backend is not None and _is_local(self._backend) and not _reaches_out(self._backend):
            if cuts := _own_marks(self._backend, marks):
                self._marks = re.compile(f"({'|'.join(map(re.escape, cuts))})")
            self._joiners = _joiners(self._backend)

    @property
    def marks(self) -> re.Pattern[str] | None:
        """The tokens at which every text is cut, what stands between two of them being tokenized on its own."""
        return self._marks

    def learn(self, texts: Iterable[str], segments: Iterable[str] = ()) -> None:
        """Tokenize ahead, in one call, texts and segments without marks; forget the segments of the call before."""
        if len(self._kept) > KEPT_WORDS:
            self._kept.clear()
        new = {segment for text in texts for segment in self._split(text)}.union(segments)
        if self._joiners is None:
            self._segments = self._tokenized(new)
            return
        known, found, pending = self._kept.__getitem__, dict[str, tuple[int, ...]](), dict[str, list[str]]()
        for segment in new:
            words = self._words(segment)
            try:
                found[segment] = tuple(chain.from_iterable(map(known, words)))
            except KeyError:
                pending[segment] = words
        once = self._tokenized({word for words in pending.values() for word in words if word not in self._kept})
        self._kept.update((word, ids) for word, ids in once.items() if len(word) <= LONGEST_KEPT)
        for segment, words in pending.items():
            ids = (self._kept[word] if word in self._kept else once[word] for word in words)
            found[segment] = tuple(chain.from_iterable(ids))
        self._segments = found

    def segment(self, segment: str) -> tuple[int, ...]:
        """Ids of a text without marks."""
        if segment not in self._segments:
            self._segments |= self._tokenized({segment})
        return self._segments[segment]

    def __call__(self, text: str) -> list[int]:
        segments = self._split(text)
        try:
            return list(chain.from_iterable(map(self._segments.__getitem__, segments)))
        except KeyError:
            self._segments.update(self._tokenized({part for part in segments if part not in self._segments}))
        return list(chain.from_iterable(map(self._segments.__getitem__, segments)))

    def _split(self, text: str) -> list[str]:
        return [text] if self._marks is None else self._marks.split(text)

    def _tokenized(self, texts: set[str]) -> dict[str, tuple[int, ...]]:
        new = list(texts)
        if not new:
            return {}
        if self._backend is None:
            found = self._tokenizer(new, add_special_tokens=False)["input_ids"]
        else:
            self._backend.no_truncation()
            self._backend.no_padding()
            found = [encoding.ids for encoding in self._backend.encode_batch_fast(new, add_special_tokens=False)]
        return dict(zip(new, map(tuple, found), strict=True))

    def _words(self, segment: str) -> list[str]:
        """Cut before each single space that has something else on both sides."""
        first, *rest = segment.split(" ")
        if not rest:
            return [first]
        words = [first, *rest]
        if "" in words or _has_odd_spaces(segment) or self._joins(words):
            return self._odd_words(words)
        return [first, *[" " + word for word in rest]]

    def _joins(self, words: Sequence[str]) -> bool:
        return bool(self._joiners) and any(word[-1] in self._joiners for word in words)  # type: ignore[operator]

    def _odd_words(self, words: Sequence[str]) -> list[str]:
        pieces = [words[0]]
        for word in words[1:]:
            before = pieces[-1][-1:]
            if before.strip() and word[:1].strip() and before not in (self._joiners or ()):
                pieces.append(" " + word)
            else:
                pieces[-1] += " " + word
        return pieces


def _has_odd_spaces(text: str) -> bool:
    """White space other than a space may stand beside a space. Of all white space, only a space is printable."""
    return "\n " in text or " \n" in text or not text.replace("\n", "").isprintable()


def _is_plain(tokenizer: Any) -> bool:
    """Calling the tokenizer is calling its backend: no code of a model's own stands between."""
    kind = type(tokenizer)
    return (
        isinstance(tokenizer, TokenizersBackend)
        and kind._encode_plus is TokenizersBackend._encode_plus
        and kind.__call__ is PreTrainedTokenizerBase.__call__
        and not tokenizer.split_special_tokens
    )


def _parts_of(component: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, as their files describe them."""
    if component is None:
        return []
    described = json.loads(component.__getstate__())
    return list(described.get("normalizers") or described.get("pretokenizers") or [described])


_LOCAL_STEPS = {"NFC", "NFKC", "NFD", "NFKD", "Lowercase", "Replace", "Split", "Digits", "ByteLevel", "Punctuation"}


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


def _own_marks(backend: Any, marks: Iterable[str]) -> list[str]:
    """Those of `marks` that are found in a text wherever they stand, whatever else is looked for."""
    added = {token.content for token in backend.get_added_tokens_decoder().values() if not token.normalized}
    chosen = [mark for mark in dict.fromkeys(marks) if mark in added]
    return [mark for mark in chosen if not any(_may_hide(other, mark) for other in added - {mark})]


def _may_hide(other: str, mark: str) -> bool:
    """A text may hold `other` over the beginning of `mark`, where it would be found first."""
    return mark in other or any(mark.startswith(other[at:]) for at in range(1, len(other)) if other[at] == mark[0])


def _joiners(backend: Any) -> frozenset[str] | None:
    """Characters after which a space begins no new piece; None where a space never does so for certain."""
    if any(re.search(r"\S\s", token.content) for token in backend.get_added_tokens_decoder().values()):
        return None
    normalizers, splits = _parts_of(backend.normalizer), _parts_of(backend.pre_tokenizer)
    if [step["type"] for step in normalizers] == ["Replace"]:
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
