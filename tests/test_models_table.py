"""docs/models: a row for each kind, in both languages alike, and what the table says of what the tests recorded."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import transformers
from zoo import KINDS

from danlu.model.language_part import COMPARED

ROOT = Path(__file__).resolve().parents[1]
GUIDES = {"en": ROOT / "docs" / "models.md", "zh": ROOT / "docs" / "models.zh.md"}


@pytest.fixture(scope="module")
def table():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import models_table

    yield models_table
    sys.path.remove(str(ROOT / "benchmarks"))


def written(table, language):
    """The rows that stand in the guide, as cells."""
    text = GUIDES[language].read_text("utf-8").split(table.START)[1].split(table.END)[0]
    return re.search(r"transformers ([\d.]+)", text)[1], [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]


@pytest.mark.parametrize("language", GUIDES)
def test_the_guide_has_a_row_for_each_kind_of_the_transformers_it_names(table, language):
    version, rows = written(table, language)
    if version != transformers.__version__:
        pytest.skip(f"written with transformers {version}; make test-models writes it anew")
    assert [cells[0].strip("`") for cells in rows] == list(KINDS)


@pytest.mark.parametrize("language", GUIDES)
def test_what_is_not_right_or_not_in_company_says_why(table, language):
    words, (_, rows) = table.WORDS[language], written(table, language)
    for kind, *checks, speed, why in rows:
        assert why or (words["wrong"] not in checks and speed in (words["lean"], words["plain"])), kind


def test_both_languages_say_the_same(table):
    (_, english), (_, chinese) = (written(table, language) for language in GUIDES)
    speeds = {
        table.WORDS["en"][speed]: table.WORDS["zh"][speed] for speed in ("lean", "plain", "alone", "refused", "unknown")
    }
    assert [[*cells[:-2], speeds[cells[-2]]] for cells in english] == [cells[:-1] for cells in chinese]


@pytest.mark.parametrize("language", GUIDES)
def test_the_guide_lists_the_multimodal_kinds_that_were_compared(language):
    text = GUIDES[language].read_text("utf-8")
    assert [kind for kind in COMPARED if f"`{kind}`" not in text] == []


# -- from what was recorded to a row

GREEDY = "test_greedy_search_takes_what_the_plain_pass_likes_best"
LORA = "test_one_request_has_an_adapter_and_its_neighbours_have_none"


def recorded(table, tmp_path, *cases):
    """Found, of (test, name, what stands in the case)."""
    inside = "".join(f'<testcase name="{test}[{name}]">{what}</testcase>' for test, name, what in cases)
    path = tmp_path / "found.xml"
    path.write_text(f"<testsuites><testsuite>{inside}</testsuite></testsuites>")
    return table.Found.of(path)


def noted(name, value):
    return f'<properties><property name="{name}" value="{value}"/></properties>'


def test_a_check_holds_where_it_holds_for_all_forms_of_a_kind(table, tmp_path):
    cases = [(GREEDY, "falcon", noted("speed", "plain")), (GREEDY, "falcon-40b", "")]
    row = table.row(recorded(table, tmp_path, *cases), "falcon")
    assert (row.speed, row.checks["greedy"], row.checks["merge"], row.reasons) == ("plain", True, None, ())
    cases[1] = (GREEDY, "falcon-40b", '<failure message="no"/>')
    row = table.row(recorded(table, tmp_path, *cases), "falcon")
    assert (row.checks["greedy"], row.is_right) == (False, False)


def test_an_adapter_that_is_refused_is_not_offered_and_says_why(table, tmp_path):
    refused = noted("adapter_refused", "not plain LoRA: target_parameters is ['experts']")
    found = recorded(table, tmp_path, (GREEDY, "mixtral", noted("speed", "plain")), (LORA, "mixtral", refused))
    row = table.row(found, "mixtral")
    assert (row.checks["lora"], row.reasons, row.is_right) == (None, ("experts",), True)
    assert row.cells(table.WORDS["en"], "en")[-3:-1] == ["–", "plain"]


def test_a_refused_kind_says_why(table, tmp_path):
    found = recorded(table, tmp_path, (table.REFUSAL, "bert-answers", ""), (table.REFUSAL, "bert-learns", ""))
    row = table.row(found, "bert")
    assert (row.speed, row.reasons, row.is_right) == ("refused", ("encoder",), False)


def test_a_slow_kind_without_words_is_an_error(table, tmp_path):
    found = recorded(table, tmp_path, (GREEDY, "llama", noted("speed", "alone")))
    with pytest.raises(AssertionError, match="llama: say in WHY why it is alone"):
        table.row(found, "llama")
    with pytest.raises(AssertionError, match="phi: no test was made"):
        table.row(found, "phi")
