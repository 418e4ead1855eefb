"""Phrases that must appear: what a row still lacks. Which rows go on is allocation.py's and banks.py's.

A constraint is a set of alternatives, token sequences of which one must appear; a phrase has one alternative.
`Appearing` is ours: a breaking token may begin the phrase anew, several constraints advance side by side, and
the prompt does not count. `AsReference` copies transformers 4.56.2, faults included, for comparisons. Both
work on immutable states, so a fork costs nothing. Knows no text and no model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from danlu.errors import ConfigError
from danlu.generate.scores.history import Automaton, Tokens

State = TypeVar("State", bound=Hashable)
Forced = Sequence[Sequence[Sequence[int]]]


class Constraints(ABC, Generic[State]):
    """All constraints of a request.

    Args:
        forced: of each constraint, its alternatives; none begins another, or ConfigError.
    """

    exact_reference = False

    def __init__(self, forced: Forced) -> None:
        self.forced: tuple[tuple[Tokens, ...], ...] = tuple(tuple(map(tuple, one)) for one in forced)
        self.sizes = [max(map(len, one)) for one in self.forced]
        for alternatives in self.forced:
            _refuse_beginnings(alternatives)

    @abstractmethod
    def start(self, prompt: Sequence[int]) -> State:
        """The state before the first new token."""

    @abstractmethod
    def advance(self, state: State, token: int) -> State:
        """The state after one more token."""

    @abstractmethod
    def wanted(self, state: State) -> Tokens:
        """Tokens that bring the constraints forward."""

    @abstractmethod
    def progress(self, state: State) -> int:
        """The bank of a row: how many tokens are satisfied; a finished choice counts as its longest alternative."""

    @abstractmethod
    def missing(self, state: State) -> tuple[int, ...]:
        """Numbers of the constraints that are not satisfied."""

    def complete(self, state: State) -> bool:
        """Whether every constraint is satisfied."""
        return not self.missing(state)

    def proposals(self, state: State) -> list[tuple[int, int]]:
        """(token, progress after it) of each token that is wanted."""
        return [(token, self.progress(self.advance(state, token))) for token in self.wanted(state)]

    def positions(self, answer: Sequence[int]) -> list[tuple[int, int] | None]:
        """Of each constraint, where the alternative that is complete first stands in the answer: (start, end)."""
        return [_first_place(alternatives, answer) for alternatives in self.forced]


def constraints_for(forced: Forced, exact_reference: bool = False) -> Constraints[Any]:
    """The constraints of a request, in one of the two ways of following them."""
    return AsReference(forced) if exact_reference else Appearing(forced)


def _refuse_beginnings(alternatives: tuple[Tokens, ...]) -> None:
    for at, short in enumerate(alternatives):
        for other, long in enumerate(alternatives):
            if at != other and long[: len(short)] == short:
                raise ConfigError(
                    f"the forced choice {list(map(list, alternatives))}: {list(long)} begins with {list(short)}",
                    fix=f"drop {list(long)}; it could never be the one that counts",
                )


def _first_place(alternatives: tuple[Tokens, ...], answer: Sequence[int]) -> tuple[int, int] | None:
    automaton, node = Automaton(alternatives), 0
    for at, token in enumerate(answer):
        node = automaton.step(node, token)
        found = automaton.ending(node)
        if found is not None:
            return at + 1 - len(found), at + 1
    return None


class Appearing(Constraints[tuple[int | None, ...]]):
    """The state is the automaton's node of each constraint, None once it is satisfied; it stays satisfied."""

    def __init__(self, forced: Forced) -> None:
        super().__init__(forced)
        self._automata = [Automaton(one) for one in self.forced]
        self._wanted: dict[tuple[int | None, ...], Tokens] = {}

    def start(self, prompt: Sequence[int] = ()) -> tuple[int | None, ...]:
        return (0,) * len(self.forced)

    def advance(self, state: tuple[int | None, ...], token: int) -> tuple[int | None, ...]:
        return tuple(
            None if node is None else self._next(automaton, node, token)
            for automaton, node in zip(self._automata, state, strict=True)
        )

    @staticmethod
    def _next(automaton: Automaton, node: int, token: int) -> int | None:
        after = automaton.step(node, token)
        return after if automaton.ending(after) is None else None

    def wanted(self, state: tuple[int | None, ...]) -> Tokens:
        """Tokens with which all progress together grows: nothing half done is given up for them."""
        if state not in self._wanted:
            pairs = zip(self._automata, state, strict=True)
            going_on = [automaton.going_on(node) for automaton, node in pairs if node is not None]
            now = self.progress(state)
            self._wanted[state] = tuple(
                token
                for token in dict.fromkeys(token for tokens in going_on for token in tokens)
                if self.progress(self.advance(state, token)) > now
            )
        return self._wanted[state]

    def progress(self, state: tuple[int | None, ...]) -> int:
        """Of what is begun only the longest counts: of "new york" and "new delhi", "new" brings one forward.

        So a token that goes on with it always adds to the progress, and no row is stuck.
        """
        begun, done = 0, 0
        for automaton, node, size in zip(self._automata, state, self.sizes, strict=True):
            if node is None:
                done += size
            else:
                begun = max(begun, automaton.depth[node])
        return done + begun

    def missing(self, state: tuple[int | None, ...]) -> tuple[int, ...]:
        return tuple(number for number, node in enumerate(state) if node is not None)


