"""Words and BM25: cut alike in texts and questions, scored by the formula, the same with and without a compiler."""

from __future__ import annotations

import math
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.errors import ConfigError
from danlu.recall import Bm25, BuildOptions, Collection, Fuse, Query
from danlu.recall.channels import keywords as channel
from danlu.recall.columns.texts import Texts
from danlu.recall.files import Damaged
from danlu.recall.keywords.kernels import kernels
from danlu.recall.keywords.plain import Plain, Words
from danlu.recall.keywords.postings import Postings
from danlu.recall.keywords.tokens import asked, joined, keys, words
from danlu.recall.rows.bits import Bits

TEXTS = [
    "喜欢徒步的老师", "likes Tea and hiking", "喜欢 tea 的 Teacher", "", None, "老师喜欢喝茶，徒步",
    "ＴＥＡ！ tea, tea…", "GPT4模型", "a\0tea", "徒", "Straße ﬁn", "มากกว่า", "🙂 —",
]  # fmt: skip


@pytest.fixture(autouse=True)
def disks_that_are_fast(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda number: None)


# -- words ------------------------------------------------------------------------------------------------


def test_nothing_that_is_written_is_lost():
    assert words("喜欢 Tea，ＡＢＣ!") == ["喜", "欢", "喜欢", "tea", "abc"]
    assert words("GPT4模型") == ["gpt4", "模", "型", "模型"]
    assert words("Straße ﬁn") == ["strasse", "fin"]
    assert words("茶") == ["茶"]
    assert words("カタカナ한글") == [*"カタカナ한글", "カタ", "タカ", "カナ", "ナ한", "한글"]
    assert words(" —🙂\0 ") == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="ab Aé7_，。喜欢老ア한\0ก", max_size=12), min_size=1, max_size=5))
def test_texts_and_questions_are_cut_alike(texts):
    found, owners = keys(joined(texts))
    for at, text in enumerate(texts):
        here, counts = np.unique(found[owners == at], return_counts=True)
        mine, times, starts = asked([text])
        assert starts.tolist() == [0, len(mine)]
        assert here.tolist() == mine.tolist()
        assert counts.tolist() == times.tolist()
        assert counts.sum() == len(words(text))


def test_postings_are_the_same_in_parts(monkeypatch):
    texts = Texts.of((text or "").encode() for text in TEXTS * 5)
    whole = Postings.of(texts)
    monkeypatch.setattr("danlu.recall.keywords.postings._PART_BYTES", 16)
    parts = Postings.of(texts)
    for name in ("keys", "starts", "rows", "counts", "lengths", "most", "least"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))
    assert whole.lengths[:5].tolist() == [13, 4, 6, 0, 0]


# -- scores -----------------------------------------------------------------------------------------------


def by_hand(texts, question, k1=1.2, b=0.75, among=None):
    """id -> score: the sum of ln(1 + (N - n + 0.5) / (n + 0.5)) * f / (f + k1 (1 - b + b * length / mean))."""
    held = {at: words(text) for at, text in enumerate(texts) if text and words(text)}
    base = {at: held[at] for at in held if among is None or at in among}
    mean = sum(map(len, base.values())) / len(base) if base else 1
    scores = {}
    for at, its in held.items():
        for word in words(question):
            n = sum(word in other for other in base.values())
            f = its.count(word)
            idf = math.log(1 + (len(base) - n + 0.5) / (n + 0.5))
            scores[at] = scores.get(at, 0) + idf * f / (f + k1 * (1 - b + b * len(its) / mean))
    return {at: score for at, score in scores.items() if score > 0}


def table(texts, first=0):
    return pa.table({"id": np.arange(first, first + len(texts)), "bio": pa.array(texts, pa.string())})


def scores_of(collection, question, where=None, how=None, top=100):
    found = collection.recall(Query(where=where, text=question, top=top, bm25=how or Bm25()))
    return {one.id: one.places["words:bio"].score for one in found}


@pytest.fixture
def built(tmp_path):
    return Collection.build(tmp_path / "c", table(TEXTS), BuildOptions(id="id", text=("bio",)))


