"""Forms out of declarations, and what was typed into them."""

from __future__ import annotations

import pytest

from danlu.errors import ConfigError
from danlu.generate.params import GenerationParams
from danlu.recipe import Recipe
from danlu.ui.forms import document_of, fields_of, read

FIELDS = {field["name"]: field for field in fields_of(GenerationParams, "en")}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("do_sample", "bool"),
        ("temperature", "float"),
        ("top_k", "int"),
        ("early_stopping", "choice"),
        ("bad_words", "lines"),
        ("force_words", "yaml"),
        ("json_schema", "yaml"),
        ("regex", "text"),
        ("logit_bias", "yaml"),
    ],
)
def test_each_kind_of_value_has_its_field(name, kind):
    assert FIELDS[name]["kind"] == kind


def test_every_knob_has_a_field_with_its_meaning_and_bounds():
    assert FIELDS.keys() == GenerationParams.model_fields.keys()
    assert all(field["meaning"] for field in FIELDS.values())
    assert (FIELDS["top_p"]["above"], FIELDS["top_p"]["max"]) == (0, 1)
    assert FIELDS["early_stopping"]["choices"] == ["false", "true", "never"]
    assert FIELDS["temperature"]["default"] == "1.0"


def test_meanings_are_in_the_reader_s_language():
    chinese = {field["name"]: field["meaning"] for field in fields_of(GenerationParams, "zh")}
    assert chinese["temperature"] != FIELDS["temperature"]["meaning"]


def test_sections_hold_their_fields():
    fields = {field["name"]: field for field in fields_of(Recipe, "en")}
    assert fields["train"]["kind"] == "section"
    names = {field["name"] for field in fields["train"]["fields"]}
    assert "train.learning_rate" in names
    assert fields["data"]["fields"][0]["name"].startswith("data.")


def test_what_is_typed_is_read_as_on_a_command_line():
    typed = {"do_sample": "true", "temperature": "0.7", "bad_words": '["yes", "no"]', "regex": '"2024"'}
    params = read(GenerationParams, typed, "the knobs")
    assert (params.temperature, params.bad_words, params.regex) == (0.7, ("yes", "no"), "2024")


def test_what_is_no_value_names_its_field():
    with pytest.raises(ConfigError, match="temperature"):
        read(GenerationParams, {"temperature": "warm"}, "the knobs")
    with pytest.raises(ConfigError, match="bad_words"):
        document_of(GenerationParams, {"bad_words": "[a, "})
    with pytest.raises(ConfigError, match="temprature: unknown key"):
        read(GenerationParams, {"temprature": "1"}, "the knobs")
