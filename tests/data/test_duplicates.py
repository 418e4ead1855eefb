"""Near-duplicates are found as the exact computation finds them, in Chinese as in English."""

import random

import numpy as np
import pytest

from danlu.data.look import duplicates
from danlu.data.look.duplicates import BINS, BYTES_A_TEXT, SHINGLE, THRESHOLD, near_duplicates, signatures, similarity

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


@pytest.mark.parametrize("size", [1, 3, 7, 64])
def test_a_long_text_is_signed_part_by_part(monkeypatch, size):
    draw = random.Random(5)
    texts = [written(draw, 200), "a \n\t b" * 20, " \n" * 40, " " * 9 + "好 的 ", "ABCD", "ABC" + " " * 50, " x" * 30]
    wanted = [signatures([text]) for text in texts]
    longest = []
    hashes = duplicates._hashes
    monkeypatch.setattr(duplicates, "_hashes", lambda codes: (longest.append(len(codes)), hashes(codes))[1])
    monkeypatch.setattr(duplicates, "PART_CHARACTERS", size)
    assert all(np.array_equal(signatures([text]), kept) for text, kept in zip(texts, wanted, strict=True))
    assert np.array_equal(signatures(texts), np.concatenate(wanted))
    assert max(longest) <= 2 * (size + SHINGLE)


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


def plain(kept):
    """Each pair compared whenever a band proposes it, one after another."""
    found = {}
    for start in range(0, BINS, duplicates._BAND):
        for pairs in duplicates._candidates(np.ascontiguousarray(kept[:, start : start + duplicates._BAND])):
            for later, earlier in zip(*map(np.ndarray.tolist, pairs), strict=True):
                one, other = kept[later], kept[earlier]
                is_filled = (one != 0xFFFF, other != 0xFFFF)
                alike = ((one == other) & is_filled[0]).sum() / max(1, (is_filled[0] | is_filled[1]).sum())
                if alike > found.get(later, (0, 0))[0]:
                    found[later] = (alike, earlier)
    return [(later, earlier, alike) for later, (alike, earlier) in sorted(found.items()) if alike >= THRESHOLD]


def crowded():
    draw = random.Random(4)
    wholes = [written(draw, length) for length in (9, 60, 300)]
    texts = [changed(draw, draw.choice(wholes), draw.randint(0, 5)) for _ in range(150)]
    return signatures([*texts, "", "", *[written(draw, 200) for _ in range(20)]])


@pytest.mark.parametrize("limit", [2**21, 500])
def test_the_same_pairs_as_when_every_band_compares_its_own(monkeypatch, limit):
    monkeypatch.setattr(duplicates, "PAIRS_KEPT", limit)
    monkeypatch.setattr(duplicates, "_PAIRS_AT_ONCE", 64)
    kept = crowded()
    assert [(pair.later, pair.earlier, pair.similarity) for pair in near_duplicates(kept)] == plain(kept)


def test_a_pair_is_compared_once(monkeypatch):
    compared = []
    of_rows = duplicates.similarity

    def counting(one, other):
        compared.append(len(one))
        return of_rows(one, other)

    monkeypatch.setattr(duplicates, "similarity", counting)
    kept = crowded()
    near_duplicates(kept)
    proposed = [
        pair
        for start in range(0, BINS, duplicates._BAND)
        for pairs in duplicates._candidates(np.ascontiguousarray(kept[:, start : start + duplicates._BAND]))
        for pair in zip(*map(np.ndarray.tolist, pairs), strict=True)
    ]
    assert sum(compared) == len(set(proposed)) < len(proposed) / 3


def test_of_ever_new_pairs_no_more_are_kept_than_the_limit_and_one_band(monkeypatch):
    monkeypatch.setattr(duplicates, "PAIRS_KEPT", 500)
    kept = crowded()
    sizes = [len(later) for later, _ in duplicates._pairs(kept)]
    assert len(sizes) > 1
    assert max(sizes) <= 500 + 5 * len(kept)
