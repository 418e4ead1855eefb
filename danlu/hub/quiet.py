"""Who hears of progress: the caller through `say`, and not transformers' own bars and warnings.

Leaves what is said to those who say it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Say = Callable[[str], None]


def silent(_: str) -> None:
    """The default `say`: nobody listens."""


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars, no warnings from transformers inside; as before afterwards."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
