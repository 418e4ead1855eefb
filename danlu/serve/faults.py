"""Errors as OpenAI's clients expect them: a status and {"error": {message, type, param, code}}."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from danlu.errors import DanluError, FaultyScores, Interrupted, ModelError, ResourceError

_LOG = logging.getLogger(__name__)
_LONGEST_MESSAGE = 1000  # characters; an error may quote what was sent

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    501: "not_implemented_error",
    503: "unavailable_error",
    504: "timeout_error",
}


@dataclass(eq=False)
class ApiFault(Exception):
    """An answer that says what is wrong.

    Attributes:
        status: of HTTP.
        param: the knob or the part of the request that is to blame.
        code: a short name that programs look at.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        message = self.message
        if len(message) > _LONGEST_MESSAGE:
            message = message[:_LONGEST_MESSAGE] + " …"
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}


def closing() -> ApiFault:
    return ApiFault(503, "the server is being stopped", code="shutting_down", headers={"Retry-After": "5"})


def queue_full(here: int, limit: int) -> ApiFault:
    message = f"{here} are here already, of {limit}; try again"
    return ApiFault(429, message, code="queue_full", headers={"Retry-After": "1"})


def out_of_time(seconds: float) -> ApiFault:
    return ApiFault(504, f"the answer took longer than {seconds:g} seconds", code="timeout")


def as_fault(error: BaseException, names: Iterable[str] = (), say: Callable[[str], str] = str) -> ApiFault:
    """Any error as an answer; what is our own fault is logged, and its details stay here.

    Args:
        names: parts of the request that the message may blame.
        say: puts a message into the client's words.
    """
    if isinstance(error, ApiFault):
        return error
    if not isinstance(error, DanluError):
        _LOG.error("a request failed", exc_info=error)
        return ApiFault(500, "the server failed on this request; its log says more", code="internal_error")
    if isinstance(error, Interrupted):  # the engine was closed
        return closing()
    message = say(str(error))
    if isinstance(error, FaultyScores):
        _LOG.error("a request failed: %s", error)
        return ApiFault(500, message, code="faulty_scores")
    if isinstance(error, ModelError):
        return ApiFault(400, message, "model", "model_cannot")
    code = "out_of_memory" if isinstance(error, ResourceError) else "invalid_value"
    return ApiFault(400, message, blamed(message, names), code)


def blamed(message: str, names: Iterable[str]) -> str | None:
    """The name that comes first in the message."""
    found = {match.start(): name for name in names if (match := re.search(rf"\b{re.escape(name)}\b", message))}
    return found[min(found)] if found else None