class ReferenceState(NamedTuple):
    """One constraint at most is in progress: `current`, of which `matched` has come; the rest waits in order."""

    done: tuple[int, ...]
    pending: tuple[int, ...]
    current: int | None
    matched: Tokens


class AsReference(Constraints[ReferenceState]):
    """As transformers 4.56.2 does it, with these faults.

    The prompt counts. A token that breaks the phrase in progress sends it back to the end of the line, and is
    not tried as a beginning of it or of another. A finished constraint counts as the longest of all, and one
    in progress as that less what it lacks, so a short one starts ahead. And see `proposals`.
    """

    exact_reference = True

    def start(self, prompt: Sequence[int]) -> ReferenceState:
        state = ReferenceState((), tuple(range(len(self.forced))), None, ())
        for token in prompt:
            state = self.advance(state, token)
        return state

    def advance(self, state: ReferenceState, token: int) -> ReferenceState:
        if state.current is not None:
            return self._go_on(state, state.current, token)
        for number in state.pending:
            if self._extends(number, (token,)):
                pending = tuple(one for one in state.pending if one != number)
                return self._go_on(state._replace(pending=pending), number, token)
        return state

    def _go_on(self, state: ReferenceState, number: int, token: int) -> ReferenceState:
        matched = (*state.matched, token)
        if matched in self.forced[number]:
            return ReferenceState((*state.done, number), state.pending, None, ())
        if self._extends(number, matched):
            return ReferenceState(state.done, state.pending, number, matched)
        return ReferenceState(state.done, (*state.pending, number), None, ())

    def _extends(self, number: int, matched: Tokens) -> bool:
        return any(one[: len(matched)] == matched for one in self.forced[number])

    def _following(self, number: int, matched: Tokens) -> Tokens:
        going_on = [one for one in self.forced[number] if one[: len(matched)] == matched]
        return tuple(dict.fromkeys(one[len(matched)] for one in going_on))

    def wanted(self, state: ReferenceState) -> Tokens:
        if state.current is not None:
            return self._following(state.current, state.matched)
        return tuple(dict.fromkeys(token for number in state.pending for token in self._following(number, ())))

    def progress(self, state: ReferenceState) -> int:
        longest = max(self.sizes)
        begun = 0 if state.current is None else longest - self.sizes[state.current] + len(state.matched)
        return len(state.done) * longest + begun

    def missing(self, state: ReferenceState) -> tuple[int, ...]:
        return tuple(sorted({*range(len(self.forced))} - {*state.done}))

    def proposals(self, state: ReferenceState) -> list[tuple[int, int]]:
        """As there, where the ways to go on from inside a choice share one list of what has come.

        The first way lengthens it, so the next ones are judged as if they came after the first.
        """
        if state.current is None:
            return super().proposals(state)
        path, banks = state.matched, []
        before = self.progress(state._replace(current=None))
        for token in self.wanted(state):
            after = (*path, token)
            if not self._extends(state.current, after):
                banks.append((token, before))
                continue
            path = after
            banks.append((token, before + max(self.sizes) if path in self.forced[state.current] else -1))
        unfinished = self.progress(state._replace(matched=path))
        return [(token, unfinished if bank < 0 else bank) for token, bank in banks]
