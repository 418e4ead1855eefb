"""Rows, files, recipes and knobs as nobody writes them on purpose: each is read, or refused by an error of ours."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
from bodies import REGEXES, SCHEMAS, TEXTS, hostile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from serving import is_idle

from danlu import Engine, GenerationParams
from danlu.config import apply_overrides, parse_yaml, validate
from danlu.data.formats import read_records, record_from_row
from danlu.data.records import Skipped
from danlu.data.shapes.shapes import KNOWN_COLUMNS
from danlu.errors import ConfigError, DanluError, DataError
from danlu.flags import from_flags
from danlu.recipe import Recipe
from tiny import make_golden_model


def fault_in(work: Callable[[], object], kind: type[DanluError] = ConfigError) -> str:
    """What an error of this kind says, or nothing; any other is a fault of ours, and so is a library's word."""
    try:
        work()
    except kind as error:
        assert not [word for word in ("pydantic", "after validation", "sys.") if word in str(error)]  # noqa: PT017
        return str(error)
    return ""


# -- data

_KEYS = [*sorted(KNOWN_COLUMNS), "role", "content", "from", "value", "", "Instruction", "丹炉", "name", "function"]
_said = st.one_of(
    st.sampled_from(["hello", "", "user", "assistant", "human", "gpt", "<image>", "\n\nHuman: a\n\nAssistant: b",
    '[{"role": "user"}]', "{"]),
    st.sampled_from(TEXTS),
)  # fmt: skip
_turn = st.dictionaries(
    st.sampled_from(["role", "content", "from", "value", "tool_calls", "weight", "loss", "train"]),
    st.one_of(_said, hostile),
    max_size=4,
)
_column = st.one_of(
    _said, _turn, st.lists(_turn, max_size=3), st.lists(st.lists(_said, max_size=3), max_size=2), hostile
)
_rows = st.dictionaries(st.one_of(st.sampled_from(_KEYS), st.text(max_size=3)), _column, max_size=4)


@given(row=_rows)
@example({"messages": [{"role": "user", "content": [{"type": "text", "text": float("nan")}]}]})
def test_any_row_is_a_record_or_a_fault_of_the_row(row):
    fault = fault_in(lambda: record_from_row(row, None, "a.jsonl:1"), DataError)
    assert fault == "" or fault.startswith("a.jsonl:1: ")


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "txt"])
@given(data=st.one_of(st.binary(max_size=80), st.lists(_rows, max_size=3)))
@settings(max_examples=25)
def test_any_file_is_read_or_refused(tmp_path, kind, data):
    path = tmp_path / f"rows.{kind}"
    if not isinstance(data, bytes):
        lines = [json.dumps(row) for row in data]
        data = (f"[{','.join(lines)}]" if kind == "json" else "\n".join(lines)).encode()
    path.write_bytes(data)
    records = []
    fault = fault_in(lambda: records.extend(read_records(path, on_error="skip", skipped=Skipped())), DataError)
    assert records or "rows" in fault


# -- recipes

_NAMES = [
    "name",
    "seed",
    "resume",
    "model",
    "data",
    "lora",
    "train",
    "prove",
    "merge",
    "paths",
    "path",
    "runs",
    "learning_rate",
]
_documents = st.dictionaries(
    st.sampled_from(_NAMES), st.one_of(hostile, st.dictionaries(st.sampled_from([*_NAMES, "r", "columns", "roles"]),
    hostile, max_size=3)), max_size=4
)  # fmt: skip


@given(document=_documents)
def test_any_document_is_a_recipe_or_a_fault_in_it(document):
    fault = fault_in(lambda: validate(Recipe, document, where="recipe"))
    assert fault == "" or fault.startswith("recipe: ")


@given(text=st.one_of(st.text(max_size=60), _documents.map(lambda one: json.dumps(one)), st.sampled_from(REGEXES)))
@example("a: !!python/object:os.system x")
@example("a: &x [*x]")
@example("? [a]\n: b")
@example("? {a: b}\n: b")
@example("a: 2024-13-45")
@example("<<: 5")
@example("<<: [{a: 1}, 5]")
@example("a: 0x")
@example("a: 1:99:99")
@example("a: !!int x")
@example("a: !!float x")
@example("a: !!binary x")
@example("a: !!timestamp x")
@example("[" * 3000)
@example("a: " + "9" * 5000)
def test_any_text_is_a_recipe_or_a_fault_in_it(text):
    fault = fault_in(lambda: validate(Recipe, parse_yaml(text, "recipe"), where="recipe"))
    assert fault == "" or fault.startswith("recipe: ")


