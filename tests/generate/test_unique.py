"""Arrays whose items must differ: whatever strategy runs, none has an item twice, and none that is right is refused."""

from __future__ import annotations

import itertools
import json
import random

import numpy as np
import pytest
from answering import PROMPTS, answers

from danlu import GenerationParams
from danlu.errors import AllBanned, ConfigError
from danlu.generate.scores.doubles import Endings, Place
from danlu.generate.scores.unique import Uniques
from danlu.serve.calls.callgrammar import AnswerForm
from danlu.serve.calls.reasoning import Marks

COMPACT = {"x-guidance": {"whitespace_flexible": False}}


def unique(items, **more):
    return {"type": "array", "items": items, "uniqueItems": True, **more}


COLOURS = ["red", "blue", "re", "丹", 3, None, True]
SCHEMAS = {
    "enum": unique({"enum": COLOURS}, minItems=7),
    "boolean": unique({"type": "boolean"}, minItems=2),
    "digits": unique({"type": "integer", "minimum": 0, "maximum": 9}, minItems=10),
    "strings": unique({"type": "string", "maxLength": 3}, minItems=6, maxItems=6),
    "numbers": unique({"type": "integer", "minimum": 0, "maximum": 9999}, minItems=6, maxItems=6),
    "choice": unique({"anyOf": [{"type": "null"}, {"$ref": "#/$defs/c"}]}, minItems=4)
    | {"$defs": {"c": {"enum": ["a", "b", "ab"]}}},
    "codes": unique({"type": "string", "pattern": "^(a-x|b-y|cz?)$"}, minItems=4, maxItems=4),
    "integers": unique({"type": "integer", "minimum": -999, "maximum": 999}, minItems=4, maxItems=4),
    "objects": unique(
        {"type": "object", "properties": {"a": {"enum": [1, 2]}, "b": {"type": "boolean"}}, "required": ["a"],
         "additionalProperties": False},
        minItems=3, maxItems=3,
    ),
    "nested": {"type": "object", "properties": {"l": unique(unique({"enum": ["x", "y"]}, minItems=1), minItems=3)},
               "required": ["l"], "additionalProperties": False},
}  # fmt: skip
STRATEGIES = {
    "greedy": {},
    "sample": {"do_sample": True, "seed": 3, "num_return_sequences": 4, "temperature": 2.0},
    "beam": {"num_beams": 3, "num_return_sequences": 3},
    "group_beam": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "num_return_sequences": 2},
}


def spelt(item):
    """Equal for equal items."""
    return json.dumps(item, sort_keys=True)


def has_doubles(value):
    if isinstance(value, dict):
        return any(map(has_doubles, value.values()))
    if not isinstance(value, list):
        return False
    return len({spelt(item) for item in value}) < len(value) or any(map(has_doubles, value))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", SCHEMAS)
def test_what_stops_has_no_item_twice(engine, name, strategy):
    params = GenerationParams(json_schema={**SCHEMAS[name], **COMPACT}, max_new_tokens=160, **STRATEGIES[strategy])
    found = [one for made in engine.generate(PROMPTS[:2], params) for one in made.sequences]
    ended = [one for one in found if one.finish_reason == "stop"]
    assert ended
    for one in ended:
        assert not has_doubles(json.loads(one.text, parse_float=float)), one.text


def test_blanks_and_escapes_hide_nothing(engine):
    form = engine._maker._grammars.of(GenerationParams(json_schema=unique({})))
    for text in ('["a","\\u0061"]', "[1, 1.0]", "[10,1e1]", '[{"a":1,"b":2}, {"b":2,"a":1}]', "[[1],[ 1 ]]", "[0,-0]"):
        assert not form.accepts(text), text
    for text in ('["a","A"]', "[1,true]", '["1",1]', '[{"a":1},{"a":2}]', "[[1,2],[2,1]]", "[]", "[null,false,0]"):
        assert form.accepts(text), text


def test_only_arrays_that_ask_for_it(engine):
    schema = {"type": "object", "properties": {"a": unique({"type": "integer"}), "b": {"type": "array"}}}
    form = engine._maker._grammars.of(GenerationParams(json_schema=schema))
    assert form.accepts('{"a":[1,2],"b":[1,1]}')
    assert form.accepts('{"a":[1],"b":[[1,1],[1,1]]}')
    assert not form.accepts('{"a":[1,1],"b":[]}')
    tree = {"$ref": "#/$defs/t", "$defs": {"t": unique({"$ref": "#/$defs/t"})}}
    form = engine._maker._grammars.of(GenerationParams(json_schema=tree))
    assert form.accepts("[[],[[]],[[],[[]]]]")
    assert not form.accepts("[[],[[],[]]]")


