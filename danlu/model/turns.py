"""Whether a model answers and ends its turn (instruct), or only continues text (base); and which of a template's
tokens it has yet to learn.

A chat template proves nothing: base models carry one too. What tells is the model itself. After a question and a
short answer, laid out as its template has it, a model that was trained on turns ends the turn; one that was not gives
the token that does so next to nothing. What follows from the finding is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from danlu.data.chat import Chat
from danlu.data.example import Example
from danlu.data.records import Message
from danlu.errors import DataError, ModelError
from danlu.hub import Kind

T = TypeVar("T")

# Token ids of one text -> (tokens, vocabulary), the scores after each.
Scores = Callable[[Sequence[int]], Tensor]

# By language, questions and answers after which nothing is left to say. One language that the model knows is enough.
EXCHANGES = (
    (("Name a colour.", "Blue."), ("What is the capital of France?", "The capital of France is Paris.")),
    (("说出一种颜色。", "蓝色。"), ("法国的首都是哪里？", "法国的首都是巴黎。")),
)

# An end of turn that gets less than this after the answers of every language was not learnt. Measured: the instruct
# model SmolLM2-135M 0.79, the base model Gemma 3 270M 3e-10. Where a template ends turns as documents end, a base model
# has learnt that token too: Gemma gives its <eos> 0.09 in such a layout.
LEAST = 0.25


@dataclass(frozen=True)
class Finding:
    """Base or instruct, and why.

    Attributes:
        reason: half a sentence: "it has no chat template".
    """

    kind: Kind
    reason: str

    @property
    def is_base(self) -> bool:
        return self.kind == "base"


def find_kind(chat: Chat, scores: Scores, told: Kind | None = None, recorded: Kind | None = None) -> Finding:
    """Base or instruct: what the user says, else what the files' maker wrote, else what the model shows.

    Raises ModelError for a model told to be instruct whose messages nothing can render.
    """
    if told == "instruct" and not chat.has_template:
        raise ModelError(
            "this model is told to be instruct, and its tokenizer has no chat template",
            fix="leave --kind out; or train it with data.chat_template=chatml, which goes with the merged model",
        )
    if told is not None:
        return Finding(told, "as you say")
    if not chat.has_template:
        return Finding("base", "it has no chat template")
    if recorded is not None:
        return Finding(recorded, "it is known as such" if recorded == "base" else "it was trained on turns")
    share = end_share(chat, scores)
    if share is None:
        return Finding("instruct", "it has a chat template, which does not render a plain exchange")
    name = _name(chat, chat.end_of_turn) if chat.end_of_turn is not None else "the end"
    kind: Kind = "instruct" if share >= LEAST else "base"
    return Finding(kind, f"after a short answer it gives {name} a probability of {share:.2g}")


def end_share(chat: Chat, scores: Scores) -> float | None:
    """The probability that the model gives its end of turn after each of EXCHANGES in one language at least, in that
    which suits it best; None if the template renders none.

    Where the template writes no token after an answer, any end counts: the beginning of the next turn often is one.
    """
    by_language = [[_share_after(chat, scores, *pair) for pair in pairs] for pairs in EXCHANGES]
    return max((min(shares) for shares in map(_known, by_language) if shares), default=None)


def _known(shares: Iterable[float | None]) -> list[float]:
    return [share for share in shares if share is not None]


def _share_after(chat: Chat, scores: Scores, question: str, answer: str) -> float | None:
    try:
        ids, ends = chat.unended(_exchange(question, answer))
    except DataError:
        return None
    p = scores(ids)[-1].float().softmax(-1)
    return float(p[sorted(ends)].sum())


def _exchange(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


# -- what is left to learn -----------------------------------------------------------------------------


def left_to_learn(
    chat: Chat, scores: Scores, examples: Sequence[Example], told: Kind | None = None, recorded: Kind | None = None
) -> tuple[Finding, dict[int, float | None]]:
    """What kind of model is to learn `examples`, and which of their control tokens it does not know: of a base model,
    `unknown_tokens`; an instruct model knows its turns."""
    finding = find_kind(chat, scores, told, recorded)
    has_turns = finding.is_base and chat.has_template
    return finding, unknown_tokens(chat, scores, examples) if has_turns else {}


def unknown_tokens(chat: Chat, scores: Scores, examples: Iterable[Example]) -> dict[int, float | None]:
    """The control tokens in `examples` that the model does not know, and the end of their answers.

    A token is known if the model gives it LEAST at one of its places in EXCHANGES. The one that the tokenizer itself
    puts before a text has been before every text there was.

    Returns token -> the largest probability that it gets; None of one that stands in no exchange.
    """
    seen: set[int] = set()
    ends: set[int] = set()
    for example in examples:
        seen.update(example.token_ids)
        ends.update(token for token, learnt in zip(example.token_ids, example.learnt, strict=True) if learnt)
    ends &= chat.stop_ids
    wanted = {token for token in seen if chat.is_control(token)} - _known_beginning(chat)
    best = _best_probabilities(chat, scores, wanted)
    return {token: best.get(token) for token in sorted(wanted) if best.get(token, 0.0) < LEAST or token in ends}


def _known_beginning(chat: Chat) -> set[int]:
    """What stands before every text by the tokenizer's own doing."""
    return set(chat.text_prompt("a")) & {chat.tokenizer.bos_token_id}


def _best_probabilities(chat: Chat, scores: Scores, wanted: set[int]) -> dict[int, float]:
    best: dict[int, float] = {}
    for question, answer in (pair for pairs in EXCHANGES for pair in pairs):
        try:
            ids = chat.whole(_exchange(question, answer))
        except DataError:
            continue
        p = scores(ids).float().softmax(-1)
        for at, token in enumerate(ids[1:]):
            if token in wanted:
                best[token] = max(best.get(token, 0.0), float(p[at, token]))
    return best


def _name(chat: Chat, token: int) -> str:
    return str(chat.tokenizer.convert_ids_to_tokens(token))


def named(chat: Chat, tokens: Mapping[int, T]) -> dict[str, T]:
    """What is said of tokens, under the names that the tokenizer has for them."""
    return {_name(chat, token): said for token, said in tokens.items()}