@given(
    words=st.lists(
        st.builds(
            "{}={}".format,
            st.sampled_from([*_NAMES, "data.path", "train.seed", "", ".", "a..b"]),
            st.one_of(st.text(max_size=9), st.sampled_from(TEXTS)),
        ),
        max_size=3,
    )
)
@example(["name=" + "[" * 3000])
@example(["name=? [a]"])
@example(["seed=" + "9" * 5000])
@example(["a=2024-13-45"])
def test_any_override_is_one_or_a_fault(words):
    fault = fault_in(lambda: validate(Recipe, apply_overrides({}, words, Recipe), where="recipe"))
    assert fault  # for no word gives the data, which every recipe needs


@given(
    words=st.dictionaries(
        st.sampled_from(sorted(GenerationParams.model_fields)),
        st.one_of(st.lists(st.sampled_from([*TEXTS, *REGEXES, "@x", "a=b"]), max_size=3), hostile),
        max_size=3,
    )
)
def test_any_flag_is_an_option_or_a_fault(words):
    flags, made = GenerationParams.model_construct(**words), []
    assert fault_in(lambda: made.append(from_flags(GenerationParams, flags))) or made


# -- knobs


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    made = Engine(str(make_golden_model(tmp_path_factory.mktemp("knobs"), "llama")), dtype="float32")
    yield made
    made.close()


_small = st.integers(0, 6)
_knobs = st.fixed_dictionaries(
    {},
    optional={
        "max_new_tokens": _small, "max_length": st.integers(0, 30), "min_new_tokens": _small,
        "min_length": st.integers(0, 20),
        "eos_token_id": st.one_of(st.integers(0, 330), st.lists(st.integers(0, 330), max_size=3)),
        "stop_token_ids": st.lists(st.integers(0, 330), max_size=3),
        "stop_sequences": st.lists(st.one_of(st.sampled_from(TEXTS), st.lists(st.integers(0, 330), max_size=2)),
        max_size=3),
        "do_sample": st.booleans(), "temperature": st.one_of(st.floats(), st.sampled_from([1e-38, 5e-324, 1e-9, 99.9])),
        "top_k": st.integers(-1, 400), "top_p": st.one_of(st.floats(), st.just(1e-30)), "min_p": st.floats(0, 1),
        "typical_p": st.floats(0, 1),
        "seed": st.one_of(_small, st.sampled_from([-1, 2**63 - 1, 2**63])), "num_return_sequences": st.integers(0, 4),
        "repetition_penalty": st.one_of(st.floats(0, 100), st.just(1e-30)), "presence_penalty": st.floats(-3, 3),
        "frequency_penalty": st.floats(-3, 3),
        "no_repeat_ngram_size": _small, "bad_words_ids": st.lists(st.lists(st.integers(0, 330), max_size=3),
        max_size=3),
        "bad_words": st.lists(st.sampled_from(TEXTS), max_size=3), "logit_bias": st.dictionaries(st.integers(0, 330),
        st.floats(-100, 100), max_size=3),
        "num_beams": _small, "num_beam_groups": _small, "diversity_penalty": st.floats(0, 100),
        "length_penalty": st.floats(-10, 10),
        "early_stopping": st.sampled_from([True, False, "never", "x"]),
        "force_words": st.lists(st.sampled_from(TEXTS), max_size=2),
        "force_words_ids": st.lists(st.lists(st.integers(0, 330), max_size=3), max_size=2),
        "exact_reference": st.booleans(),
        "json_schema": st.sampled_from(SCHEMAS), "regex": st.sampled_from(REGEXES),
        "choices": st.lists(st.sampled_from(TEXTS), max_size=3),
        "logprobs": st.integers(-1, 21), "use_cache": st.booleans(), "include_stop": st.booleans(),
        "skip_special_tokens": st.booleans(),
    },
)  # fmt: skip


@given(
    knobs=_knobs, prompt=st.one_of(st.sampled_from(["the quick", "丹炉"]), st.lists(st.integers(0, 330), max_size=4))
)
def test_any_knobs_are_followed_or_refused(engine, knobs, prompt):
    is_limited = "max_new_tokens" in knobs or "max_length" in knobs
    chosen = knobs if is_limited else {**knobs, "max_new_tokens": 5}
    made = []
    fault = fault_in(
        lambda: made.extend(engine.generate([prompt], validate(GenerationParams, chosen, where="knobs"))), DanluError
    )
    assert fault or made
    assert is_idle(engine)
    for answer in [answer for generation in made for answer in generation.sequences]:
        assert len(answer.token_ids) <= 30
        assert answer.score is None or not math.isnan(answer.score)
        assert not any(math.isnan(entry.logprob) for entry in answer.logprobs or ())
