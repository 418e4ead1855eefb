"""Near-duplicates are found as the exact computation finds them, in Chinese as in English."""

import random

import numpy as np
import pytest

from danlu.data.duplicates import BYTES_A_TEXT, SHINGLE, THRESHOLD, near_duplicates, signatures, similarity

ENGLISH = ["model", "data", "train", "answer", "question", "write", "function", "list", "number", "value", "city"]
CHINESE = "模型数据训练回答问题写出函数列表数字城市历史人们工作时间炼丹炉火候药方"


def exact(one, other):
    sets = []
    for text in (one, other):
        plain = " ".join(text.lower().split()).ljust(SHINGLE)
        sets.append({plain[at : at + SHINGLE] for at in range(len(plain) - SHINGLE + 1)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def written(draw, length):
    if draw.random() < 0.5:
        return "".join(draw.choice(CHINESE) for _ in range(length))
    return " ".join(draw.choice(ENGLISH) + str(draw.randint(0, 99)) for _ in range(length // 6 + 1))


def changed(draw, text, edits):
    for _ in range(edits):
        at = draw.randrange(len(text))
        text = text[:at] + draw.choice("甲乙丙xyz") + text[at + draw.randint(0, 2) :]
    return text


def test_the_definition():
    alike = signatures(["One  two\nthree", "one two three", "one two threE!"])
    assert similarity(alike[:1], alike[1:2]) == 1
    assert exact("One  two\nthree", "one two three") == 1
    assert similarity(alike[:1], alike[2:]) < 1


@pytest.mark.parametrize("texts", [[], [""], ["", "好"], ["🔥" * 9]])
def test_what_is_hardly_a_text(texts):
    kept = signatures(texts)
    assert kept.shape == (len(texts), BYTES_A_TEXT // 2)
    assert near_duplicates(kept) == []


def test_texts_shorter_than_a_shingle_are_compared_whole():
    assert [(pair.later, pair.earlier) for pair in near_duplicates(signatures(["好", "坏", "好"]))] == [(2, 0)]


def test_a_text_is_seen_as_if_alone():
    texts = [written(random.Random(seed), 40 + seed) for seed in range(30)]
    together = signatures(texts)
    assert all(np.array_equal(together[at], signatures([text])[0]) for at, text in enumerate(texts))


def test_the_estimate_is_within_its_deviation():
    draw = random.Random(0)
    errors = []
    for _ in range(300):
        text = written(draw, draw.choice([30, 300, 3000]))
        other = changed(draw, text, draw.randint(0, len(text) // 30))
        kept = signatures([text, other])
        errors.append(float(similarity(kept[:1], kept[1:])[0]) - exact(text, other))
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 0.045  # at a similarity of one half, sqrt(0.25 / 128)


def test_precision_and_recall_beside_the_exact_computation():
    draw = random.Random(1)
    texts = []
    for _ in range(150):
        text = written(draw, draw.choice([20, 60, 200, 800]))
        texts += [text, changed(draw, text, draw.randint(0, 1 + len(text) // 40))]
    draw.shuffle(texts)
    found = {pair.later for pair in near_duplicates(signatures(texts))}
    best = [max((exact(texts[at], texts[before]) for before in range(at)), default=0) for at in range(len(texts))]
    true = {at for at, value in enumerate(best) if value >= THRESHOLD}
    assert 50 < len(true) < 140
    assert len(found & true) / len(found) >= 0.9  # many of these pairs lie within a deviation of the threshold
    assert len(found & true) / len(true) >= 0.9
    clear = {at for at, value in enumerate(best) if value >= THRESHOLD + 0.1}  # three deviations away
    assert clear <= found
    assert not found & {at for at, value in enumerate(best) if value < THRESHOLD - 0.15}


def test_many_copies_of_one_text_each_repeat_an_earlier_one():
    draw = random.Random(2)
    text = written(draw, 400)
    texts = [changed(draw, text, 1) for _ in range(200)] + [written(draw, 400)]
    pairs = near_duplicates(signatures(texts))
    assert [pair.later for pair in pairs] == list(range(1, 200))
    assert all(pair.earlier < pair.later for pair in pairs)


def test_a_shared_opening_is_no_near_duplicate():
    draw = random.Random(3)
    opening = "请把下面的句子翻译成英文，并解释其中的难点："
    assert near_duplicates(signatures([opening + written(draw, 60) for _ in range(200)])) == []
