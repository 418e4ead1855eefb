"""Who hears of progress: the caller through `say`, and not the bars and warnings of libraries.

Leaves what is said to those who say it.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

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


def import_bitsandbytes() -> Any:
    """The library bitsandbytes, or None where it is not installed. PEFT imports it too: before that, this is asked.

    By itself it asks the network for kernels where their library is installed, and warns where it is not.
    """
    if "bitsandbytes" in sys.modules:
        return sys.modules["bitsandbytes"]
    if find_spec("bitsandbytes") is None:
        return None
    log, kernels = logging.getLogger("bitsandbytes"), sys.modules.get("kernels")
    level = log.level
    log.setLevel(logging.ERROR)
    sys.modules["kernels"] = None  # type: ignore[assignment]  # an import of it fails
    try:
        return import_module("bitsandbytes")
    finally:
        log.setLevel(level)
        del sys.modules["kernels"]
        if kernels is not None:
            sys.modules["kernels"] = kernels
