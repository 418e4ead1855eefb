"""Requests near the valid ones, as Hypothesis strategies: a body that is right, with up to three faults put into it.

Every example shrinks to the one fault that matters. Knows routes and names, and nothing of how they are answered.
"""

from __future__ import annotations

import copy
import gzip
import json
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from danlu.generate.params import GenerationParams
from danlu.serve.wire.schema import ChatBody, CompletionBody

MODEL, ADAPTER, ENCODER = "fuzzed", "poet", "encoder"
_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a town",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}, "days": {"type": "integer"}}},
    },
}
_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
_USER = {"role": "user", "content": "hello"}
_CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Rome"}'}}],
}
_CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "system", "content": "be short"}, _USER], "temperature": 0.7, "top_p": 0.9, "seed": 3},
    {"messages": [_USER], "logprobs": True, "top_logprobs": 2, "n": 2, "stop": ["a", "\n"]},
    {"messages": [_USER], "tools": [_TOOL], "tool_choice": "required", "parallel_tool_calls": False},
    {"messages": [_USER, _CALLED, {"role": "tool", "tool_call_id": "c1", "content": "rain"}], "tools": [_TOOL]},
    {"messages": [_USER], "tools": [_TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
    {"messages": [_USER], "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": _SCHEMA}}},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}], "reasoning_effort": "low"},
    {"messages": [_USER, {"role": "assistant", "content": "hel"}], "continue_final_message": True},
    {"messages": [_USER], "logit_bias": {"5": 10, "7": -100}, "frequency_penalty": 0.5, "presence_penalty": 0.5},
]
_TEXTS: list[dict[str, Any]] = [
    {"prompt": "the quick", "temperature": 0, "echo": True, "logprobs": 2},
    {"prompt": [5, 6, 7], "num_beams": 3, "length_penalty": 0.5},
    {"prompt": ["one", "two"], "n": 2, "seed": 1, "top_k": 5, "min_p": 0.1, "typical_p": 0.9},
    {"prompt": "the", "force_words": ["fox"], "num_beams": 2},
    {"prompt": "the", "guided_regex": "[a-z]{1,5}", "temperature": 0},
    {"prompt": "the", "guided_json": _SCHEMA, "repetition_penalty": 1.1, "no_repeat_ngram_size": 2},
    {"prompt": "the", "structured_outputs": {"choice": ["yes", "no"]}, "min_tokens": 1},
    {"prompt": "the", "bad_words": ["dog"], "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
]
_RESPONSES: list[dict[str, Any]] = [
    {"input": "hello", "instructions": "be short", "max_output_tokens": 8},
    {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}], "temperature": 0.5},
    {"input": "hello", "tools": [{"type": "function", **_TOOL["function"]}], "tool_choice": "auto"},
    {"input": "hello", "text": {"format": {"type": "json_schema", "name": "a", "schema": _SCHEMA}}},
]
VALID: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [{"model": MODEL, "max_tokens": 8, **body} for body in _CHATS],
    "/v1/completions": [{"model": MODEL, "max_tokens": 8, **body} for body in _TEXTS],
    "/v1/responses": [{"model": MODEL, "max_output_tokens": 8, **body} for body in _RESPONSES],
    "/v1/embeddings": [{"model": ENCODER, "input": ["hello", "the fox"]}, {"model": ENCODER, "input": [5, 6]}],
    "/tokenize": [{"model": MODEL, "prompt": "hello"}, {"model": MODEL, "messages": [_USER], "tools": [_TOOL]}],
    "/detokenize": [{"model": MODEL, "tokens": [5, 6, 7]}],
}
STREAMED = ("/v1/chat/completions", "/v1/completions", "/v1/responses")

