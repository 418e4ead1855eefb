"""Bytes of a request -> one JSON object, with limits on its length and on the time it takes to arrive."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from danlu.serve.faults import ApiFault

# What is longer is read and checked in a thread, so that others are answered meanwhile.
SHORT_BYTES = 2**14
# Of one object: a schema of so many properties is nobody's, and each key that is refused costs some microseconds.
_MOST_KEYS = 4096
# What Python adds for its own users where a number has thousands of digits.
_ADVICE = "; use sys.set_int_max_str_digits() to increase the limit"


async def read_json(request: Request, limit_bytes: int, seconds: float) -> dict[str, Any]:
    """The JSON object in the body of a request.

    Raises ApiFault: 413 past the limit, 408 past the time, 415 for another kind of content, 400 for a fault in it.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiFault(415, f"content-type {kind or '(none)'}; send application/json", "content-type")
    try:
        async with asyncio.timeout(seconds):
            body = await _read(request, limit_bytes)
            return parse(body) if len(body) <= SHORT_BYTES else await asyncio.to_thread(parse, body)
    except TimeoutError:
        raise ApiFault(408, f"the body did not arrive within {seconds:g} seconds", code="timeout") from None
    except ClientDisconnect:
        raise ApiFault(499, "the client went away", code="cancelled") from None


async def _read(request: Request, limit_bytes: int) -> bytes:
    """The whole body. Nothing past the limit is kept, whether its length was announced or not."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced[:20]) > limit_bytes:
        raise _too_long(limit_bytes)
    pieces, length = [], 0
    async for piece in request.stream():
        length += len(piece)
        if length > limit_bytes:
            raise _too_long(limit_bytes)
        pieces.append(piece)
    return b"".join(pieces)


def _too_long(limit_bytes: int) -> ApiFault:
    headers = {"Connection": "close"}
    return ApiFault(413, f"the body is longer than {limit_bytes} bytes", code="body_too_long", headers=headers)


def parse(body: bytes) -> dict[str, Any]:
    """One JSON object, strictly: no NaN, no key twice, no half of a surrogate pair. Raises ApiFault."""
    try:
        document = json.loads(
            body.decode(), parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_without_doubles
        )
        if b"\\u" in body:
            json.dumps(document, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise _malformed(f"not UTF-8 (byte {error.start})") from None
    except UnicodeEncodeError:
        raise _malformed("half of a surrogate pair (\\ud800 to \\udfff alone) is no character") from None
    except RecursionError:
        raise _malformed("nested too deeply") from None
    except ValueError as error:
        raise _malformed(str(error).removesuffix(_ADVICE)) from None
    if not isinstance(document, dict):
        raise _malformed(f"an object is asked for, this is {type(document).__name__}")
    return document


def _malformed(why: str) -> ApiFault:
    return ApiFault(400, f"the body is no valid JSON: {why}", code="invalid_json")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is too large")
    return value


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > _MOST_KEYS:
        raise ValueError(f"an object has {len(pairs)} keys; at most {_MOST_KEYS} are read")
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"the key {name!r} is given twice")
        result[name] = value
    return result
