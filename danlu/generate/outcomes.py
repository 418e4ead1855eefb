"""A request that has ended -> its answers, with the log-probabilities that were asked for; what is still going on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from danlu.generate.answers import Answer, Generation, Info, Load, Logprob
from danlu.generate.batch.core import Core
from danlu.generate.batch.worker import Worker
from danlu.generate.logprobs import report
from danlu.generate.requests import Job
from danlu.generate.scores.logits import log_softmax
from danlu.generate.scores.text import push_all

# Tokens whose scores for the whole vocabulary are held at once where a text is scored; each portion reads again what
# stands before it, and other requests go on between two portions.
SCORED_AT_ONCE = 512


class Scorer:
    """Log-probabilities of texts that are there already, between two steps of what else is running."""

    def __init__(self, core: Core, worker: Worker) -> None:
        self._core, self._worker = core, worker

    def of(self, token_ids: Sequence[int], start: int, top: int, adapter: str | None) -> tuple[Logprob, ...]:
        """Of token_ids[start:], each after those before it, with the bank's adapter of that name."""
        portions = self.portions(token_ids, start, top, adapter)
        return tuple(entry for portion in portions for entry in self._worker.run(portion))

    def portions(
        self, token_ids: Sequence[int], start: int, top: int, adapter: str | None
    ) -> Iterator[Callable[[], list[Logprob]]]:
        """`of`, as work for the engine's thread."""
        for begin in range(start, len(token_ids), SCORED_AT_ONCE):
            yield partial(self._reported, list(token_ids[: begin + SCORED_AT_ONCE]), begin, top, adapter)

    def _reported(self, token_ids: list[int], start: int, top: int, adapter: str | None) -> list[Logprob]:
        logprobs = log_softmax(self._core.logits(token_ids[:-1], start - 1, adapter))
        return report(logprobs, token_ids[start:], top, ranked=True)


def generation_of(job: Job, worker: Worker, scorer: Scorer) -> Generation:
    """What a request has come to, once it has ended. Raises the error that ended it."""
    error = worker.next_of(job.ended)
    if error is not None:
        raise error
    return Generation(job.prompt, tuple(_answers(job, scorer)))


def _answers(job: Job, scorer: Scorer) -> Iterator[Answer]:
    for index, hypothesis in enumerate(job.request.strategy.results()):
        stream = job.text()
        push_all(stream, hypothesis.tokens, 0, job.min_new)
        stream.finish()
        logprobs = job.ledger.of(index) if job.ledger else None
        if job.params.logprobs is not None and logprobs is None:  # what looks back: rows change their past
            whole = [*job.prompt, *hypothesis.tokens]
            logprobs = scorer.of(whole, len(job.prompt), job.params.logprobs, job.request.adapter)
        forced = None if job.forced is None else tuple(job.forced.positions(hypothesis.tokens))
        yield Answer(hypothesis.tokens, stream.text, hypothesis.score, hypothesis.finish_reason, logprobs, forced)


def info_of(core: Core) -> Info:
    """How an engine computes."""
    return Info(str(core.device), core.dtype, core.why_varies)


def load_of(core: Core, form_bytes: int, heap: tuple[int, int]) -> Load:
    """What an engine is busy with, read while it works.

    Args:
        form_bytes: what compiled forms take.
        heap: bytes in use before the engine was made, and what that added.
    """
    scheduler, store = core.scheduler, core.store
    running = [*scheduler.reading, *scheduler.running]
    kv_bytes = sum(shelf.room * shelf.slot_bytes for shelf in list(store.shelves.values()))
    rows = sum(request.rows for request in running)
    hits = core.prefixes.hit_tokens if core.prefixes else 0
    counts = len(scheduler.waiting), len(running), rows, kv_bytes, store.budget_bytes, store.cached_bytes, hits
    return Load(*counts, form_bytes, *core.weight_bytes, *heap)