NUMBERS = [
    0, 1, 2, -1, -2, 3.5, 0.0, -0.0, 1e-38, 5e-324, 1e-9, 1e38, 1e308, -1e308, 20, 21, 513, 10**6, 2**31 - 1, 2**31,
    2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**40, float("nan"), float("inf"), float("-inf"),
]  # fmt: skip
TEXTS = [
    "", " ", "\0", "a\0b", "\ud800", "\udfff", "\N{RIGHT-TO-LEFT OVERRIDE}abc", "שלום", "丹炉", "e\u0301" * 3,
    "\ufeff", "\ufffd",
    "\N{MAN}\u200d\N{WOMAN}\u200d\N{GIRL}", "\N{REGIONAL INDICATOR SYMBOL LETTER F}" * 3, "\U0010ffff", "\u2028",
    "\x1b[31m",
    "<|im_end|>", "<|im_start|>system\n", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "{{ 7 * 7 }}",
    "{% for %}",
    "../../etc/passwd", "null", "NaN", "1", "-1", "true", "base", "default", ADAPTER, MODEL, "auto", "none", "required",
    "x" * 3000, "a b " * 700, "\n" * 600,
]  # fmt: skip
REGEXES = [
    "(", "[", "(?=a)", "(a*)*", "(a|a)*b", "a{1,10000}", "(a{1,100}){1,100}", "((a{1,50}){1,50}){1,50}", r"\1",
    r"\p{L}+", r"\d+",
    "^$", "", ".*", "(?s:.*)", r"\bfoo\b", "a{5,2}", "[^\\x00-\\x{10FFFF}]", "(.*a){20}", "(.*a){2000}",
    "(?i)straße", "\\ud800",
]  # fmt: skip
SCHEMAS: list[Any] = [
    {}, True, False, {"type": "object"}, {"type": "nmber"}, {"type": ["string", "null"]}, {"type": []}, {"enum": []},
    {"const": None},
    {"$ref": "#"}, {"$ref": "#/$defs/a"}, {"$ref": "http://127.0.0.1/x"}, {"$ref": 5},
    {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    {"allOf": []}, {"anyOf": [{}, 5]}, {"oneOf": [{"type": "integer"}, {"type": "number"}]}, {"not": {}},
    {"items": {"$ref": "#"}},
    {"type": "integer", "minimum": 5, "maximum": 1}, {"type": "integer", "minimum": -1e308}, {"multipleOf": 0},
    {"multipleOf": 1e-300},
    {"type": "string", "minLength": 10**9}, {"type": "string", "maxLength": -1}, {"type": "string", "pattern": "("},
    {"pattern": "(.*a){500}"},
    {"type": "string", "format": "date"}, {"type": "string", "format": "no-such"}, {"type": "array", "minItems": 10**9},
    {"type": "array", "uniqueItems": True}, {"type": "array", "prefixItems": [True, {}]}, {"required": "a"},
    {"required": ["a", "a"]},
    {"properties": []}, {"properties": {"\0": {}, "": {}}}, {"additionalProperties": 5},
    {"patternProperties": {"(": {}}},
    {"enum": list(range(3000))}, {"properties": {f"p{at}": {"type": "string"} for at in range(300)}},
    {"type": "array", "items": {"enum": ["x" * 2000]}},
    {"if": {}, "then": {}}, {"contains": {}}, {"x-guidance": 5}, {"x-guidance": {"lenient": True}}, {"$schema": 5},
    {"type": {}},
]  # fmt: skip


def _nested(depth: int, leaf: Any = None) -> Any:
    for _ in range(depth):
        leaf = {"properties": {"a": leaf or {}}}
    return leaf


_DEEP = [_nested(30), _nested(200), [[[[[[[[]]]]]]]], {"type": "array", "items": {"items": {"items": {"items": {}}}}}]

_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.text(max_size=8),
    st.integers(),
    st.floats(),
)
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from([*TEXTS[:8], "type", "a", "0"]), inner, max_size=3)
    ),
    max_leaves=6,
)
hostile = st.one_of(
    _values,
    st.sampled_from(SCHEMAS),
    st.sampled_from(REGEXES),
    st.sampled_from(_DEEP),
    st.builds(lambda one, count: [one] * count, _scalars, st.sampled_from([0, 1, 5, 65, 300, 5000])),
)

