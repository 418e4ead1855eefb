"""What a language model's likelihoods say of an answer, without its being asked for an opinion.

Log-probabilities are in nats a token; each text is continued as plain text, so a base model serves as well. Small
models that cannot follow a rubric still find an answer likelier beside the passage that holds it (Liu et al. 2024,
arXiv:2409.16658: what separates made-up text, whatever the model's size). Knows rows and the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from danlu.errors import DanluError
from danlu.evaluate.rows import Row
from danlu.evaluate.scale import Failed
from danlu.evaluate.sentences import sentences
from danlu.generate.engine import Engine

Embed = Callable[[Sequence[str]], NDArray[np.float32]]

# Of what was asked, or the passage where nothing was: so many tokens are found likely or not after an answer.
ASKED_TOKENS = 128

SIGNALS: Mapping[str, str] = {
    "likelihood": "log p of the answer after context and question (Yuan et al. 2021, BARTScore)",
    "context_gain": "the same, less log p of the answer after the question alone",
    "least_supported": "context_gain of the sentence that has least of it (the minimum, as in Zha et al. 2023)",
    "asked_given_answer": "log p of the question after the answer, less that without it; without a question, of the "
    "passage's beginning",
    "likeness": "cosine of the embeddings of the answer and of the question, or the passage where there is none",
}


class Likelihoods:
    """Signals of one model.

    Args:
        engine: of any language model, base or instruct.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._apart: dict[str, float] = {}  # of what is asked, its log p after nothing

    def of(self, rows: Sequence[Row]) -> list[dict[str, float] | Failed]:
        """The signals of each row that it has texts for, in order."""
        ready = [self._prepared(row) for row in rows]
        jobs = [
            (at, name, *pair) for at, one in enumerate(ready) if isinstance(one, dict) for name, pair in one.items()
        ]
        seen = self.engine.continuation_logprobs([prompt for _, _, prompt, _ in jobs], [ids for *_, ids in jobs])
        parts: list[dict[str, Tensor | DanluError]] = [{} for _ in rows]
        for (at, name, _, _), found in zip(jobs, seen, strict=True):
            parts[at][name] = found
        return [self._signals(row, one, part) for row, one, part in zip(rows, ready, parts, strict=True)]

    def _prepared(self, row: Row) -> dict[str, tuple[list[int], list[int]]] | Failed:
        """Name -> (prompt, continuation), in token ids."""
        answer = (row.answer or "").strip()
        if not answer:
            return {}
        try:
            ids = [token for sentence in sentences(answer) for token in self.ids(sentence)]
            if not ids:
                return {}
            asked = {"with": self.prompt(row.given("context"), row.given("question"))}
            if row.given("context") is not None:
                asked["without"] = self.prompt(None, row.given("question"))
            found = {name: (prompt, ids) for name, prompt in asked.items()}
            if target := row.given("question") or row.given("context"):
                wanted = self.ids(target)[:ASKED_TOKENS]
                found["asked"] = (self.prompt(answer, None), wanted)
                if target not in self._apart:
                    found["apart"] = (self.prompt(None, None), wanted)
        except DanluError as error:
            return Failed(error.seen)
        return found

    def _signals(
        self, row: Row, ready: Mapping[str, object] | Failed, part: Mapping[str, Tensor | DanluError]
    ) -> dict[str, float] | Failed:
        if isinstance(ready, Failed):
            return ready
        if faults := [one for one in part.values() if isinstance(one, DanluError)]:
            return Failed(faults[0].seen)
        seen = {name: one for name, one in part.items() if isinstance(one, Tensor)}
        if "with" not in seen:
            return Failed("an answer without a token has no likelihood")
        found = {"likelihood": float(seen["with"].mean())}
        if "without" in seen:
            gains = seen["with"] - seen["without"]
            sizes = [len(self.ids(sentence)) for sentence in sentences((row.answer or "").strip())]
            found["context_gain"] = float(gains.mean())
            found["least_supported"] = min(float(one.mean()) for one in gains.split(sizes))
        if target := row.given("question") or row.given("context"):
            if "apart" in seen:
                self._apart[target] = float(seen["apart"].mean())
            if "asked" in seen and target in self._apart:
                found["asked_given_answer"] = float(seen["asked"].mean()) - self._apart[target]
        return found

    def prompt(self, *parts: str | None) -> list[int]:
        """Paragraphs, and an open one."""
        text = "".join(f"{part.strip()}\n\n" for part in parts if part)
        return self.engine.chat.words_prompt(text or "\n\n")

    def ids(self, text: str) -> list[int]:
        """Of words that go on with a text: without a beginning of their own."""
        ids, bos = self.engine.chat.words_prompt(text), self.engine.chat.tokenizer.bos_token_id
        return ids[1:] if ids and ids[0] == bos else ids


def likeness(rows: Sequence[Row], embed: Embed) -> list[float | None]:
    """The cosine of an answer's embedding and that of its question, or its context; None where there is neither.

    It finds what an answer is about, and not whether it is right (SimCSE in Zha et al. 2023, table 1: below ROUGE-L).
    """
    places = [at for at, row in enumerate(rows) if (row.answer or "").strip() and _about(row)]
    texts = [text for at in places for text in (rows[at].answer or "", _about(rows[at]) or "")]
    found: list[float | None] = [None] * len(rows)
    if places:
        vectors = embed(texts)
        for at, one, other in zip(places, vectors[::2], vectors[1::2], strict=True):
            found[at] = float(one @ other)
    return found


def _about(row: Row) -> str | None:
    return row.given("question") or row.given("context")
