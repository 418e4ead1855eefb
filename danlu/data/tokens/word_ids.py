"""Text -> token ids for very many texts: each word is tokenized once, and looked up from then on.

A tokenizer is fast, and its calls are slow: a text costs as much as its words, however often it has seen them. Most
tokenizers take a text apart at their control tokens before they do anything else, and between two of them there are
places that no token reaches across (cuts.py). Where that can be told from the tokenizer's own parts, ids are put
together from those of the pieces; where it cannot, whole texts are tokenized, many in one call. The ids are always
those of `tokenizer(text, add_special_tokens=False)`. A long text is taken block by block, and nothing of it is kept.

Knows no messages and no templates.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
from transformers import TokenizersBackend
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from danlu.data.tokens.cuts import WIDEST, Cuts
from danlu.errors import DataError

KEPT_WORDS = 200_000  # about 40 MB
LONGEST_KEPT = 24  # characters; what is longer will hardly come again
LONG = 2**18  # characters of a long text, and of a block of one: some 30 MB while its pieces are made
LONGEST_UNCUT = WIDEST * LONG  # 4 million characters; a tokenizer takes some 250 bytes for each that it reads in one go

_JOINED = 64  # pieces in one call, a mark after each: a short text costs more than its tokens

Ids = tuple[int, ...]


class WordIds:
    """Ids of texts from the ids of their pieces. Memory is bounded by KEPT_WORDS, one batch, and a long text's ids.

    Args:
        tokenizer: a transformers tokenizer.
        marks: tokens that the texts are likely to hold, such as those between turns.
        stop_ids: `learnt` knows no text that holds one of these.
    """

    def __init__(self, tokenizer: Any, marks: Iterable[str], stop_ids: Collection[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._backend: Any = tokenizer.backend_tokenizer if is_plain(tokenizer) else None
        self._stop_ids = frozenset(stop_ids)
        self.cuts = Cuts(self._backend)
        self._kept: dict[str, Ids] = {}
        self._stopping: set[str] = set()  # of the pieces that are kept, those that hold a stop
        self._stopped: set[str] = set()  # of the segments, likewise
        self._passing: list[str] = []  # those that are kept for this batch alone
        self._pieces: list[str] = []  # of all segments of this batch
        self._found: dict[str, tuple[int, int]] = {}  # of each segment, its tokens and which piece is its first
        self.mark_names = _own_marks(self._backend, marks) if self.cuts.is_local else []
        self._marks = re.compile(f"({'|'.join(map(re.escape, self.mark_names))})") if self.mark_names else None

    @property
    def marks(self) -> re.Pattern[str] | None:
        """The tokens at which every text is cut, what stands between two of them being tokenized on its own."""
        return self._marks

    def learn(self, texts: Iterable[str], segments: Iterable[str] = ()) -> None:
        """Tokenize ahead, in one call, texts and segments without marks; forget the segments of the call before.

        Long texts are left until their ids are asked for.
        """
        self._forget()
        short = (text for text in texts if len(text) <= LONG)
        self._learn({segment for text in short for segment in self._split(text)}.union(segments))

    def size(self, segment: str) -> int:
        """Tokens of a text without marks."""
        return self._known(segment)[0]

    def size_after(self, segment: str, head: Ids) -> int | None:
        """Tokens after `head`; None for a text that does not begin with it, or that holds a stop anywhere."""
        size, first = self._known(segment)
        if segment in self._stopped or size < len(head):
            return None
        return size - len(head) if self._ids_from(first, len(head)) == head else None

    def segment(self, segment: str) -> Ids:
        """Ids of a text without marks."""
        size, first = self._known(segment)
        return self._ids_from(first, size)

    def _ids_from(self, piece: int, count: int) -> Ids:
        """The first so many ids of the pieces from this one on."""
        ids: list[int] = []
        while len(ids) < count:
            ids += self._kept[self._pieces[piece]]
            piece += 1
        return tuple(ids[:count])

    def __call__(self, text: str) -> list[int]:
        """Raises DataError for a text that cannot be cut and is longer than LONGEST_UNCUT."""
        if len(text) > LONG:
            return list(chain.from_iterable(map(self._ids_of_blocks, self._blocks(text))))
        return list(chain.from_iterable(map(self.segment, self._split(text))))

    def _blocks(self, text: str) -> Iterator[list[str]]:
        """A long text's segments, those that are long themselves in blocks, together as long as a block."""
        together: list[str] = []
        characters = 0
        for block in chain.from_iterable(self.cuts.blocks(segment, LONG) for segment in self._split(text)):
            if len(block) > LONGEST_UNCUT:
                raise too_long_uncut()
            if together and characters + len(block) > LONG:
                yield together
                together, characters = [], 0
            together.append(block)
            characters += len(block)
        yield together

    def _ids_of_blocks(self, blocks: list[str]) -> Iterator[int]:
        pieces, _ = self.cuts.pieces(blocks)
        new = list(set(pieces).difference(self._kept))
        ids = dict(zip(new, map(tuple, self._tokenized(new)), strict=True))
        words = {piece: each for piece, each in ids.items() if len(piece) <= LONGEST_KEPT}
        if len(self._kept) + len(words) <= KEPT_WORDS:
            self._kept.update(words)
            self._stopping.update(word for word, each in words.items() if not self._stop_ids.isdisjoint(each))
        return chain.from_iterable([ids[piece] if piece in ids else self._kept[piece] for piece in pieces])

    def _split(self, text: str) -> list[str]:
        return [text] if self._marks is None else self._marks.split(text)

    def _known(self, segment: str) -> tuple[int, int]:
        if segment not in self._found:
            self._learn({segment})
        return self._found[segment]

    def _forget(self) -> None:
        self._pieces, self._found, self._stopped = [], {}, set()
        if len(self._kept) > KEPT_WORDS:
            self._kept.clear()
            self._stopping.clear()
        for piece in self._passing:
            self._kept.pop(piece, None)
            self._stopping.discard(piece)
        self._passing = []

    def _learn(self, segments: set[str]) -> None:
        new = list(segments)
        if not new:
            return
        pieces, firsts = self.cuts.pieces(new)
        once = set(pieces)
        self._keep(list(once.difference(self._kept)))
        if ends := once & self._stopping:
            held = [at for at, piece in enumerate(pieces) if piece in ends]
            self._stopped.update(new[at] for at in (np.searchsorted(firsts, held, "right") - 1).tolist())
        each = np.fromiter(map(len, map(self._kept.__getitem__, pieces)), np.int64, len(pieces))
        sizes = np.add.reduceat(each, firsts).tolist()
        self._found.update(zip(new, zip(sizes, (firsts + len(self._pieces)).tolist(), strict=True), strict=True))
        self._pieces += pieces

    def _keep(self, new: list[str]) -> None:
        once = dict(zip(new, map(tuple, self._tokenized(new)), strict=True))
        self._kept.update(once)
        self._passing += [piece for piece in new if len(piece) > LONGEST_KEPT]
        self._stopping.update(piece for piece, ids in once.items() if not self._stop_ids.isdisjoint(ids))

    def _tokenized(self, new: list[str]) -> list[list[int]]:
        if not new:
            return []
        if self._backend is None:
            return list(self._tokenizer(new, add_special_tokens=False)["input_ids"])
        self._backend.no_truncation()
        self._backend.no_padding()
        mark = next((name for name in self.mark_names if not _may_hide(name[1:], name)), None)
        if mark is None or any(mark in piece for piece in new):
            return self._encoded(new)
        end = self._backend.token_to_id(mark)
        joined = [mark.join(new[at : at + _JOINED]) + mark for at in range(0, len(new), _JOINED)]
        return [ids for each in self._encoded(joined) for ids in _parted(each, end)]

    def _encoded(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]