# Numbers as a client might really give them, so that knobs meet each other and not only their own limits.
_likely = st.one_of(
    st.integers(0, 8), st.floats(0, 2), st.booleans(), st.sampled_from([["fox"], [[5, 6]], {"5": 3.0}, "a", [], [7]])
)
_NAMES = sorted({*GenerationParams.model_fields, *ChatBody.model_fields, *CompletionBody.model_fields})
# Names that belong together with values that fit them.
_formed = st.one_of(
    st.sampled_from(SCHEMAS).map(lambda one: ("guided_json", one)),
    st.sampled_from(SCHEMAS).map(lambda one: ("json_schema", one)),
    st.sampled_from(SCHEMAS).map(
        lambda one: ("response_format", {"type": "json_schema", "json_schema": {"name": "a", "schema": one}})
    ),
    st.sampled_from(SCHEMAS).map(
        lambda one: ("tools", [{"type": "function", "function": {"name": "f", "parameters": one}}])
    ),
    st.sampled_from(REGEXES).map(lambda one: ("regex", one)),
    st.sampled_from(REGEXES).map(lambda one: ("grammar", f"start: /{one}/")),
    st.lists(st.sampled_from(TEXTS), max_size=4).map(lambda some: ("choices", some)),
    st.lists(st.sampled_from(TEXTS), max_size=4).map(lambda some: ("force_words", some)),
    st.lists(st.sampled_from(TEXTS), max_size=4).map(lambda some: ("bad_words", some)),
    st.lists(st.sampled_from(TEXTS), max_size=70).map(lambda some: ("stop", some)),
    st.dictionaries(
        st.sampled_from(["0", "5", "-1", "319", "320", "99999999999", "a", "1.5", ""]), _scalars, max_size=3
    ).map(lambda some: ("logit_bias", some)),
    st.sampled_from([*NUMBERS, "0.1"]).map(lambda one: ("temperature", one)),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every part of a body, by the keys that lead to it."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here for key, part in pairs for here in ((*path, key), *_places(part, (*path, key)))]


@dataclass(frozen=True)
class Body:
    """One request: where it goes, what it holds, and which of its fields are not as they should be."""

    path: str
    content: dict[str, Any]
    changed: tuple[str, ...]

    @property
    def bytes(self) -> bytes:
        return json.dumps(self.content).encode()


@st.composite
def bodies(draw: st.DrawFn, paths: tuple[str, ...] = tuple(VALID), most_faults: int = 3) -> Body:
    path = draw(st.sampled_from(paths))
    content = copy.deepcopy(draw(st.sampled_from(VALID[path])))
    if path in STREAMED and draw(st.booleans()):
        content["stream"] = True
    if path in STREAMED and draw(st.integers(0, 4)) == 4:
        content["model"] = ADAPTER
    changed = []
    for _ in range(draw(st.integers(0, most_faults))):
        kind = draw(st.sampled_from(["replace", "likely", "leave out", "add", "form"]))
        if kind == "add":
            changed.append(draw(st.sampled_from(_NAMES)))
            content[changed[-1]] = copy.deepcopy(draw(st.one_of(_likely, hostile)))  # a later fault may be put into it
        elif kind == "form":
            name, value = draw(_formed)
            changed.append(name)
            content[name] = copy.deepcopy(value)
        else:
            where = draw(st.sampled_from(_places(content) or [("model",)]))
            changed.append(str(where[0]))
            _change(content, where, kind, draw)
    return Body(path, content, tuple(changed))


def _change(content: dict[str, Any], where: tuple[Any, ...], kind: str, draw: st.DrawFn) -> None:
    node: Any = content
    for key in where[:-1]:
        node = node[key]
    if kind == "leave out":
        if isinstance(node, list) or where[-1] in node:
            del node[where[-1]]
    else:
        node[where[-1]] = copy.deepcopy(draw(_likely if kind == "likely" else hostile))


# -- bodies as long as a server takes, each with a fault in every part, or none

_MANY = 60_000
_KEYS = {f"k{at}": 1 for at in range(_MANY)}
_NAMED = [{"type": "function", "function": {"name": f"f{at}"}} for at in range(12_000)]


def _large(path: str, **fields: Any) -> Body:
    return Body(path, {**VALID[path][0], **fields}, tuple(fields))


LARGE = [
    _large("/detokenize", tokens=[None] * _MANY),
    _large("/detokenize", tokens=[5] * _MANY),
    _large("/tokenize", prompt="a b " * 200_000),
    _large("/tokenize", prompt=None, messages=[_USER], tools=_NAMED),
    _large("/v1/embeddings", input=[None] * _MANY),
    _large("/v1/embeddings", input=["a"] * 2048),
    _large("/v1/embeddings", input=[[5, None]] * _MANY),
    _large("/v1/completions", prompt=[5] * _MANY),
    _large("/v1/completions", prompt=["a"] * _MANY),
    _large("/v1/completions", prompt=[[5]] * _MANY),
    _large("/v1/completions", prompt="a" * 900_000),
    _large("/v1/completions", logit_bias={str(at): "x" for at in range(_MANY)}),
    _large("/v1/completions", choices=[f"a{at}" for at in range(4096)]),
    _large("/v1/completions", bad_words=["a" * 60] * 16_000),
    _large("/v1/completions", stop=["a" * 8000] * 64),
    _large("/v1/completions", force_words=["a" * 8000] * 64),
    _large("/v1/completions", regex="|".join(f"a{at}" for at in range(9000))),
    _large("/v1/chat/completions", messages=[_USER] * 20_000),
    _large("/v1/chat/completions", messages=[{"role": 5}] * _MANY),
    _large("/v1/chat/completions", messages=[{"role": "user", "content": [{"type": "text", "text": "a"}] * 30_000}]),
    _large("/v1/chat/completions", messages=[{"role": "user", "content": [5] * _MANY}]),
    _large("/v1/chat/completions", tools=[5] * _MANY),
    _large("/v1/chat/completions", tools=_NAMED),
    _large("/v1/chat/completions", stream_options=_KEYS, stream=True),
    _large("/v1/chat/completions", chat_template_kwargs=_KEYS),
    _large("/v1/chat/completions", guided_json={"enum": list(range(_MANY))}),
    _large("/v1/chat/completions", guided_json={"anyOf": [{"type": "nmber"}] * 20_000}),
    _large("/v1/chat/completions", guided_json={"properties": {f"p{at}": {"type": "string"} for at in range(4000)}}),
    _large("/v1/responses", input=[5] * _MANY),
    _large("/v1/responses", input=[{"type": "x"}] * 30_000),
]


# -- bytes that are no body


@dataclass(frozen=True)
class Junk:
    """Bytes, and what is said of them."""

    path: str
    bytes: bytes
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)


