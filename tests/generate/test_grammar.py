"""Answers of a given form: whatever strategy and knobs run, what stops fits."""

from __future__ import annotations

import json
import re

import pytest
import torch
from answering import PROMPTS, answers, fixed_scores
from transformers import PreTrainedTokenizerFast

from danlu import GenerationParams
from danlu.data.chat import Chat
from danlu.errors import AllBanned, ConfigError
from danlu.generate.scores import grammar
from danlu.generate.scores.grammar import Grammars
from tiny import make_tokenizer

COMPACT = {"x-guidance": {"whitespace_flexible": False}}  # random weights are fond of blanks
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "c": {"enum": ["red", "blue", "丹"]}},
    "required": ["n", "c"],
    "additionalProperties": False,
    **COMPACT,
}
REGEX = r"(the|丹炉) [a-z]{2,9}( [0-9]{1,3})?"
STRATEGIES = {
    "greedy": {},
    "sample": {"do_sample": True, "seed": 3, "num_return_sequences": 4, "temperature": 2.0},
    "beam": {"num_beams": 4, "num_return_sequences": 4},
    "beam_sample": {"num_beams": 3, "num_return_sequences": 3, "do_sample": True, "seed": 3, "top_p": 0.9},
    "group_beam": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "num_return_sequences": 4},
    "penalties": {"repetition_penalty": 1.4, "frequency_penalty": 1.0},
}


def fits_schema(text):
    found = json.loads(text)
    return set(found) == {"n", "c"} and 0 <= found["n"] <= 99 and found["c"] in SCHEMA["properties"]["c"]["enum"]


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize(
    ("form", "fits"),
    [({"json_schema": SCHEMA}, fits_schema), ({"regex": REGEX}, lambda text: re.fullmatch(REGEX, text))],
    ids=["schema", "regex"],
)
def test_what_stops_fits(engine, name, form, fits):
    found = engine.generate(PROMPTS, GenerationParams(max_new_tokens=120, **form, **STRATEGIES[name]))
    sequences = [one for generation in found for one in generation.sequences]
    assert all(one.finish_reason == "stop" and fits(one.text) for one in sequences), [one.text for one in sequences]


def test_any_object(engine):
    found = answers(engine, json_schema={"type": "object"}, max_new_tokens=200, do_sample=True, seed=1)
    ended = [one for one in found if one.finish_reason == "stop"]
    assert ended
    assert all(isinstance(json.loads(one.text), dict) for one in ended)
    assert all(one.text.startswith("{") for one in found)


def test_once_complete_only_the_end_follows(engine):
    (answer,) = answers(engine, ["one"], regex="abc")
    assert (answer.text, answer.finish_reason) == ("abc", "stop")
    assert answer.token_ids[-1] in engine.chat.stop_ids


def test_a_limit_may_cut_the_answer(engine):
    (answer,) = answers(engine, ["one"], regex="(abc){50}", max_new_tokens=5)
    assert answer.finish_reason == "length"
    assert ("abc" * 50).startswith(answer.text)