QUESTIONS = ["tea", "喜欢徒步的老师", "老师 tea tea", "模", "strasse", "มาก"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_scores_are_those_of_the_formula(built, question):
    for how in (Bm25(), Bm25(k1=0.5, b=0), Bm25(k1=2, b=1)):
        assert scores_of(built, question, how=how) == pytest.approx(by_hand(TEXTS, question, how.k1, how.b))
    wanted = by_hand(TEXTS, question)
    assert list(scores_of(built, question)) == sorted(wanted, key=lambda at: (-wanted[at], at))


def test_what_has_no_such_word_is_not_found(built):
    assert scores_of(built, "nobody") == scores_of(built, "。！") == scores_of(built, "") == {}
    assert set(scores_of(built, "tea", where="id in (0, 1, 3, 4)")) == {1}
    assert len(scores_of(built, "tea", top=2)) == 2


def test_pieces_of_a_collection_score_as_the_whole(built, tmp_path):
    """Appended row by row, put in place, deleted, merged: the same numbers as if it had been built so."""
    options = BuildOptions(id="id", text=("bio",))
    now = Collection.build(tmp_path / "p", table(TEXTS[:3]), options)
    for at in range(3, len(TEXTS)):
        now = now.append(table(TEXTS[at : at + 1], at))
    assert len(now.segments) > 5
    for question in QUESTIONS:
        assert scores_of(now, question) == scores_of(built, question)
    changed = [*TEXTS]
    changed[2] = "徒步 tea"
    now = now.upsert(table(["徒步 tea"], 2)).delete([0, 6])
    changed[0] = changed[6] = None
    again = Collection.build(tmp_path / "q", table(changed), options)
    for question in QUESTIONS:
        assert scores_of(now, question) == scores_of(now.compact(), question) == scores_of(again, question)


def test_what_is_rare_is_told_from_all_rows_or_from_those_that_qualify(built):
    among = {0, 1, 2, 5}
    where = f"id in ({', '.join(map(str, among))})"
    whole, few = (scores_of(built, "老师 tea", where, Bm25(idf=idf)) for idf in ("collection", "filter"))
    everywhere = by_hand(TEXTS, "老师 tea")
    assert whole == pytest.approx({at: everywhere[at] for at in among})
    alone = by_hand(TEXTS, "老师 tea", among=among)
    assert few == pytest.approx({at: alone[at] for at in among})


def test_a_word_within_a_run_of_chinese_is_found_however_long_it_is(tmp_path):
    texts = ["把機器推論洗成權威事實", "incident tickets", "收據"]
    made = Collection.build(tmp_path / "r", table(texts), BuildOptions(id="id", text=("bio",)))
    for question, wanted in [("權威事實", 0), ("洗成權威事實", 0), ("機器推論", 0), ("incident", 1), ("收據", 2)]:
        assert set(scores_of(made, question)) == {wanted}


def test_rows_without_a_text_count_for_nothing(tmp_path):
    """Neither in how many rows there are, nor in how long they are."""
    texts = ["tea", "tea hiking", None, "", None]
    made = Collection.build(tmp_path / "n", table(texts), BuildOptions(id="id", text=("bio",)))
    assert scores_of(made, "tea") == pytest.approx(by_hand(texts[:2], "tea"))


def random_postings(rng, rows, vocabulary):
    chances = 1 / np.arange(1, vocabulary + 1)
    lengths = rng.integers(0, 12, rows)
    drawn = np.split(rng.choice(vocabulary, lengths.sum(), p=chances / chances.sum()), np.cumsum(lengths)[:-1])
    return Postings.of(Texts.of(" ".join(f"w{word}" for word in some).encode() for some in drawn))


@pytest.mark.parametrize("rows", [1, 64, 5000, 9001])
def test_compiled_and_plain_answers_are_the_same_bit_for_bit(rows):
    rng = np.random.default_rng(rows)
    postings = random_postings(rng, rows, 40)
    for _ in range(30):
        sizes = rng.integers(0, min(6, len(postings.keys)) + 1, 3)
        chosen = [np.sort(rng.choice(len(postings.keys), size, replace=False)) for size in sizes.tolist()]
        starts, own = np.concatenate([[0], np.cumsum(sizes)]), np.concatenate(chosen)
        ranges = np.stack([postings.starts[own], postings.starts[own + 1]], 1)
        weights = rng.choice([0.5, 1.0, rng.random()], len(own))
        asked_for = Words(starts, ranges, weights, *rng.choice([0.0, 0.3, 1.2], 2).tolist())
        share = rng.choice([1, 0.9, 0.2, 0.01, 0])
        some = Bits.of(rows, np.flatnonzero(rng.random(rows) < share))
        k, floors = int(rng.choice([1, 3, 50, 20_000])), rng.choice([0, 0.4], 3)
        plain, fast = (side.best(postings, some, asked_for, k, floors) for side in (Plain(), kernels()))
        assert plain.sizes.tolist() == fast.sizes.tolist()
        there = np.arange(plain.rows.shape[1]) < plain.sizes[:, None]
        assert np.array_equal(plain.rows[there], fast.rows[there])
        assert np.array_equal(plain.scores[there], fast.scores[there])
        assert np.array_equal(Plain().counted(postings, some, ranges), kernels().counted(postings, some, ranges))


def test_many_questions_at_once_are_answered_as_one_by_one(built):
    queries = [
        Query(text=question, where=where, top=top, fuse=Fuse(depth=2))
        for question in [*QUESTIONS, "", "nothing of it"]
        for where in (None, "id > 2")
        for top in (1, 5)
    ]
    queries += [Query(text="tea", bm25=Bm25(k1=0.0)), Query(text="tea", bm25=Bm25(idf="filter"), where="id > 2")]
    together, alone = built.recall_all(queries), [built.recall(query) for query in queries]
    assert [one.found for one in together] == [one.found for one in alone]
    assert [one.among for one in together] == [one.among for one in alone]
    assert [list(one.ids) for one in together] == [[row.id for row in one] for one in alone]
    assert sum(map(len, together)) > 20


def test_of_many_questions_one_that_asks_nothing_is_an_error(built):
    with pytest.raises(ConfigError, match="nothing is asked for"):
        built.recall_all([Query(text="tea"), Query()])
    assert built.recall_all([]) == []


def test_answers_are_the_same_without_a_compiler(built, monkeypatch):
    seen = [scores_of(built, question) for question in QUESTIONS]
    monkeypatch.setattr(channel, "kernels", Plain)
    assert [scores_of(Collection.open(built.path), question) for question in QUESTIONS] == seen


# -- faults -----------------------------------------------------------------------------------------------


def words_file(collection):
    return next((collection.path / collection.segments[0].stored.name).glob("words-*"))


@pytest.mark.parametrize("damage", ["missing", "short", "table"])
def test_a_damaged_list_of_words_is_made_anew_and_said(built, damage):
    seen, path = [scores_of(built, question) for question in QUESTIONS], words_file(built)
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(whole[:-9] if damage == "short" else whole[:-60] + bytes(10) + whole[-50:])
    told = []
    again = Collection.open(built.path, say=told.append)
    assert [scores_of(again, question) for question in QUESTIONS] == seen
    assert len(told) == 1
    assert "the words of bio is made anew in memory" in told[0]
    assert [scores_of(again.compact(), question) for question in QUESTIONS] == seen
    assert Collection.open(built.path, say=pytest.fail).check() == []


def test_what_is_flipped_within_leads_nowhere_outside(built):
    """Compiled code follows the lists: whatever stands in them, an answer comes."""
    path = words_file(built)
    whole = path.read_bytes()
    for at in range(0, len(whole) - 400, 41):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        again = Collection.open(built.path, say=lambda text: None)
        for question in QUESTIONS:
            with suppress(Damaged):
                scores_of(again, question)
        assert again.check()


def test_words_of_the_wrong_kind_are_said(built):
    for wrong in (5, ["tea"]):
        with pytest.raises(ConfigError, match="words of type"):
            built.recall(Query(text=wrong))
    with pytest.raises(ConfigError, match="no channel has an answer"):
        built.recall(Query(text={"bia": "tea"}))


def test_a_column_that_is_only_kept_has_no_words(tmp_path):
    made = Collection.build(tmp_path / "k", table(TEXTS), BuildOptions(id="id", kinds={"bio": "text"}))
    assert not list(made.path.glob("seg-*/words-*"))
    with pytest.raises(ConfigError, match="the collection has no channel"):
        made.recall(Query(text="tea"))