# -- the tokens that are banned, against trying each one

TOKENS = [
    *(bytes([at]) for at in range(32, 127)), b'",', b'","', b'"]', b'"a"', b'["', b'[""', b"[]", b"],", b"},", b'"}',
    b'"},{"', b"1,1", b",1,", b",1]", b'\\"', b"\\", b"\\u00", b"61", b'a"', b'a",', b'"a",', b'["a","a"', b"true,",
    b"[1,1]", b" 1", b", ", b"null", "丹".encode(), "丹".encode()[:1], "丹".encode()[1:],
]  # fmt: skip
ENDINGS = Endings(TOKENS)
TEXTS = {
    "strings": (unique({"type": "string"}), ['["a","ab","', '["a" , "b","\\u00', '["丹","x","\\', '["a\\"",', "["]),
    "numbers": (unique({"type": "number"}), ["[1,2,", "[1,2,1", "[1.5,1", "[1 ,"]),
    "objects": (unique({}), ['[{"a":"x"},{"a":"', '[{"a":1},{"a":1', '[[],[', '[{"a":[1]},{"a":[1']),
    "known": (unique({"enum": ["a", "ab", 1]}), ['["a","', '["a","ab",', '["a",1,"ab"', '["ab", ']),
    "inside": ({"items": {"properties": {"a": unique({})}}}, ['[{"a":["a","', '[{"a":', '[{"b":["a","']),
}  # fmt: skip


def _goes_on(_tokens):
    return np.array([piece == b"~" for piece in TOKENS])


@pytest.mark.parametrize("name", TEXTS)
def test_banned_is_what_has_an_item_twice(name):
    schema, texts = TEXTS[name]
    uniques = Uniques.of(schema)
    assert uniques is not None
    for text in texts:
        place = Place(uniques)
        place.feed(text.encode())
        for token, piece in enumerate(TOKENS):
            after = place.copy()
            try:
                after.feed(piece)
            except ValueError:  # no JSON any more
                continue
            only = np.zeros(len(TOKENS), bool)
            only[token] = True
            assert bool(ENDINGS.banned(place, only, _goes_on)) == (not after.may_go_on), (text, piece)


def test_of_known_values_none_is_begun_that_is_there(engine):
    place = Place(Uniques.of(unique({"enum": ["a", "ab", 1]})))
    place.feed(b'["ab","a')
    after = [place.copy() for _ in range(3)]
    for one, more in zip(after, (b'"', b'",', b'",1,'), strict=True):
        one.feed(more)
    assert [one.may_go_on for one in after] == [True, True, False]


def test_a_text_may_come_in_any_pieces():
    schema = unique({}, minItems=1)
    text = json.dumps([{"a": [1, 'x"y', {"丹": None}]}, "x", [True, 1.5e3], {"a": [1]}, 7], ensure_ascii=False).encode()
    uniques, drawn = Uniques.of(schema), random.Random(0)
    for _ in range(30):
        cuts = sorted(drawn.sample(range(len(text)), 9))
        for doubled in (False, True):
            place = Place(uniques)
            for begin, end in itertools.pairwise([0, *cuts, len(text)]):
                place.feed(text[begin:end] if end < len(text) or not doubled else text[begin:-1] + b", 7.0]")
            assert place.is_twice == doubled


# -- what cannot be


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (unique({"type": "boolean"}, minItems=3), "3 items, uniqueItems that they differ, and there are 2 values"),
        (unique({"$ref": "#name"}) | {"$defs": {"a": {"$anchor": "name", "type": "string"}}}, "by its name"),
        (unique({"type": "objekt"}), r"Invalid type: objekt \(at items\)"),
    ],
)
def test_a_faulty_schema_is_refused(engine, schema, words):
    with pytest.raises(ConfigError, match=words):
        answers(engine, ["one"], json_schema=schema)


def test_after_reasoning_it_is_refused(engine):
    form = AnswerForm(marks=Marks("<think>", "</think>"), thinking="may", schema=unique({"type": "string"}))
    with pytest.raises(ConfigError, match="uniqueItems"):
        engine._maker.prepare(GenerationParams(), form)


def test_where_no_item_is_left_it_is_said(engine):
    with pytest.raises(AllBanned, match="uniqueItems leaves no item"):
        answers(engine, json_schema=unique({"type": "string", "maxLength": 0}, minItems=2) | COMPACT, max_new_tokens=60)