WITH_SPOKEN_ENDS = STRATEGIES | {
    "forced": {"force_words": ["c"], "num_beams": 3},
    "forced_groups": {"force_words": ["c"], "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    "banks": {"force_words": ["c"], "do_sample": True, "seed": 3},
}


@pytest.mark.parametrize("ends", ["b", "bc", "a", "b/"])
@pytest.mark.parametrize("name", WITH_SPOKEN_ENDS)
def test_an_end_that_is_text_counts_where_the_answer_is_complete_with_it(engine, name, ends):
    """Elsewhere it is text as any other; "/" stands for the model's own end, which is none unless it is asked for."""
    ids = engine.chat.tokenizer.convert_tokens_to_ids
    eos = [2 if end == "/" else ids(end) for end in ends]
    for regex in ("abc", "a[bc]{3}", "[ab]{3}c|c[ab]{4}", "c?[ac]{3}c", "[ab]?cb?"):
        params = GenerationParams(regex=regex, eos_token_id=eos, max_new_tokens=9, **WITH_SPOKEN_ENDS[name])
        found = engine.generate(PROMPTS, params)
        for answer in (one for each in found for one in each.sequences):
            assert answer.finish_reason == "stop"
            assert re.fullmatch(regex, answer.text)
            pieces = [engine.chat.tokenizer.decode([token]) for token in answer.token_ids]
            ended = [
                at for at, piece in enumerate(pieces, 1) if re.fullmatch(regex, "".join(pieces[:at])) and piece in ends
            ]
            assert not ended or ended[0] == len(pieces)


def test_a_least_length_bans_an_end_that_is_text_only_where_it_ends(engine):
    end = engine.chat.tokenizer.convert_tokens_to_ids("b")
    for beams in (1, 3):
        (answer,) = answers(engine, ["one"], regex="ab{2}c", eos_token_id=end, min_new_tokens=4, num_beams=beams)
        assert (answer.text, answer.finish_reason) == ("abbc", "stop")


def test_a_complete_answer_ends_as_the_models_own_where_every_end_is_text(engine):
    end = engine.chat.tokenizer.convert_tokens_to_ids("x")
    for knobs in ({"regex": "abc"}, {"json_schema": {"const": "b"}}, {"choices": ["abc"]}):
        (answer,) = answers(engine, ["one"], eos_token_id=end, **knobs)
        assert answer.finish_reason == "stop"
        assert answer.token_ids[-1] in engine.chat.stop_ids


# -- stop sequences


def test_a_stop_sequence_counts_where_the_text_before_it_fits(engine, monkeypatch):
    ids = engine.chat.tokenizer.convert_tokens_to_ids
    fixed_scores(engine, monkeypatch, {ids("a"): 2.0, ids("b"): 1.0, ids("c"): 0.5, 2: 0.0})
    for beams in (1, 3):
        (answer,) = answers(engine, ["one"], regex="aaabac", stop_sequences=["b"], num_beams=beams)
        assert answer.text == "aaabac"
        (answer,) = answers(engine, ["one"], regex="aaab?", stop_sequences=["b"], num_beams=beams)
        assert (answer.text, answer.finish_reason) == ("aaa", "stop")
        kept = {"stop_sequences": ["b"], "include_stop": True, "num_beams": beams}
        (answer,) = answers(engine, ["one"], regex="aaab(abc)?", **kept)
        assert (answer.text, len(answer.token_ids)) == ("aaab", 4)


def test_of_a_stop_that_comes_twice_in_a_token_the_one_that_fits_counts(engine):
    (answer,) = answers(
        engine,
        ["one"],
        json_schema={"const": {"a": {"b": 1}}, **COMPACT},
        stop_sequences=["}"],
        include_stop=True,
        max_new_tokens=40,
    )
    assert json.loads(answer.text) == {"a": {"b": 1}}
    assert answer.finish_reason == "stop"


def test_streams_stop_where_answers_do(engine):
    params = GenerationParams(regex="[a-z]{3}", stop_sequences=["a", "e"], max_new_tokens=8)
    for prompt in PROMPTS:
        whole = engine.generate([prompt], params)[0].sequences[0]
        events = list(engine.stream(prompt, params))
        assert "".join(event.text for event in events) == whole.text
        assert events[-1].answer == whole
        assert re.fullmatch("[a-z]{3}", whole.text)


# -- what cannot be


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"regex": "a{3}", "min_new_tokens": 9}, "regex: only the end may follow, once min_new_tokens has banned"),
        ({"regex": "a{3}", "eos_token_id": []}, "complete by regex, and eos_token_id leaves no token to end it"),
        ({"regex": "abc", "bad_words": ["b"]}, "regex: no token goes on with it, once bad_words has banned"),
        ({"regex": "a{9}b", "no_repeat_ngram_size": 1}, "once no_repeat_ngram_size has banned tokens"),
    ],
)
def test_a_form_and_a_ban_that_contradict_each_other_are_named(engine, knobs, words):
    with pytest.raises(AllBanned, match=words):
        answers(engine, ["one"], **knobs)
    with pytest.raises(AllBanned, match="regex"):
        answers(engine, ["one"], **knobs, num_beams=2)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"regex": "ab(("}, r"regex: unclosed group\n    ab\(\(\n       \^"),
        ({"regex": "a(?=b)"}, "look-around, including look-ahead and look-behind, is not supported"),
        ({"json_schema": {"type": "objekt"}}, r"json_schema: Invalid type: objekt \(at the schema itself\)"),
        (
            {"json_schema": {"properties": {"a": {"anyOf": [{"type": "string"}, {"items": {"type": "nmber"}}]}}}},
            r"json_schema: Invalid type: nmber \(at properties/a/anyOf/1/items\)",
        ),
        (
            {"json_schema": {"$defs": {"x": {"type": "string", "pattern": "(("}}, "items": {"$ref": "#/$defs/x"}}},
            r"json_schema: unclosed group",
        ),
        ({"json_schema": {"const": "\ud800"}}, "json_schema: Value is not JSON"),
        ({"json_schema": {"x-guidance": 3}}, "x-guidance is 3"),
        ({"regex": "(" * 300 + ")" * 300}, "nested parentheses"),
        ({"json_schema": {"x-guidance": {"lenient": True}}}, "x-guidance is"),
        ({"json_schema": {"not": {"type": "array"}}}, "Unimplemented keys"),
        ({"json_schema": {"x-guidance": {"item_separator": ";"}}}, "x-guidance is"),
        ({"json_schema": {"x-guidance": {"whitespace_flexible": 1}}}, "neither true nor false"),
        ({"grammar": "start: nowhere"}, "grammar: "),
        ({"json_schema": {"$ref": "#"}}, "'#' leads back to itself"),
        (
            {
                "json_schema": {
                    "items": {"$ref": "#/$defs/a"},
                    "$defs": {n: {"$ref": f"#/$defs/{m}"} for n, m in ("ab", "ba")},
                }
            },
            r"'#/\$defs/.' leads back to itself",
        ),
        (
            {"json_schema": {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}}},
            "'#/\\$defs/a' leads back to itself",
        ),
        ({"json_schema": {"items": {"$ref": "http://x.org/y"}}}, r"\$ref 'http://x.org/y': nothing is fetched here"),
        ({"json_schema": {"items": {"$ref": "#/$defs/x"}}}, "Pointer '/\\$defs/x' does not exist"),
    ],
)
def test_a_faulty_form_is_refused_with_its_place(engine, knobs, words):
    with pytest.raises(ConfigError, match=words):
        answers(engine, ["one"], **knobs)


