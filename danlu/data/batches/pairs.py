"""Preferences -> pairs of examples -> batches. A pair is one prompt with a better and a worse answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from danlu.data.batches.encoding import Encoder
from danlu.data.batches.packing import Batch, collate, micro_batches
from danlu.data.chat import Chat
from danlu.data.example import Example
from danlu.data.records import Conversation, Preference, Record
from danlu.errors import DataError


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt, each as an example that learns the answer alone.

    Attributes:
        margin: by how much the better one is better, where the data says so; None elsewhere.
    """

    chosen: Example
    rejected: Example
    margin: float | None = None

    @property
    def place(self) -> str:
        return self.chosen.place

    @property
    def group(self) -> str | None:
        return self.chosen.group

    @property
    def tokens(self) -> int:
        return len(self.chosen.token_ids) + len(self.rejected.token_ids)


@dataclass(frozen=True)
class PairBatch:
    """Pairs laid end to end: each better answer, then its worse one.

    Attributes:
        documents: of 2 n documents, the tokens.
        margins: (n,) float32, 0 where none is known.
        pairs: those it was made of.
    """

    documents: Batch
    margins: Tensor
    pairs: tuple[Pair, ...]


def collate_pairs(pairs: Sequence[Pair], device: str = "cpu") -> PairBatch:
    """One batch of these pairs, on `device`."""
    documents = collate(list(chain.from_iterable((pair.chosen, pair.rejected) for pair in pairs)))
    margins = torch.tensor([pair.margin or 0.0 for pair in pairs], dtype=torch.float32, device=device)
    return PairBatch(documents.to(device), margins, tuple(pairs))


def for_each_pair(pairs: Sequence[Pair], max_tokens: int, device: str, ask: Callable[[PairBatch], Tensor]) -> Tensor:
    """(n, 2) float32: what `ask` says of better and worse answers, batch by batch, in the order of the pairs."""
    found = torch.empty(len(pairs), 2)
    for group in micro_batches([pair.tokens for pair in pairs], range(len(pairs)), max_tokens):
        found[group] = ask(collate_pairs([pairs[at] for at in group], device)).float().cpu()
    return found


def no_preference(record: Record) -> DataError:
    """What to say of a row that is no preference."""
    return DataError(
        f"{record.place}: learning from preferences needs two answers; this row is a {type(record).__name__.lower()}",
        allowed='rows with "chosen" and "rejected", and a prompt',
        fix="use kind: sft for single answers, or name your columns with data.columns",
    )


def pairs_of(
    records: Iterable[Record],
    chat: Chat,
    *,
    max_length: int,
    skip_too_long: bool = False,
    skip: Callable[[str, str], None] | None = None,
) -> Iterator[Pair]:
    """Preferences as pairs, one at a time.

    Args:
        max_length: tokens of a prompt with one answer, at most.
        skip_too_long: leave longer pairs out, instead of an error.
        skip: called with (place, reason) for each record left out; None makes every other fault an error.

    Raises DataError for a record that is no preference, cannot be rendered, is too long, or whose answers are one to
    the model.
    """
    preferences: list[Preference] = []

    def answers() -> Iterator[Record]:
        for record in records:
            if not isinstance(record, Preference):
                raise no_preference(record)
            preferences.append(record)
            yield from _conversations(record)

    made = Encoder(chat).examples(answers())
    for _, better in made:
        _, worse = next(made)
        record = preferences.pop(0)
        try:
            yield _pair(record, better, worse, max_length)
        except _TooLong as error:
            if not skip_too_long or skip is None:
                raise
            skip(record.place, error.seen)
        except DataError as error:
            if skip is None:
                raise
            skip(record.place, error.seen)


def _conversations(record: Preference) -> Iterator[Conversation]:
    prompt = [message | {"train": False} if message["role"] == "assistant" else message for message in record.prompt]
    for answer in (record.chosen, record.rejected):
        yield Conversation((*prompt, *answer), record.place, record.group)


class _TooLong(DataError):
    """A prompt with one of its answers has more tokens than allowed."""


def _pair(
    record: Preference, better: list[Example] | DataError, worse: list[Example] | DataError, max_length: int
) -> Pair:
    for made in (better, worse):
        if isinstance(made, DataError):
            raise made
    chosen, rejected = (_one(made, record.place) for made in (better, worse) if not isinstance(made, DataError))
    if chosen.token_ids == rejected.token_ids:
        raise DataError(
            f"{record.place}: to the model chosen and rejected are the same answer", fix="leave the row out"
        )
    if (size := max(len(chosen.token_ids), len(rejected.token_ids))) > max_length:
        raise _TooLong(
            f"{record.place}: {size} tokens, over data.max_length={max_length}",
            fix="raise data.max_length, or leave such pairs out with data.too_long=skip",
        )
    return Pair(chosen, rejected, record.margin)


def _one(made: list[Example], place: str) -> Example:
    """Up to its last learnt token, with which generation ends: what a template writes after it belongs to no answer."""
    if len(made) == 1:
        (example,) = made
        return example.part(0, len(example.learnt) - example.learnt[::-1].index(True))
    raise DataError(
        f"{place}: the chat template writes earlier answers otherwise once later ones follow: an answer of several "
        "turns is no one sequence",
        fix="keep one turn in chosen and rejected, and the turns before it in the prompt",
    )
