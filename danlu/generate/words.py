"""Words and phrases that requests name, as text or as token ids: their types, and how long each may be.

The limits bound what a request can cost before its first token: checking is linear in them, and so is preparing.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator

from danlu.config import Options

# Tokens of one sequence, characters of one text.
LONGEST_IDS, LONGEST_TEXT = 1024, 8192
# Words to avoid, phrases to force, ways to say one of them, biases: more than anybody has asked for.
MOST_WORDS, MOST_PHRASES, MOST_ALTERNATIVES = 16384, 64, 256
MOST_BIASES = 4096
# Texts that an answer may be one of; characters of a regular expression or a grammar.
MOST_CHOICES, LONGEST_FORM = 4096, 2**16

Words = str | tuple[int, ...]


def no_switch(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is asked for, not true or false")
    return value


Count = Annotated[int, BeforeValidator(no_switch)]
Number = Annotated[float, BeforeValidator(no_switch)]
Token = Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(no_switch)]
Ids = Annotated[tuple[Token, ...], Field(min_length=1, max_length=LONGEST_IDS, fail_fast=True)]
Text = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]
AnyWords = Text | Ids
Texts = Annotated[tuple[Text, ...], Field(min_length=1, max_length=MOST_ALTERNATIVES, fail_fast=True)]
IdLists = Annotated[tuple[Ids, ...], Field(min_length=1, max_length=MOST_ALTERNATIVES, fail_fast=True)]
Alternatives = Annotated[tuple[AnyWords, ...], Field(min_length=1, max_length=MOST_ALTERNATIVES, fail_fast=True)]


class Phrase(Options):
    """A constraint: this phrase must appear in the answer."""

    phrase: AnyWords = Field(description="text, or token ids")

    @property
    def alternatives(self) -> tuple[Words, ...]:
        return (self.phrase,)


class Choice(Options):
    """A constraint: one of these phrases must appear in the answer."""

    choice: Alternatives = Field(description="each text, or token ids; none begins another")

    @property
    def alternatives(self) -> tuple[Words, ...]:
        return self.choice

    @field_validator("choice")
    @classmethod
    def _none_begins_another(cls, choice: tuple[Words, ...]) -> tuple[Words, ...]:
        refuse_beginnings(choice)
        return choice


def refuse_beginnings(choice: tuple[Words, ...]) -> None:
    """Raise ValueError where one of the words begins another; sorted, the two would be neighbours."""
    for kind in (str, tuple):
        for short, long in pairwise(sorted(words for words in choice if isinstance(words, kind))):
            if long[: len(short)] == short:
                raise ValueError(
                    f"{long!r} begins with {short!r}, so it could never be the one that counts; drop {long!r}"
                )


def _kind(constraint: Any) -> str:
    chooses = "choice" in constraint if isinstance(constraint, Mapping) else hasattr(constraint, "choice")
    return "Choice" if chooses else "Phrase"  # as the models are called: places of faults leave such names out


Constraint = Annotated[Annotated[Phrase, Tag("Phrase")] | Annotated[Choice, Tag("Choice")], Discriminator(_kind)]