# -- how it is kept


def test_a_form_is_compiled_once(engine, monkeypatch):
    made = []
    own = Grammars._compiled
    monkeypatch.setattr(Grammars, "_compiled", lambda self, params: made.append(params) or own(self, params))
    answers(engine, regex="[ab]{2}")
    answers(engine, regex="[ab]{2}", num_beams=2)
    answers(engine, regex="[ab]{3}")
    assert [params.regex for params in made] == ["[ab]{2}", "[ab]{3}"]
    monkeypatch.setattr(grammar, "KEPT_BYTES", grammar._SIZES[0][1])  # room for one
    for regex in ("c", "[ab]{3}"):
        answers(engine, ["one"], regex=regex)
    assert [params.regex for params in made][2:] == ["c", "[ab]{3}"]


def test_a_form_waits_for_memory_and_goes_on(engine):
    """Preemption reads a request in again; its place in the form stays."""
    knobs = {"json_schema": SCHEMA, "max_new_tokens": 60}
    expected = [answer.token_ids for answer in answers(engine, **knobs)]
    assert [answer.token_ids for answer in answers(engine, **knobs, use_cache=False)] == expected


def test_a_vocabulary_larger_than_the_tokenizer_s():
    tokenizer = make_tokenizer()
    rows = grammar.GrammarRows(
        Grammars(Chat(tokenizer, frozenset({2})), len(tokenizer) + 40).of(GenerationParams(regex="[ab]")),
        1,
        frozenset({2}),
    )
    scores = rows.masked(torch.zeros(1, len(tokenizer) + 40), [0])
    assert scores.shape[1] == len(tokenizer) + 40
    assert set(scores[0].isfinite().nonzero()[:, 0].tolist()) == set(tokenizer.convert_tokens_to_ids(["a", "b"]))


