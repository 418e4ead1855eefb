"""What an answer copies, by hand; which sentences of a passage bear on a claim; and what makes a right answer wrong."""

from math import log1p
from random import Random
from time import process_time

import pytest

from danlu.evaluate.perturb import CHANGES, wrong_answers
from danlu.evaluate.sentences import evidence, sentences
from danlu.evaluate.wording import WORDINGS, wording

SOURCE = "The red fox jumped over the dog in 1987. Anna Berg saw it. It is a small animal."


def test_by_hand():
    found = wording("The red fox saw Zoe in 1990.", SOURCE)
    assert found["copied_1"] == pytest.approx(5 / 7)
    assert found["copied_3"] == pytest.approx(1 / 5)
    assert found["new_words"] == log1p(2)
    assert found["new_numbers"] == found["new_names"] == log1p(1)
    # "the red fox", "saw", "in": three pieces, 9 + 1 + 1 squares over seven words
    assert found["pieces"] == log1p(3)
    assert found["longest_piece"] == log1p(3)
    assert found["density"] == pytest.approx(log1p(11 / 7))
    assert found["breaks"] == log1p(4)
    assert found["nearest_pairs"] == pytest.approx(2 / 6)
    assert found["nearest_words"] == pytest.approx(4 / 7)  # the first sentence: the, red, fox, in


def test_what_is_put_together_from_two_sentences_is_near_to_none():
    fused = wording("The red fox saw it. Anna Berg saw it.", SOURCE)
    assert fused["nearest_pairs"] == pytest.approx((2 / 4 + 1) / 2)
    assert fused["nearest_pairs_least"] == pytest.approx(2 / 4)


def test_all_figures_are_told_and_those_without_a_source():
    assert set(wording("a b", "a")) == set(WORDINGS)
    assert set(wording("a b", None)) == {"sentences", "variety", "repeated"}
    assert wording("go on and go on and go on", None)["repeated"] == pytest.approx(3 / 6)


def test_nothing_and_copies_are_no_trouble():
    assert all(value == value for value in wording("", SOURCE).values())
    found = wording(SOURCE, SOURCE)
    assert found["copied_4"] == found["least_copied"] == 1
    assert found["pieces"] == log1p(1)


def test_chinese_counts_by_characters():
    found = wording("他生于北京", "他生于上海，长于北京。")
    assert found["copied_1"] == 1
    assert found["breaks"] == log1p(0)  # 于北 and 北京 are there as well
    assert wording("他生于海北", "他生于上海，长于北京。")["breaks"] == log1p(2)


def test_evidence_is_what_bears_on_the_claim_in_the_order_of_the_text():
    size = lambda text: len(text.split())  # noqa: E731 - one line
    assert evidence(SOURCE, "Anna saw", size, 4) == "Anna Berg saw it."
    assert evidence(SOURCE, "a small animal that Anna saw", size, 9) == "Anna Berg saw it. It is a small animal."
    assert evidence(SOURCE, "x", size, 100) == SOURCE
    assert evidence("一二三。四五六。七八九。", "八九", len, 4) == "七八九。"
    assert sentences("一二三。四五六。") == ["一二三。", "四五六。"]


def test_wrong_answers_take_their_words_from_the_passage():
    found = wrong_answers(
        "In 1987 Berg was there with Anna Berg.", "In 1987, 1990. Anna Berg met Carl Lind.", (), Random(0)
    )
    assert found["number"] == "In 1990 Berg was there with Anna Berg."
    assert "Carl Lind" in found["name"]
    assert found["contrary"] == "In 1987 Berg was not there with Anna Berg."
    assert wrong_answers("It was not so.", "", (), Random(0))["contrary"] == "It was so."


def test_wrong_answers_in_chinese():
    context = "《红楼梦》和《西游记》都在1987年和1990年再版，共3册。"
    found = wrong_answers("《红楼梦》是1987年再版的", context, ("两年", "《红楼梦》"), Random(0))
    assert found == {
        "number": "《红楼梦》是1990年再版的",
        "name": "《西游记》是1987年再版的",
        "contrary": "《红楼梦》不是1987年再版的",
        "swapped": "两年",
    }
    assert set(found) == {*CHANGES, "swapped"}


def test_a_number_that_the_passage_has_none_beside_changes_a_digit():
    changed = wrong_answers("共 35 册", "共 35 册", (), Random(1))["number"]
    assert changed != "共 35 册"
    assert len(changed) == len("共 35 册")


def test_where_nothing_can_be_changed_there_is_no_wrong_answer():
    assert wrong_answers("红色", "红色的花", ("红色",), Random(0)) == {}


@pytest.mark.parametrize("text", ["a. ", "长。", "长短", "a ", "x1. y2 "], ids=["dots", "stops", "run", "one", "pairs"])
def test_a_hundred_thousand_characters_take_seconds(text):
    whole = "".join(text.replace("1", str(at)) for at in range(100_000 // len(text)))
    begun = process_time()
    found = wording(whole, whole[::-1])
    assert found.keys() == WORDINGS.keys()
    assert process_time() - begun < 30, "hours before: each sentence beside each"
