"""Word overlap against SQuAD's and rouge-score's numbers, and numbers worked out by hand."""

import random

import pytest

from danlu.evaluate.overlap import (
    OVERLAPS,
    baseline,
    exact_match,
    length,
    rouge_l,
    source_precision,
    source_recall,
    token_f1,
    words,
)


def test_words():
    assert words("The cat's 3.5 GB, 丹炉v2炼丹！") == ["the", "cat", "s", "3", "5", "gb", "丹", "炉", "v2", "炼", "丹"]
    assert length("你好，world") == 3
    assert words("…！？") == []


def test_exact_match_leaves_out_case_articles_and_punctuation():
    assert exact_match("The Eiffel Tower.", "eiffel tower") == 1
    assert exact_match("巴黎。", "巴黎") == 1
    assert exact_match("Paris, France", "Paris") == 0


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        ("-5", "5", 0),
        ("(-5)", "−5.", 1),
        ("minus 5", "-5", 1),
        ("－５", "-5", 1),
        ("-.5", ".5", 0),
        ("2020-21", "2020 21", 1),
        ("3.14", "314", 0),
        ("a well-known 5", "well known 5", 1),
    ],
)
def test_the_sign_of_a_number_counts(answer, truth, expected):
    assert exact_match(answer, truth) == exact_match(truth, answer) == expected


def test_token_f1_by_hand():
    # Of 3 and 2 words 2 are shared: 2 × 2 / 5.
    assert token_f1("Paris in France", "the Paris France") == pytest.approx(0.8)
    # 法国巴黎 and 巴黎: 2 × 2 / 6.
    assert token_f1("法国巴黎", "巴黎") == pytest.approx(2 / 3)
    assert token_f1("", "") == 1
    assert token_f1("", "x") == token_f1("the", "x") == 0


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        # rouge_score.rouge_scorer.RougeScorer(["rougeL"]).score(truth, answer)["rougeL"].fmeasure, 0.1.2
        ("the cat sat on the mat", "the cat is on the mat", 10 / 12),
        ("police killed the gunman", "the gunman killed police", 4 / 8),
        ("a b c d e", "a c e", 6 / 8),
        ("The 3.5 GB model's answer, in full!", "A model's answer: 3.5 GB in full.", 10 / 18),
        ("", "x", 0.0),
    ],
)
def test_rouge_l(answer, truth, expected):
    assert rouge_l(answer, truth) == pytest.approx(expected)


def test_rouge_l_is_the_usual_table():
    rng = random.Random(0)
    for _ in range(50):
        one, other = ([rng.choice("abcd") for _ in range(rng.randrange(1, 12))] for _ in range(2))
        table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
        for at, a in enumerate(one):
            for to, b in enumerate(other):
                table[at + 1][to + 1] = table[at][to] + 1 if a == b else max(table[at][to + 1], table[at + 1][to])
        expected = 2 * table[-1][-1] / (len(one) + len(other))
        assert rouge_l(" ".join(one), " ".join(other)) == pytest.approx(expected)


def test_source_precision_and_recall_by_hand():
    # Pairs of the answer: a-b, b-x; of the source: a-b, b-c, c-d. One of two; one of three.
    assert source_precision("a b x", "a b c d") == pytest.approx(1 / 2)
    assert source_recall("a b x", "a b c d") == pytest.approx(1 / 3)
    assert source_precision("b", "a b c") == 1
    assert source_precision("", "a b") == source_recall("", "a b") == 0
    assert source_precision("首都巴黎", "法国的首都是巴黎") == pytest.approx(2 / 3)


def test_the_baseline_is_what_can_be_had():
    assert set(baseline("a", "a", "a")) == set(OVERLAPS)
    assert set(baseline("a", None, None)) == {"length"}
    assert baseline("", "", "")["length"] == 0


def test_long_texts_take_no_time():
    assert 0 < rouge_l("a b c d " * 5000, "b a d c " * 5000) < 1


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("cafe\u0301", "caf\u00e9"),
        ("ｃａｆｅ　１９８７", "cafe 1987"),
        (" comedy", "comedy"),
        ("( B )", "(B)"),
        ("👍", "👍"),
    ],
    ids=["composed", "full width", "a space before", "spaces inside", "a sign"],
)
def test_one_text_in_two_spellings_is_the_same(answer, truth):
    assert exact_match(answer, truth) == token_f1(answer, truth) == rouge_l(answer, truth) == 1


@pytest.mark.parametrize(
    ("answer", "truth"),
    [("", "A"), ("The", "A"), ("A", "An"), ("👍", "👎"), ("+", "-"), ("Thesaurus", "saurus")],
    ids=["nothing", "an article", "another", "a sign", "an operator", "an article inside a word"],
)
def test_articles_and_signs_that_are_the_answer_count(answer, truth):
    assert exact_match(answer, truth) == token_f1(answer, truth) == 0


def test_words_of_other_scripts():
    assert words("पूर्व प्रधानमन्त्री।") == ["पूर्व", "प्रधानमन्त्री"], "marks belong to their words"
    assert words("מִלָּה سَلَامٌ") == ["מִלָּה", "سَلَامٌ"]
    assert 0 < token_f1("สะพานสร้าง", "สะพานพัง") < 1, "no spaces: characters"
    assert 0 < token_f1("こんにちは", "こんばんは") < 1


def test_the_nearest_of_several_true_answers_counts():
    found = baseline("in 1987", ("1990", "in 1987"), None)
    assert found["exact_match"] == found["rouge_l"] == 1
    assert "exact_match" not in baseline("in 1987", (), None)
