"""Another server with OpenAI's API as a backend: requests go there in its words, answers come back as they are.

Of an answer only the model's name is changed, and what `_Call` says of its messages. Whatever ends a request here (its
client, the clock, the server) ends it there, by closing the connection. What becomes of failures is said in `_fault_of`
and `_no_answer`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import httpx
from fastapi.responses import JSONResponse, Response
from prometheus_client import Gauge

from danlu.data.records import Message
from danlu.errors import ModelError
from danlu.loopback import PAST_PROXIES
from danlu.serve.backends import Ended
from danlu.serve.faults import ApiFault, closing
from danlu.serve.metrics import Metrics
from danlu.serve.options import FlavourName, ServeOptions
from danlu.serve.others.dialects import names_there, repeats_prefix, worded
from danlu.serve.replies.replies import DONE, KEEP_ALIVE, event_of
from danlu.serve.service import Receive, check_size, while_wanted
from danlu.serve.stream import EventStream, Send, say
from danlu.serve.wire.schema import Ask

KEY_VARIABLE = "DANLU_BACKEND_KEY"

_CONNECT_SECONDS = 5.0
_HEALTH_SECONDS = 3.0
_TOO_LONG = re.compile(r"context (?:length|size)|max_model_len")  # vLLM's words, SGLang's and llama.cpp's


class Remote:
    """A server that answers in place of an engine.

    Args:
        base_url: of its API, /v1 included.
        flavour: whose knobs it knows.
        upstream_name: what it calls the model.
        model_name: what our clients call it.
        key: sent to it as a bearer token.
        why_down: says more about a server that does not answer, where its caller knows more.
        transport: for tests.
    """

    def __init__(
        self,
        base_url: str,
        options: ServeOptions,
        *,
        flavour: FlavourName,
        upstream_name: str,
        model_name: str,
        key: str | None = None,
        why_down: Callable[[], str] = lambda: "",
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.options, self.flavour = options, flavour
        self.closing = asyncio.Event()
        self.metrics = Metrics(None)
        self.places_taken = 0
        self.upstream_name, self.model_name = upstream_name, model_name
        self._why_down = why_down
        self.client = httpx.AsyncClient(
            base_url=base_url.rstrip("/"),
            headers=bearer(key),
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),  # the deadline of each request is kept here
            limits=httpx.Limits(max_connections=None),
            transport=transport,
            mounts=PAST_PROXIES,
        )
        running = Gauge("danlu_requests_running", "prompts that the backend has", registry=self.metrics.registry)
        running.set_function(lambda: self.places_taken)

    @property
    def models(self) -> Mapping[str, str | None]:
        return {self.model_name: None}

    async def kinds(self) -> Mapping[str, str]:
        return {}  # the other server renders messages, as it sees fit

    async def tokens(self, document: dict[str, Any], *, spelt: bool) -> dict[str, Any]:
        raise ApiFault(501, "tokens are the other server's matter; ask it", code="not_implemented")

    def room(self, ask: Ask) -> None:
        """The other server counts tokens, and says where they are too many."""

    async def length(self, ask: Ask) -> int:
        raise AssertionError("there is no room to be compared with")

    async def close(self) -> None:
        await self.client.aclose()

    async def check_health(self) -> None:
        with self.faults():
            answer = await self.client.get("/models", timeout=_HEALTH_SECONDS)
            if answer.is_error:
                raise _fault_of(answer.status_code, answer.content, {}, answer.headers)

    async def reply(self, ask: Ask, chat: bool, arrived: float, receive: Receive, ended: Ended) -> Response:
        if self.closing.is_set():
            raise closing()
        if ask.model != self.model_name:
            raise ApiFault(
                404, f"no model {ask.model!r}; this server has {self.model_name!r}", "model", "model_not_found"
            )
        check_size(ask, self.options, self.places_taken, ask.params.live_rows)
        if self.flavour == "llama.cpp" and ask.talk is not None and ask.talk.use is not None:
            await self._check_tools()
        body = worded(ask, self.flavour, chat, self.options.default_max_tokens)
        call = _Call(self, "/chat/completions" if chat else "/completions", body, ask, arrived)
        try:
            await while_wanted(call.begin(), receive, self, call.deadline - time.monotonic())
            if ask.stream:
                return RemoteStream(call, ended)
            answer = await while_wanted(call.whole(), receive, self, call.deadline - time.monotonic())
        except BaseException:
            await call.close()
            raise
        await call.close()
        ended(None)
        return JSONResponse(answer)

    async def _check_tools(self) -> None:
        """Raise ApiFault where llama.cpp would leave tools out of the prompt, and answer as if there were none."""
        root = str(self.client.base_url).rstrip("/").removesuffix("/v1")
        try:
            answer = await self.client.get(f"{root}/props", timeout=_HEALTH_SECONDS)
            knows = answer.json()["chat_template_caps"]["supports_tools"]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
            return  # an older one, which has a form for such templates; or it is down, which the request will say
        if knows is False:
            message = (
                "the chat template of the model there knows no tools, and llama.cpp leaves them out; start it with "
            )
            message += "--chat-template-file and one that does, or ask a server with the backend danlu"
            raise ApiFault(400, f"tools: {message}", "tools", "unsupported_by_backend")

    @contextlib.contextmanager
    def faults(self) -> Iterator[None]:
        """Failures of the connection as answers."""
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise _no_answer(error, str(self.client.base_url), self._why_down()) from error


class _Call:
    """One request at the other server: holds its places and its connection until `close`.

    Reasoning comes under both names that clients look for, whichever the server uses. A whole answer that goes on with
    a message has only what is new.
    """

    def __init__(self, remote: Remote, path: str, body: dict[str, Any], ask: Ask, arrived: float) -> None:
        self.remote, self.ask = remote, ask
        self.deadline = arrived + remote.options.request_timeout_seconds
        self._path, self._body, self._arrived = path, {"model": remote.upstream_name, **body}, arrived
        self._response: httpx.Response | None = None
        self._told_first = self._told_citations = False
        self._prefix = _repeated(ask, remote.flavour)
        self._places = len(ask.prompts)
        remote.places_taken += self._places

    async def begin(self) -> None:
        """Send the request; returns with the head of the answer. Raises ApiFault for an answer that is an error."""
        client = self.remote.client
        with self.remote.faults():
            request = client.build_request("POST", self._path, json=self._body)
            self._response = await client.send(request, stream=True)
            if self._response.is_error:
                content = await self._response.aread()
                names = names_there(self.ask, self.remote.flavour)
                raise _fault_of(self._response.status_code, content, names, self._response.headers)

    async def whole(self) -> dict[str, Any]:
        """The answer as one object."""
        assert self._response is not None, "begin comes first"
        with self.remote.faults():
            content = await self._response.aread()
        answer = self._named(_object(content))
        self._count(answer)
        beams, wanted = self.ask.params.num_beams, self.ask.params.num_return_sequences
        if beams > wanted and self.remote.flavour != "danlu":  # as many came as there are beams
            kept = [choice for choice in answer["choices"] if choice["index"] % beams < wanted]
            answer["choices"] = [{**choice, "index": at} for at, choice in enumerate(kept)]
        for message in _messages(answer) if self._prefix else ():
            message["content"] = str(message.get("content") or "").removeprefix(self._prefix)
        return answer

    async def pieces(self) -> AsyncGenerator[bytes]:
        """The events of the answer, the last of them [DONE]."""
        assert self._response is not None, "begin comes first"
        with self.remote.faults():
            async for line in _lines(self._response.aiter_bytes()):
                name, _, data = line.partition(b":")
                if not name and data:
                    yield KEEP_ALIVE
                if name != b"data":
                    continue
                if data.strip() == b"[DONE]":
                    yield DONE
                    return
                piece = _object(data)
                if piece.get("error") or piece.get("object") == "error":
                    raise _fault_of(502, data, {}, self._response.headers)
                self._count(piece)
                yield event_of(self._named(piece))
        raise ApiFault(502, "the backend ended its stream early", code="backend_broke_off")

    def _named(self, answer: dict[str, Any]) -> dict[str, Any]:
        for message in _messages(answer):
            if thought := message.get("reasoning_content") or message.get("reasoning"):
                message |= {"reasoning_content": thought, "reasoning": thought}
        cited = {} if self._told_citations or not self.ask.citations else {"citations": list(self.ask.citations)}
        self._told_citations = True
        return {**answer, "model": self.remote.model_name, **cited}

    def _count(self, answer: dict[str, Any]) -> None:
        metrics = self.remote.metrics
        if not self._told_first:
            self._told_first = True
            metrics.first_token.observe(time.monotonic() - self._arrived)
        usage = answer.get("usage") or {}
        metrics.prompt_tokens.inc(usage.get("prompt_tokens") or 0)
        metrics.tokens(usage.get("completion_tokens") or 0)

    async def close(self) -> None:
        """Hang up, which ends the request there, and give the places back; more than once does no harm."""
        self.remote.places_taken -= self._places
        self._places = 0
        if self._response is not None:
            await self._response.aclose()


class RemoteStream(EventStream):
    """The pieces of another server's answer as they come; owns the call and closes it."""

    def __init__(self, call: _Call, ended: Ended) -> None:
        super().__init__(call.remote, call.deadline, ended)
        self._call = call

    async def _pieces(self, send: Send) -> None:
        async with contextlib.aclosing(self._call.pieces()) as pieces:
            async for piece in pieces:
                await say(send, piece)

    async def _close(self) -> None:
        await self._call.close()