def too_long_uncut() -> DataError:
    """The error of a text that would have to be tokenized in one go."""
    return DataError(
        f"more than {LONGEST_UNCUT:,} characters in a row that the tokenizer cannot read in parts",
        allowed="longer texts with places that no token reaches across, such as spaces between words",
        fix="part the text into several rows; if it is no language (base64, a dump), leave it out",
    )


def _parted(ids: list[int], end: int) -> Iterator[list[int]]:
    """What stands before each `end`."""
    start = 0
    for at in [at for at, token in enumerate(ids) if token == end]:
        yield ids[start:at]
        start = at + 1


def is_plain(tokenizer: Any) -> bool:
    """Calling the tokenizer is calling its backend: no code of a model's own stands between."""
    kind = type(tokenizer)
    return (
        isinstance(tokenizer, TokenizersBackend)
        and kind._encode_plus is TokenizersBackend._encode_plus
        and kind.__call__ is PreTrainedTokenizerBase.__call__
        and not tokenizer.split_special_tokens
    )


def _own_marks(backend: Any, marks: Iterable[str]) -> list[str]:
    """Those of `marks` that are found in a text wherever they stand, whatever else is looked for."""
    added = {token.content for token in backend.get_added_tokens_decoder().values() if not token.normalized}
    chosen = [mark for mark in dict.fromkeys(marks) if mark in added]
    return [mark for mark in chosen if not any(_may_hide(other, mark) for other in added - {mark})]


def _may_hide(other: str, mark: str) -> bool:
    """A text may hold `other` over the beginning of `mark`, where it would be found first."""
    return mark in other or any(mark.startswith(other[at:]) for at in range(1, len(other)) if other[at] == mark[0])
