"""The run directory of a step that has no checkpoints: it is done whole, or begun anew."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import yaml

from danlu.config import Options
from danlu.device import peak_memory_bytes
from danlu.errors import DanluError, disk_faults
from danlu.journal import Journal, check_replaceable, claimed, clear_leftovers, set_aside, write_atomic
from danlu.report.page import write_report
from danlu.steps.step import Place, Show


@contextmanager
def opened(place: Place, options: Options, show: Show, go_on: bool) -> Iterator[Journal]:
    """The step's journal, for it alone; with a report at the end, also of a step that an error stops.

    What another run left there is moved aside, unless it is this very step's (`go_on`).
    """
    journal, started = Journal(place.directory), time.time()
    with claimed(journal.directory, show.say):
        check_replaceable(journal.directory)
        with disk_faults(journal.directory, "making the run directory"):
            if not go_on and (aside := set_aside(journal.directory)):
                show.say(f"an earlier run was kept as {aside}")
            journal.directory.mkdir(parents=True, exist_ok=True)
        clear_leftovers(journal.directory)
        text = yaml.safe_dump(options.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_atomic(journal.recipe_path, text)
        journal.event("begun", f"seed {place.seed}")
        try:
            yield journal
        except DanluError as error:
            with suppress(DanluError):  # a full disk has no room for the report either
                journal.event("stopped", error.seen)
                write_report(journal)
            raise
        journal.result("run", {"seconds": time.time() - started, "peak_memory_bytes": peak_memory_bytes()})
        show.say(f"report: {write_report(journal)}")
