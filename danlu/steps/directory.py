"""The run directory of a step that has no checkpoints: it is done whole, or begun anew."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from danlu.config import Options
from danlu.device import peak_memory_bytes, read_device
from danlu.errors import DanluError
from danlu.journal import Journal, check_replaceable, claimed, opened_run
from danlu.report.page import write_report
from danlu.steps.step import Place, Show


@contextmanager
def reported(journal: Journal) -> Iterator[None]:
    """What an error stops inside has its report as well, up to there."""
    try:
        yield
    except DanluError as error:
        with suppress(DanluError):  # a full disk has no room for the report either
            journal.event("stopped", error.seen)
            write_report(journal)
        raise


@contextmanager
def opened(place: Place, options: Options, show: Show, go_on: bool) -> Iterator[Journal]:
    """The step's journal, for it alone; with a report at the end, also of a step that an error stops.

    What another run left there is moved aside, unless it is this very step's (`go_on`).
    """
    journal, started = Journal(place.directory), time.time()
    with claimed(journal.directory, show.say):
        check_replaceable(journal.directory)
        opened_run(journal.directory, options.model_dump(mode="json"), go_on, show.say)
        journal.event("begun", f"seed {place.seed}")
        with reported(journal):
            yield journal
        peak = peak_memory_bytes(read_device().name)
        journal.result("run", {"seconds": time.time() - started, "peak_memory_bytes": peak})
        show.say(f"report: {write_report(journal)}")
