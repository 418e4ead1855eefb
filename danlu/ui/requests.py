"""What the pages' routes share: the language of a request, its body as JSON, and work in a thread."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response

from danlu.config import AnyOptions, validate
from danlu.errors import ConfigError
from danlu.generate.batch.worker import in_a_thread
from danlu.ui.words import language_of
from danlu.words import Words

_T = TypeVar("_T")
_LONGEST_BODY = 2**20  # bytes


def asked_language(request: Request) -> str:
    return language_of(request.query_params.get("lang"), request.headers.get("accept-language", ""))


def said_in(request: Request) -> Words:
    return Words(asked_language(request))


async def read_body(request: Request, model: type[AnyOptions]) -> AnyOptions:
    """The body as `model`. Raises ConfigError."""
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > _LONGEST_BODY:
            raise ConfigError(f"the request is longer than {_LONGEST_BODY:,} bytes")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the request is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError("the request is no JSON object")
    return validate(model, document, where="the request")


async def at_work(work: Callable[[], _T]) -> _T:
    """The result of work that would hold up the loop."""
    return await asyncio.to_thread(in_a_thread, work)


def as_json(value: Any) -> Response:
    """An answer; numbers that JSON has not are null."""
    return Response(written(value).encode("utf-8", "replace"), media_type="application/json")


def written(value: Any) -> str:
    """JSON on one line."""
    return json.dumps(_plain(value), ensure_ascii=False, default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
