"""Which requests run in the next step, and with what tokens: one continuous batch under one memory budget.

A step takes the next token of every row of every running request, and a bounded portion of the prompts that
are still being read, so that a long prompt does not stall the others. Requests are admitted in order while
their prompt fits into the budget. When a running request needs memory that is not there, the newest one
gives up its slot and waits; it is read in again later, prompt and answer so far, and goes on as if nothing had
happened. What a prompt has in common with one that was read before need not be read, where there is a prefix
cache.

Knows slots and plans; what a token means is the strategies' business, running the model is the engine's.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from danlu.errors import MemoryShortage, size_in_words
from danlu.generate.batch.attend import Chunk, Plan, Rows
from danlu.generate.batch.kv import KVStore, OutOfBudget, Slot, capacity_for
from danlu.generate.batch.prefix import PrefixCache
from danlu.generate.search.strategies import Step, Strategy

# Portion of prompts read in one step. While no answer is under way nobody waits for the step's end, and larger ones
# are faster.
PROMPT_TOKENS_A_STEP = 512
PORTIONS_WHEN_ALONE = 4

# A token of a prompt whose scores are wanted goes through the head as well, and has scores for the whole vocabulary.
LOOKED_AT_COST = 4


@dataclass
class Feed:
    """Tokens still to be read into a slot, which `rows` see; None is all rows."""

    rows: tuple[int, ...] | None
    tokens: tuple[int, ...]
    position: int


@dataclass(eq=False)
class Request:
    """One prompt with its strategy, from submission to its last token.

    Attributes:
        prompt: token ids.
        strategy: decides which rows go on with which tokens.
        score: raw logits (rows, vocabulary) -> what the strategy chooses from.
        use_cache: False forgets keys and values after every step and computes them anew.
        adapter: the name under which the bank holds its adapter; None is the base.
        take: of a request that wants nothing but the likeliest token of each row: those tokens -> what goes on.
        on_step: called after each choice.
        on_end: called once with None, or with the error that ended the request.
        cached_tokens: of the prompt, those that were there already and had not to be read.
        borders: how many tokens of it are read where reading stops, so that what is carried there can be kept.
        looks: of the prompt, the last so many tokens' scores are shown to the strategy (`see`), and nothing is chosen;
            0 for a request that goes on after its prompt.
    """

    prompt: tuple[int, ...]
    strategy: Strategy
    score: Callable[[Tensor], Tensor]
    use_cache: bool = True
    take: Callable[[Sequence[int]], Step] | None = None
    on_step: Callable[[Step], None] = lambda _step: None
    on_end: Callable[[BaseException | None], None] = lambda _error: None
    cached_tokens: int = 0
    slot: Slot | None = None
    feeds: deque[Feed] = field(default_factory=deque)
    next_tokens: list[int] = field(default_factory=list)
    adapter: str | None = None
    borders: tuple[int, ...] = ()
    looks: int = 0

    @property
    def looks_from(self) -> int:
        """The first place of the prompt whose scores are shown."""
        return len(self.prompt) - self.looks

    @property
    def rows(self) -> int:
        return len(self.strategy.sequences)

    def everything(self) -> deque[Feed]:
        """All that a fresh slot must read before this request can go on.

        Of an answer that is under way, the last token of each row is left out: it is the next step's.
        """
        made = [tokens[:-1] for tokens in self.strategy.sequences]
        (_, _, shared), *branches = _runs(made, tuple(range(self.rows)), 0)
        feeds = [Feed(rows, made[rows[0]][start:end], len(self.prompt) + start) for rows, start, end in branches]
        return deque([Feed(None, (*self.prompt, *made[0][:shared]), 0), *feeds])


def _runs(
    sequences: Sequence[Sequence[int]], rows: tuple[int, ...], start: int
) -> list[tuple[tuple[int, ...], int, int]]:
    """(rows, start, end) of each run of tokens that these rows share, from `start` on; a run before what follows it."""
    first, end = sequences[rows[0]], start
    while end < len(first) and all(sequences[row][end] == first[end] for row in rows):
        end += 1
    found = [(rows, start, end)]
    if end < len(first):
        for token in dict.fromkeys(sequences[row][end] for row in rows):
            found += _runs(sequences, tuple(row for row in rows if sequences[row][end] == token), end)
    return found


def _tokens_of(request: Request) -> int:
    """Places that a slot needs until the request has chosen its first tokens."""
    return sum(len(feed.tokens) for feed in request.feeds) + request.rows


class Wanted(NamedTuple):
    """Whose scores a step computes, and at which of its tokens: one for each row, or one for all; of a request that
    only looks, each that it looks at."""

    request: Request
    at: list[int]


@dataclass
class Work:
    """One step: tokens, their positions and adapters, how they attend, and whose scores are wanted.

    Attributes:
        adapters: the tokens in runs of (adapter, count), in order.
    """

    token_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    adapters: list[tuple[str | None, int]] = field(default_factory=list)
    plan: Plan = field(default_factory=lambda: Plan([], []))
    wanted: list[Wanted] = field(default_factory=list)


class Scheduler:
    """Waiting, reading and running requests over one store.

    Args:
        prefixes: what was read before; None reads everything anew.
    """

    def __init__(
        self,
        store: KVStore,
        prompt_tokens_a_step: int = PROMPT_TOKENS_A_STEP,
        prefixes: PrefixCache | None = None,
    ) -> None:
        self.store, self.prompt_tokens_a_step, self.prefixes = store, prompt_tokens_a_step, prefixes
        self.waiting: deque[Request] = deque()
        self.reading: list[Request] = []
        self.running: list[Request] = []
        self.preemptions = 0

    @property
    def is_idle(self) -> bool:
        return not (self.waiting or self.reading or self.running)

    def everyone(self) -> list[Request]:
        """Every request that has not ended."""
        return [*self.waiting, *self.reading, *self.running]

    @property
    def waiting_tokens(self) -> int:
        """Of prompts that nobody reads yet."""
        return sum(len(request.prompt) for request in self.waiting)

    def submit(self, request: Request) -> None:
        """Queue a request. Raises MemoryShortage if not even its prompt can ever fit."""
        tokens = len(request.prompt) + request.rows
        if self._need(request, tokens) > self.store.budget_bytes:
            raise self._shortage(request, tokens)
        request.feeds = request.everything()
        self.waiting.append(request)

    def end(self, request: Request) -> None:
        """Forget a request, wherever it stands, and free its memory at once."""
        for group in (self.waiting, self.reading, self.running):
            if request in group:
                group.remove(request)
        if request.slot is not None:
            self.store.close(request.slot)
            request.slot = None

    def finish(self, request: Request, made: Sequence[int]) -> None:
        """End a request that has its answers; `made` are the tokens that its first row holds of its own."""
        tokens, slot = (*request.prompt, *made), request.slot
        if slot is not None and slot.length == len(tokens):  # else other rows' tokens lie between
            self._keep(request, tokens)
        self.end(request)

    def next_work(self) -> Work:
        """The next step. Ends requests that can never get the memory they need."""
        work = Work()
        for request in self.reading:
            if request.slot is not None and request.slot.length in request.borders:
                self._keep(request, request.everything()[0].tokens[: request.slot.length])
        for request in [request for request in self.reading if not request.feeds]:  # read in again
            request.next_tokens = [tokens[-1] for tokens in request.strategy.sequences]
            self._start(request)
        self._make_room()
        self._admit()
        self._take_rows(work)
        self._take_chunks(work)
        return work

    def go_on(self, request: Request, step: Step) -> None:
        """Apply a strategy's choice: fork the rows, and feed the chosen tokens next."""
        slot = request.slot
        assert slot is not None, "a request that chose has a slot"
        if not request.use_cache:
            self._send_back(request)
            return
        if request in self.reading:
            self._start(request)
        request.next_tokens = step.tokens
        if len(step.parents) == slot.rows:
            slot.fork(step.parents)
            return
        try:
            request.slot = self.store.narrow(slot, step.parents)
        except OutOfBudget:
            self._send_back(request)

    def _start(self, request: Request) -> None:
        """From reading to running."""
        assert request.slot is not None, "a request that was read has a slot"
        self._keep(request, request.everything()[0].tokens)
        request.slot.shelf.make_ready(request.slot)
        self.reading.remove(request)
        self.running.append(request)

    def _keep(self, request: Request, tokens: Sequence[int]) -> None:
        """Let later requests have what stands in the first places of this one's slot."""
        if self.prefixes is not None and request.use_cache and request.slot is not None:
            self.prefixes.keep(request.adapter, tokens, request.slot)

    # -- memory ----------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Every running request gets places for its next tokens; the newest ones give way."""
        for request in list(self.running):
            while request.slot is not None:
                try:
                    request.slot = self.store.reserve(request.slot, request.rows)
                    break
                except OutOfBudget:
                    # Of one that is alone, old and new slot may not fit side by side: it is read into the new one.
                    self._send_back((self.reading or self.running)[-1])

    def _send_back(self, request: Request) -> None:
        """Take a request's slot; it waits in front, to be read in again from its tokens."""
        self.preemptions += request.use_cache
        self.end(request)
        request.feeds = request.everything()
        self.waiting.appendleft(request)

    def _admit(self) -> None:
        alike = Counter((request.rows, capacity_for(_tokens_of(request))) for request in self.waiting)
        while self.waiting:
            request = self.waiting[0]
            tokens = _tokens_of(request)
            kind = request.rows, capacity_for(tokens)
            try:
                request.slot = self.store.open(request.rows, tokens, alike[kind])
                alike[kind] -= 1
            except OutOfBudget:
                if not (self.reading or self.running):
                    self.waiting.popleft()
                    request.on_end(self._shortage(request, tokens))
                    continue
                return
            if not request.strategy.made:
                request.cached_tokens = 0
            self.reading.append(self.waiting.popleft())

    def _need(self, request: Request, tokens: int) -> int:
        return self.store.shape.slot_bytes(request.rows, capacity_for(tokens))

    def _shortage(self, request: Request, tokens: int) -> MemoryShortage:
        """The error of a request that does not fit even when it is alone."""
        kept = "keys, values and states" if self.store.shape.states else "keys and values"
        return MemoryShortage(
            f"{tokens} tokens of one request need {size_in_words(self._need(request, tokens))} of {kept}; "
            f"the budget is {size_in_words(self.store.budget_bytes)}",
            fix="raise kv_budget_bytes, or ask for a shorter prompt, fewer tokens or fewer beams",
        )

    # -- tokens ----------------------------------------------------------------------------------------

    def _take_rows(self, work: Work) -> None:
        owners = {request.slot: request for request in self.running if request.slot is not None}
        for shelf in [shelf for shelf in self.store.shelves.values() if shelf.ready]:
            part = Rows(shelf, len(work.token_ids))
            running = [owners[slot] for slot in part.slots]
            positions = [len(request.prompt) + request.strategy.made - 1 for request in running]
            shelf.append_step(part.slots, positions)
            for slot, request, position in zip(part.slots, running, positions, strict=True):
                start = len(work.token_ids)
                work.token_ids += request.next_tokens
                work.positions += [position] * slot.rows
                work.adapters.append((request.adapter, slot.rows))
                work.wanted.append(Wanted(request, list(range(start, start + slot.rows))))
            work.plan.rows.append(part)

    def _take_chunks(self, work: Work) -> None:
        room = self.prompt_tokens_a_step * (1 if self.running else PORTIONS_WHEN_ALONE)
        for request in self.reading:
            while request.feeds and room > 0:
                self._recall(request)
                room -= self._take_chunk(work, request, room)
                if request.slot is not None and request.slot.length in request.borders:
                    break  # what is carried there is kept before the next step
            if not request.feeds and not request.strategy.made and not request.looks:
                work.wanted.append(Wanted(request, [len(work.token_ids) - 1]))

    def _recall(self, request: Request) -> None:
        """Take over what was read before, but for the last token, whose scores are wanted."""
        feed, slot = request.feeds[0], request.slot
        if self.prefixes is None or not request.use_cache or feed.rows is not None or slot is None:
            return
        whole = feed.position + len(feed.tokens) - max(1, request.looks)
        tokens = (*request.prompt, *request.strategy.sequences[0])[:whole]
        if slot.length == 0:
            request.borders = self.prefixes.borders(request.adapter, tokens)
        gained = self.prefixes.recall(request.adapter, tokens, slot)
        request.feeds[0] = Feed(None, feed.tokens[gained:], feed.position + gained)
        if not request.strategy.made:
            request.cached_tokens += gained

    def _take_chunk(self, work: Work, request: Request, room: int) -> int:
        """Read the beginning of the request's next feed; returns how much of the room that took."""
        feed, slot = request.feeds.popleft(), request.slot
        assert slot is not None, "a request that is read has a slot"
        unseen = max(0, request.looks_from - feed.position) if request.looks else room
        room = min(room, unseen + max(1, (room - unseen) // LOOKED_AT_COST))
        room = min([room, *(border - slot.length for border in request.borders if border > slot.length)])
        tokens, rest = feed.tokens[:room], feed.tokens[room:]
        if (seen := max(0, len(tokens) - unseen)) and request.looks:
            end = len(work.token_ids) + len(tokens)
            work.wanted.append(Wanted(request, list(range(end - seen, end))))
        rows = feed.rows or tuple(range(request.rows))
        work.plan.chunks.append(Chunk(slot, len(work.token_ids), len(tokens), slot.length, rows))
        if feed.rows is None:
            slot.append_shared(len(tokens), feed.position)
        else:
            slot.append_branch(feed.rows, len(tokens), feed.position)
        work.token_ids += tokens
        work.positions += range(feed.position, feed.position + len(tokens))
        work.adapters.append((request.adapter, len(tokens)))
        if rest:
            request.feeds.appendleft(Feed(feed.rows, rest, feed.position + len(tokens)))
        return len(tokens) + (LOOKED_AT_COST - 1) * seen