def _messages(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of a chat's answer, or the pieces of messages; what has another shape is passed on as it is."""
    choices = answer.get("choices")
    found = [choice.get("message") or choice.get("delta") for choice in choices or () if isinstance(choice, dict)]
    return [message for message in found if isinstance(message, dict)]


def _repeated(ask: Ask, flavour: FlavourName) -> str:
    """What the server will say again before its answer."""
    if ask.talk is None or not ask.talk.continue_final_message or not repeats_prefix(flavour):
        return ""
    messages = cast(Sequence[Message], ask.prompts[0])
    return str(messages[-1]["content"])


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Split at line feeds alone: httpx would also split at U+2028, which stands unescaped in JSON."""
    rest = b""
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r")


def bearer(key: str | None) -> dict[str, str]:
    """Headers that carry the key."""
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def only_model(base_url: str, key: str | None) -> str:
    """The name of the one model that a server lists. Raises ModelError, also where there are several."""
    fix = "name the model: danlu serve NAME --backend openai --base_url …"
    try:
        answer = httpx.get(f"{base_url.rstrip('/')}/models", headers=bearer(key), timeout=_CONNECT_SECONDS)
        answer.raise_for_status()
        names = [str(card["id"]) for card in answer.json()["data"]]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{base_url}/models did not say which model it has: {error}", fix=fix) from error
    if len(names) != 1:
        raise ModelError(f"{base_url} has {len(names)} models: {', '.join(names)}", fix=fix)
    return names[0]


def _object(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ApiFault(502, f"the backend answered with no JSON object: {content[:200]!r}", code="backend_broken")
    return found


def _fault_of(status: int, content: bytes, names: dict[str, str], headers: httpx.Headers) -> ApiFault:
    """The other server's error as ours, with its status: in OpenAI's form, in older vLLM's, in FastAPI's, or as text.

    Its 401 and 403 are about the key of this server and not of the client, who would look in the wrong place.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = {}
    found = found if isinstance(found, dict) else {}
    inner = found.get("error", found)
    if not isinstance(inner, dict):
        inner = {"message": inner}
    message = inner.get("message") or found.get("detail") or content[:500].decode("utf-8", "replace") or "no message"
    if status in (401, 403):
        return ApiFault(502, f"the backend refuses this server: {message}; set {KEY_VARIABLE}", code="backend_key")
    param, code = inner.get("param"), inner.get("code")
    kept = {name: headers[name] for name in ("Retry-After",) if name in headers}
    return ApiFault(
        status,
        str(message),
        None if param is None else names.get(str(param), str(param)),
        code if isinstance(code, str) else _code_of(status, str(message)),
        kept,
    )


def _code_of(status: int, message: str) -> str | None:
    """The one code that clients act on, where the other server says it in words alone."""
    return "context_length_exceeded" if status == 400 and _TOO_LONG.search(message) else None


def _no_answer(error: Exception, url: str, why: str) -> ApiFault:
    """503 where nobody listens, so that a client tries again; 502 where the connection broke."""
    reason = why or str(error) or type(error).__name__
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        message = f"the backend at {url} cannot be reached: {reason}; start it, or check base_url"
        return ApiFault(503, message, code="backend_down", headers={"Retry-After": "5"})
    if isinstance(error, httpx.TimeoutException):
        return ApiFault(504, f"the backend at {url} does not answer: {reason}", code="timeout")
    return ApiFault(502, f"the backend at {url} broke off: {reason}", code="backend_broke_off")
