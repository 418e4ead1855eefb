"""chrF against numbers worked out by hand."""

import pytest

from danlu.evaluate.overlap import chrf


def test_equal_texts_score_100():
    assert chrf("The furnace is hot.", "The furnace is hot.") == pytest.approx(100)
    assert chrf("炉火纯青", "炉火纯青") == pytest.approx(100)


def test_no_shared_character_scores_0():
    assert chrf("abc", "xyz") == 0


@pytest.mark.parametrize(("hypothesis", "reference"), [("", "abc"), ("abc", ""), ("", ""), (" \n\t", "abc")])
def test_an_empty_text_scores_0(hypothesis, reference):
    assert chrf(hypothesis, reference) == 0


def test_by_hand_one_letter_differs():
    # n=1: {a,b,c} in abcd and abce: 3 of 4.  n=2: ab, bc of 3.  n=3: abc of 2.  n=4: 0 of 1.
    # Orders 5 and 6 do not exist in four characters and are left out.
    # Same lengths, so precision = recall = (3/4 + 2/3 + 1/2 + 0) / 4 = 0.4791667 = F.
    assert chrf("abcd", "abce") == pytest.approx(100 * (3 / 4 + 2 / 3 + 1 / 2) / 4)


def test_by_hand_answer_too_short():
    # "ab" against "abcdef": orders 1 and 2 only. Precision 2/2, 1/1 -> 1. Recall 2/6, 1/5 -> 4/15.
    # F2 = 5 · 1 · 4/15 / (4 · 1 + 4/15) = (20/15) / (64/15) = 20/64 = 0.3125.
    assert chrf("ab", "abcdef") == pytest.approx(31.25)


def test_by_hand_answer_too_long_costs_less_than_too_short():
    # The same pair turned round: P = 4/15, R = 1. F2 = 5 · 4/15 / (4 · 4/15 + 1) = 20/31.
    assert chrf("abcdef", "ab") == pytest.approx(100 * 20 / 31)


def test_by_hand_repeats_are_clipped():
    # "aaa" against "ab". n=1: shared min(3,1) = 1: P 1/3, R 1/2. n=2: aa,aa against ab: 0. Order 3: none.
    # P = 1/6, R = 1/4. F2 = 5 · 1/24 / (4/6 + 1/4) = (5/24) / (22/24) = 5/22.
    assert chrf("aaa", "ab") == pytest.approx(100 * 5 / 22)


def test_by_hand_chinese():
    # 今天好 against 今天很好. n=1: 3 of 3, 3 of 4. n=2: 今天 of 今天,天好 -> 1/2; of 今天,天很,很好 -> 1/3.
    # n=3: 0 of 1, 0 of 2. P = (1 + 1/2) / 3 = 1/2. R = (3/4 + 1/3) / 3 = 13/36.
    # F2 = 5 · 13/72 / (2 + 13/36) = (65/72) / (170/72) = 65/170.
    assert chrf("今天好", "今天很好") == pytest.approx(100 * 65 / 170)


def test_whitespace_of_any_kind_does_not_count():
    assert chrf("今天 很\u3000好\n", "今天很好") == pytest.approx(100)


def test_beta_one_weighs_both_sides_alike():
    assert chrf("ab", "abcdef", beta=1) == pytest.approx(chrf("abcdef", "ab", beta=1))


def test_max_order_bounds_the_ngrams():
    assert chrf("abcd", "abce", max_order=1) == pytest.approx(75)


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        # sacrebleu.metrics.CHRF().sentence_score(answer, [truth]).score, 2.6
        ("The cat sat on the mat.", "A cat is on the mat.", 56.52510327349417),
        ("short", "a much longer sentence here", 5.154639175257731),
    ],
)
def test_as_sacrebleu_has_it(answer, truth, expected):
    assert chrf(answer, truth) == pytest.approx(expected)