_RIGHT = json.dumps(VALID["/v1/chat/completions"][0]).encode()
_HEADERS = [
    {"content-type": "text/plain"}, {"content-type": ""}, {}, {"content-type": "application/json; charset=utf-16"},
    {"content-type": "application/json", "content-encoding": "gzip"}, {"content-type": "multipart/form-data"},
    {"content-type": "application/json", "authorization": "Bearer x"}, {"content-type": "application/json",
    "x-long": "y" * 5000},
    {"content-type": "APPLICATION/JSON;charset=UTF-8"}, {"content-type": "application/json",
    "accept": "text/event-stream"},
]  # fmt: skip


def _cut(at: int, more: bytes) -> bytes:
    return _RIGHT[:at] + more + _RIGHT[at:]


@st.composite
def junk(draw: st.DrawFn) -> Junk:
    body = draw(
        st.one_of(
            st.binary(max_size=60),
            st.builds(lambda end: _RIGHT[:end], st.integers(0, len(_RIGHT))),
            st.builds(
                _cut, st.integers(0, len(_RIGHT)), st.sampled_from([b"\xff", b"\xc3", b"\x00", b'"', b"{", b",,",
                b"\xed\xa0\x80"])
            ),
            st.sampled_from(
                [
                    gzip.compress(_RIGHT), b'{"model": "a", "model": "b"}', b"[" * 100_000, b'{"a":' * 50_000,
                    b"null", b"[]", b"5", b'"a"',
                    b"\xef\xbb\xbf" + _RIGHT, _RIGHT.decode().encode("utf-16"), b"1" * 5000,
                    b'{"model": ' + b"9" * 5000 + b"}",
                    b'{"model": 1e999}', b'{"model": -Infinity}', b'{"model": "\\ud800"}', _RIGHT + b" trailing",
                    b" " * 2_000_000, _RIGHT,
                ]
            ),
        )
    )  # fmt: skip
    headers = draw(st.one_of(st.just({"content-type": "application/json"}), st.sampled_from(_HEADERS)))
    return Junk(draw(st.sampled_from(sorted(VALID))), body, tuple(headers.items()))


# -- other routes

METHODS = ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "QUERY"]
ROUTES = [
    "/v1/models", "/health", "/metrics", "/version", "/openapi.json", "/v1/chat/completions", "/tokenize", "/",
    "/v1", "/docs",
    f"/v1/models/{MODEL}", f"/v1/models/{ADAPTER}", "/v1/models/", "/v1/models/a/b", "/v1/models/%00",
    "/v1/models/%ff", "/v1/models/%2e%2e",
    "/v1/models?limit=-1", "/v1//models", "/v1/models/" + "x" * 4000, "/v1/models/%E4%B8%B9", "/v1/responses/resp_1",
    "//v1/models",
]  # fmt: skip
