"""Requests to a server with OpenAI's API: several at a time, with patience where it asks for some.

429 and 5xx are tried again, after what Retry-After says or twice as long each time. What concerns every request (the
key, the address, the model's name) is an error at once; what concerns one alone is its failure. Knows no judges.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from danlu.errors import ConfigError, ModelError
from danlu.evaluate.kept import AT_ONCE
from danlu.evaluate.scale import Failed
from danlu.loopback import PAST_PROXIES

KEY_VARIABLE = "DANLU_JUDGE_KEY"

TRIES = 6
FIRST_WAIT, LONGEST_WAIT = 1.0, 120.0  # seconds
_TIMEOUT = httpx.Timeout(600.0, connect=10.0)
_FOR_ALL = {401, 403, 404}  # the key, the address, the model's name
_AGAIN = {408, 409, 429, 500, 502, 503, 504, 529}


class Server:
    """A server and one of its models.

    Args:
        address: of its API, as http://host:8000/v1, with #model where it has several.
        concurrency: requests at the same time.
        transport, sleep: for tests.
    """

    def __init__(
        self,
        address: str,
        concurrency: int = 8,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url, _, name = address.partition("#")
        _refuse_secrets(self.url)
        self.concurrency, self._sleep = concurrency, sleep
        self.at_once = max(AT_ONCE, 2 * concurrency)  # rows, so that as many are asked side by side as is said
        key = os.environ.get(KEY_VARIABLE)
        self._client = httpx.Client(
            base_url=self.url.rstrip("/"),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=_TIMEOUT,
            transport=transport,
            mounts=PAST_PROXIES,
        )
        self.model = name or self._only_model()

    @property
    def name(self) -> str:
        return f"{self.url}#{self.model}"

    def chat(self, bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any] | Failed]:
        """An answer to each body of /chat/completions, in order. Raises ModelError for what concerns all of them."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(self._one, bodies))

    def _one(self, body: dict[str, Any]) -> dict[str, Any] | Failed:
        wait = FIRST_WAIT
        for left in reversed(range(TRIES)):
            try:
                answer = self._client.post("/chat/completions", json={"model": self.model, **body})
            except httpx.TransportError as error:
                reason, asked = f"{type(error).__name__}: {error}", None
            else:
                status = _status(answer)
                if 200 <= status < 300:
                    return _object(answer)
                reason, asked = f"{status}: {_said(answer)}", retry_after(answer)
                if status in _FOR_ALL:
                    raise ModelError(
                        f"{self.url}: {reason}",
                        fix=f"check the address, the model ({self.model}), and the key in {KEY_VARIABLE}",
                    )
                if status not in _AGAIN:
                    return Failed(f"the server says {reason}")
            if left:
                self._sleep(min(LONGEST_WAIT, wait * random.uniform(1, 1.25) if asked is None else asked))
                wait *= 2
        return Failed(f"no answer after {TRIES} tries: {reason}")

    def _only_model(self) -> str:
        try:
            answer = self._client.get("/models")
            answer.raise_for_status()
            names = [str(card["id"]) for card in answer.json()["data"]]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{self.url}/models did not say which model it has: {error}", fix="name it: …/v1#model"
            ) from None
        if len(names) != 1:
            raise ConfigError(
                f"{self.url} has {len(names)} models: {', '.join(names[:20])}", fix="name one: …/v1#model"
            )
        return names[0]


def _refuse_secrets(url: str) -> None:
    """Raise ConfigError for an address that no report could name: one with a password, or with a query."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"{url}: {error}", allowed="http://host:8000/v1#model") from None
    if parsed.userinfo or parsed.query:
        raise ConfigError(
            f"the address of {parsed.host} holds {'a name or a password' if parsed.userinfo else 'a query'}",
            allowed="http://host:8000/v1#model: reports name it",
            fix=f"give a key in {KEY_VARIABLE}",
        )


def text_of(content: Any) -> str | None:
    """What a message says: a text, or the texts among its parts, as servers of models that think send them."""
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "".join(str(part.get("text", "")) for part in parts)
    return content if isinstance(content, str) else None


def is_address(name: str) -> bool:
    """Whether a judge or a model is a server."""
    return name.startswith(("http://", "https://"))


def retry_after(answer: httpx.Response) -> float | None:
    """Seconds that the server asks to wait: a number, or a date; None where it says nothing, or not to wait at all."""
    said = answer.headers.get("retry-after", "").strip()
    if said.isascii() and said.replace(".", "", 1).isdigit():
        return float(said) or None
    try:
        at = parsedate_to_datetime(said)
    except (ValueError, OverflowError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    left = (at - datetime.now(UTC)).total_seconds()
    return left if left > 0 else None


def _status(answer: httpx.Response) -> int:
    """Its status; of a 200 around an error, as gateways send it, the one that the error names."""
    try:
        code = answer.json()["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return answer.status_code
    is_status = isinstance(code, int) and 400 <= code < 600
    return int(code) if answer.is_success and is_status else answer.status_code


def _object(answer: httpx.Response) -> dict[str, Any] | Failed:
    try:
        found = answer.json()
        found["choices"][0]["message"]
    except (ValueError, KeyError, IndexError, TypeError):
        return Failed(f"the server's answer is none: {answer.text[:100]!r}")
    return dict(found)


def _said(answer: httpx.Response) -> str:
    try:
        error = answer.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:300]
    except (ValueError, KeyError, TypeError):
        return answer.text[:300]