def test_the_space_that_sentencepiece_drops_is_no_part_of_the_answer():
    from tokenizers import Tokenizer, decoders, models, normalizers

    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "b"]
    bpe = Tokenizer(
        models.BPE({name: at for at, name in enumerate(names)}, [("▁", "a")], unk_token="<unk>", byte_fallback=True)
    )
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    bpe.decoder = decoders.Sequence(steps)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    forms = Grammars(Chat(tokenizer, frozenset({2})), len(tokenizer))
    for knobs, text in (({"regex": "ab"}, "ab"), ({"json_schema": {"const": "a"}}, '"a"')):
        form = forms.of(GenerationParams(**knobs))
        assert form.accepts(text)
        assert not form.accepts(" " + text)
        rows = grammar.GrammarRows(form, 1, frozenset({2}))
        first = rows.masked(torch.zeros(1, len(tokenizer)), [0])[0].isfinite().nonzero()[:, 0].tolist()
        assert {tokenizer.convert_ids_to_tokens(token)[0] for token in first if token > 258} == {"▁"}


def fits(engine, text, **form):
    return engine._maker._grammars.of(GenerationParams(**form)).accepts(text)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("date", ["2024-02-29", "2000-02-29", "2023-12-31"], ["2023-02-29", "1900-02-29", "2023-04-31", "2023-13-01"]),
        (
            "date-time",
            ["2024-02-29T23:59:59Z", "2023-01-01T00:00:00.125+08:00"],
            ["2023-01-01T00:00:60Z", "2023-02-29T00:00:00Z", "2023-01-01T24:00:00Z", "2023-01-01T00:00:00"],
        ),
        ("time", ["08:30:00Z"], ["08:30:60Z", "25:00:00Z"]),
    ],
)
def test_days_and_seconds_that_do_not_exist_do_not_fit(engine, name, right, wrong):
    schema = {"type": "array", "items": {"anyOf": [{"type": "string", "format": name}]}}
    assert [text for text in right if not fits(engine, f'["{text}"]', json_schema=schema)] == []
    assert [text for text in wrong if fits(engine, f'["{text}"]', json_schema=schema)] == []


def test_unique_items_that_say_nothing_are_passed_over(engine):
    assert fits(engine, "[1,1]", json_schema={"type": "array", "items": {"type": "integer"}, "uniqueItems": False})
    assert fits(engine, "[1]", json_schema={"type": "array", "maxItems": 1, "uniqueItems": True})


def test_one_of_some_texts(engine):
    choices = ("a.b", "(中)|x", "new\nline")
    assert all(fits(engine, text, choices=choices) for text in choices)
    assert not any(fits(engine, text, choices=choices) for text in ("axb", "a", "", "中"))


def test_a_grammar_in_larks_words(engine):
    assert fits(engine, "ab", grammar='start: "a" "b"')
    assert not fits(engine, "ba", grammar='start: "a" "b"')


def test_a_form_too_large_to_follow_is_refused_and_not_kept(engine):
    kept = engine._maker._grammars.kept_bytes
    with pytest.raises(AllBanned, match="regex: "):
        answers(engine, regex="a{1000000}")
    assert engine._maker._grammars.kept_bytes == kept


def test_kept_forms_take_no_more_than_their_budget(engine):
    for number in range(40):
        fits(engine, "", regex=f"x{{{number + 1}}}")
    assert engine._maker._grammars.kept_bytes <= grammar.KEPT_BYTES


def test_a_schema_may_hold_itself(engine):
    node = {
        "type": "object",
        "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}},
        "required": ["v"],
    }
    schema = {"$ref": "#/$defs/node", "$defs": {"node": node}}
    assert fits(engine, '{"v":1,"next":{"v":2,"next":{"v":3}}}', json_schema=schema)
    assert not fits(engine, '{"v":1,"next":{"next":{"v":3}}}', json_schema=schema)
    tree = {"type": "array", "items": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}
    assert fits(engine, "[[null,[]],null]", json_schema=tree)
