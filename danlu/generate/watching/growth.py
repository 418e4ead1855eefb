"""A job's progress -> Events: the one place that knows what of an answer its reader has been told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from danlu.generate.answers import Event, Generation
from danlu.generate.requests import Job
from danlu.generate.scores.text import TextStream, push_all


class Growth:
    """What a reader was told of one job, and what is new."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._streams: dict[int, TextStream] = {}
        self._pushed: dict[int, int] = {}  # answer number -> tokens that went into its stream
        self._told: dict[int, int] = {}  # answer number -> tokens that went out with an event

    def events(self, progress: Mapping[int, tuple[int, ...]]) -> list[Event]:
        """The news in a job's progress; of answers that may change until their end, what leads now."""
        if self._job.params.revises:
            return [Event(index, "", leading=self._leading(tokens)) for index, tokens in progress.items()]
        events = []
        for index, tokens in progress.items():
            pushed, self._pushed[index] = self._pushed.get(index, 0), len(tokens)
            stream = self._streams.setdefault(index, self._job.text())
            if text := push_all(stream, tokens[pushed:], pushed, self._job.min_new):
                told, self._told[index] = self._told.get(index, 0), len(tokens)
                logprobs = self._job.ledger.of(index)[told : len(tokens)] if self._job.ledger else None
                events.append(Event(index, text, tokens[told:], logprobs=logprobs))
        return events

    def _leading(self, tokens: Sequence[int]) -> str:
        words = self._job.words.fork()
        return "".join(map(words.append, tokens)) + words.finish()

    def last(self, generation: Generation) -> list[Event]:
        """Each answer, with what was not told yet."""
        events = []
        for index, answer in enumerate(generation.sequences):
            told, said = self._told.get(index, 0), self._streams[index].text if index in self._streams else ""
            logprobs = None if answer.logprobs is None else answer.logprobs[told:]
            events.append(Event(index, answer.text[len(said) :], answer.token_ids[told:], answer, logprobs=logprobs))
        return events
