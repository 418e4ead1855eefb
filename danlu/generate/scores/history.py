"""What a row has seen, cheap to fork: its tokens, its n-grams, and where it stands in words to avoid.

The prompt's part is made once a request and shared by all rows; a row owns what it generated. Each question
is answered by a look-up, not by a rescan. Token ids only; text is text.py's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from functools import cached_property

Tokens = tuple[int, ...]


class Automaton:
    """Which of several token sequences end at each token of a stream (Aho and Corasick 1975).

    A state is an int, the node of the longest beginning of a sequence that the stream ends with; 0 is none.

    Args:
        sequences: not empty each.
    """

    def __init__(self, sequences: Iterable[Sequence[int]]) -> None:
        self.sequences: tuple[Tokens, ...] = tuple(dict.fromkeys(tuple(one) for one in sequences))
        self.depth = [0]
        self._children: list[dict[int, int]] = [{}]
        self._whole: dict[int, Tokens] = {}  # node -> the sequence that it spells out
        self._completing: dict[int, Tokens] = {}
        for sequence in self.sequences:
            assert sequence, "an empty sequence ends everywhere"
            self._whole[self._grow(sequence)] = sequence
        self._fall = self._fallbacks()

    def _grow(self, sequence: Tokens) -> int:
        node = 0
        for token in sequence:
            if token not in self._children[node]:
                self._children[node][token] = len(self._children)
                self._children.append({})
                self.depth.append(self.depth[node] + 1)
            node = self._children[node][token]
        return node

    def _fallbacks(self) -> list[int]:
        """Of each node, the node of the longest beginning that is a proper end of it."""
        fall = [0] * len(self._children)
        queue = deque(self._children[0].values())
        while queue:
            node = queue.popleft()
            for token, child in self._children[node].items():
                other = fall[node]
                while other and token not in self._children[other]:
                    other = fall[other]
                fall[child] = self._children[other].get(token, 0)
                queue.append(child)
        return fall

    def step(self, node: int, token: int) -> int:
        """The node after one more token."""
        while node and token not in self._children[node]:
            node = self._fall[node]
        return self._children[node].get(token, 0)

    def walk(self, tokens: Iterable[int], node: int = 0) -> int:
        """The node after `tokens`."""
        for token in tokens:
            node = self.step(node, token)
        return node

    def chain(self, node: int) -> list[int]:
        """The node and all that it falls back to, the root last: every beginning that the stream ends with."""
        nodes = [node]
        while nodes[-1]:
            nodes.append(self._fall[nodes[-1]])
        return nodes

    def ending(self, node: int) -> Tokens | None:
        """The longest sequence that ends here; None where none does."""
        return next((self._whole[one] for one in self.chain(node) if one in self._whole), None)

    def going_on(self, node: int) -> Tokens:
        """Tokens that lengthen some beginning, longest beginnings first, in the order of the sequences."""
        return tuple(dict.fromkeys(token for one in self.chain(node) for token in self._children[one]))

    def completing(self, node: int) -> Tokens:
        """Tokens that would end a sequence."""
        if node not in self._completing:
            self._completing[node] = tuple(
                token for token in self.going_on(node) if self.ending(self.step(node, token)) is not None
            )
        return self._completing[node]


def bad_words(words: Iterable[Sequence[int]], eos: Iterable[int]) -> Automaton:
    """The automaton of words to avoid; an entry that is nothing but an end token is dropped, as in transformers."""
    ends = {(token,) for token in eos}
    return Automaton(word for word in words if tuple(word) not in ends)


class Prompt:
    """What all rows of a request share.

    Args:
        tokens: token ids, padding left out.
        ngram_size: of the n-grams that may not come twice; 0 is off.
        avoided: words that may not be completed, as `bad_words` makes it.
        stops: sequences at which an answer ends; the prompt does not count for them.
    """

    def __init__(
        self,
        tokens: Sequence[int],
        *,
        ngram_size: int = 0,
        avoided: Automaton | None = None,
        stops: Automaton | None = None,
    ) -> None:
        self.tokens: Tokens = tuple(tokens)
        self.ngram_size = ngram_size
        self.avoided, self.stops = avoided or Automaton([]), stops or Automaton([])
        self.avoided_node = self.avoided.walk(self.tokens)

    @cached_property
    def ngrams(self) -> dict[Tokens, Tokens]:
        """The n - 1 first tokens of each n-gram -> the tokens that followed them."""
        index: dict[Tokens, dict[int, None]] = {}
        before = self.ngram_size - 1
        for at in range(before, len(self.tokens)) if self.ngram_size else ():
            index.setdefault(self.tokens[at - before : at], {})[self.tokens[at]] = None
        return {first: tuple(followed) for first, followed in index.items()}


class History:
    """One row: the shared prompt and what the row generated."""

    __slots__ = ("_avoided_node", "_ngrams", "_stop_node", "generated", "prompt")

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self.generated: list[int] = []
        self._ngrams: dict[Tokens, Tokens] = {}  # n-grams whose last token is generated
        self._avoided_node, self._stop_node = prompt.avoided_node, 0

    def __len__(self) -> int:
        return len(self.prompt.tokens) + len(self.generated)

    def append(self, token: int) -> None:
        """Take in the next token."""
        before = self.prompt.ngram_size - 1
        if before >= 0 and len(self) >= before:
            first = self.last(before)
            followed = self._ngrams.get(first, ())
            if token not in followed:
                self._ngrams[first] = (*followed, token)
        self._avoided_node = self.prompt.avoided.step(self._avoided_node, token)
        self._stop_node = self.prompt.stops.step(self._stop_node, token)
        self.generated.append(token)

    def fork(self) -> History:
        """A row that has seen the same and goes its own way; copies what was generated, not the prompt."""
        other = History.__new__(History)
        other.prompt, other.generated, other._ngrams = self.prompt, self.generated.copy(), self._ngrams.copy()
        other._avoided_node, other._stop_node = self._avoided_node, self._stop_node
        return other

    def last(self, count: int) -> Tokens:
        """The last `count` tokens of prompt and answer, fewer where there are no more."""
        from_prompt = count - len(self.generated)
        if from_prompt <= 0:
            return tuple(self.generated[len(self.generated) - count :])
        return (*self.prompt.tokens[max(0, len(self.prompt.tokens) - from_prompt) :], *self.generated)

    def banned_by_ngrams(self) -> Tokens:
        """Tokens that would complete an n-gram which prompt and answer already hold; may name one twice."""
        before = self.prompt.ngram_size - 1
        if before < 0 or len(self) < before:
            return ()
        first = self.last(before)
        return self.prompt.ngrams.get(first, ()) + self._ngrams.get(first, ())

    def banned_by_words(self) -> Tokens:
        """Tokens that would complete a word to avoid, one begun in the prompt included."""
        return self.prompt.avoided.completing(self._avoided_node)

    @property
    def stop(self) -> Tokens | None:
        """The longest stop sequence that the answer ends with; None where it ends with none."""
        return self.prompt.stops.ending(self._stop_node)
