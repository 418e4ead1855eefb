"""A language model as a judge: what it gives each score at the one place where the score is due.

Nothing is parsed from prose. The prompt ends with the beginning of the judge's own answer ("Score:"), so that the next
token is the score; every token that spells it is summed, with a space before it or a line's end after it, or after a
space that is a token of its own. What is left over is told as the mass outside. Knows rubrics and the engine; what
becomes of a reading is said in scale.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from danlu.data.records import Message
from danlu.device import DtypeName
from danlu.errors import DanluError, ModelError
from danlu.evaluate import prompts
from danlu.evaluate.rows import Row
from danlu.evaluate.rubrics import Rubric
from danlu.evaluate.scale import Failed, Reading
from danlu.fingerprint import of_value, of_weights
from danlu.generate.engine import Engine, Prompt
from danlu.hub import Say, cache_directory, resolve, silent

# Of what a judge says next. Below this it does not say a score, and what is left is noise.
LEAST_MASS = 1e-4

# A change here makes every reading another one: those that are kept are not used again.
VERSION = 2

_FULL_WIDTH = "０１２３４５６７８９"


class Judge(Protocol):
    """Whatever gives readings.

    Attributes:
        name: as it is called in reports.
        identity: two judges of one identity give the same readings.
    """

    name: str
    identity: str

    def read(self, rubric: Rubric, rows: Sequence[Row]) -> list[Reading | Failed]:
        """One reading a row, in order; a row that it cannot judge is Failed, and no other suffers."""


class LocalJudge:
    """A model on this machine.

    Args:
        engine: answers.
        name: of the model.
        identity: of its weights.
    """

    def __init__(self, engine: Engine, name: str, identity: str) -> None:
        self.engine, self.name = engine, name
        self._is_base = engine.kind().is_base
        self._digits = DigitTokens.of(engine.chat.tokenizer)
        self.identity = of_value([identity, self._is_base, VERSION])

    @classmethod
    def open(
        cls, name: str, dtype: DtypeName = "auto", adapter: str | None = None, accept_licence: bool = False,
        say: Say = silent,
    ) -> LocalJudge:  # fmt: skip
        """The judge of a known name, a directory, a .gguf file or a hub id."""
        directory = resolve(name, cache=cache_directory(), say=say, accept_licence=accept_licence)
        digests = [of_weights(place) for place in (directory, adapter and Path(adapter).expanduser()) if place]
        engine = Engine(name, dtype, adapter, accept_licence=accept_licence, say=say)
        return cls(engine, name if adapter is None else adapter, of_value([digests, dtype]))

    def read(self, rubric: Rubric, rows: Sequence[Row]) -> list[Reading | Failed]:
        """As `Judge.read`. Raises ModelError for a model that has no token for one of the scores."""
        digits = self._digits.for_scores(rubric.scores)
        asked: list[Prompt | None] = []
        found: list[Reading | Failed] = []
        for row in rows:
            try:
                asked.append(self._prompt(rubric, row))
                found.append(Failed(""))
            except (prompts.Unjudgeable, DanluError) as error:
                asked.append(None)
                found.append(Failed(_first_line(error)))
        places = [at for at, prompt in enumerate(asked) if prompt is not None]
        read = self._read([self.engine.token_ids(asked[at]) for at in places], digits)  # type: ignore[arg-type]
        for at, one in zip(places, read, strict=True):
            found[at] = one
        return found

    def _prompt(self, rubric: Rubric, row: Row) -> Prompt:
        text, lead = prompts.question(rubric, row), prompts.lead(rubric, row)
        if self._is_base:
            return self.engine.chat.words_prompt(f"{text}\n\n{lead}")
        said: list[Message] = [{"role": "user", "content": text}, {"role": "assistant", "content": lead}]
        return self.engine.chat_of().prompt(said, continue_final_message=True)

    def _read(self, asked: Sequence[list[int]], digits: list[list[int]]) -> list[Reading | Failed]:
        """Of prompts as token ids; after each, and after each with a space."""
        space = self._digits.space
        flat = [token for tokens in digits for token in tokens]
        seen = self.engine.next_logprobs(asked, flat if space is None else [*flat, space], then=space)
        sizes = [len(tokens) for tokens in digits]
        return [Failed(_first_line(one)) if isinstance(one, DanluError) else _reading(one, sizes) for one in seen]


def _reading(logprobs: torch.Tensor, sizes: Sequence[int]) -> Reading | Failed:
    """Of the digits' tokens, so many a score, (tokens,); or (2, tokens + 1), with the space and what comes after it."""
    seen = logprobs.exp()
    shares = seen if seen.ndim == 1 else seen[0, :-1] + seen[0, -1] * seen[1, :-1]
    return reading_of([float(part.sum()) for part in shares.split(list(sizes))])


def reading_of(masses: Sequence[float]) -> Reading | Failed:
    """What is made of what each score was given."""
    total = sum(masses)
    if not total >= LEAST_MASS:
        return Failed(f"the judge says no score: all of them together have probability {total:.2g}")
    return Reading(tuple(masses), max(0.0, 1.0 - total))


class DigitTokens:
    """The tokens that spell a digit and nothing else but white space.

    Attributes:
        space: the token that stands for a space before a digit, where that is one of its own; else None.
    """

    def __init__(self, tokens: dict[int, list[int]], space: int | None) -> None:
        self.tokens, self.space = tokens, space

    @classmethod
    def of(cls, tokenizer: Any) -> DigitTokens:
        found: dict[int, list[int]] = {digit: [] for digit in range(10)}
        names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        likely = [at for at, name in enumerate(names) if name is not None and sum(map(str.isdigit, str(name))) == 1]
        texts = tokenizer.batch_decode([[at] for at in likely])
        for at, text in zip(likely, texts, strict=True):
            if text.strip().isdecimal() and len(text.strip()) == 1:
                found[int(text.strip())].append(at)
        for digit, char in enumerate(_FULL_WIDTH):  # in bytes, where a tokenizer works on bytes
            ids = tokenizer.encode(char, add_special_tokens=False)
            if len(ids) == 1 and ids[0] not in found[digit]:
                found[digit].append(ids[0])
        spaced = tokenizer.encode(" 5", add_special_tokens=False)
        space = spaced[0] if len(spaced) == 2 and spaced[1] in found[5] else None
        return cls(found, space)

    def for_scores(self, scores: Sequence[int]) -> list[list[int]]:
        """Of each score, its tokens. Raises ModelError where one has none."""
        if missing := [score for score in scores if not self.tokens[score]]:
            raise ModelError(
                f"the judge has no token for {missing[0]}", fix="name another model, or a rubric of another scale"
            )
        return [self.tokens[score] for score in scores]


def _first_line(error: Exception) -> str:
    return error.seen if isinstance(error, DanluError) else str(error).partition("\n")[0]
