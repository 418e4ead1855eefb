"""Models that answer, and are compared: in both orders, by rows, and with what the rows can show."""

from __future__ import annotations

import json

import pytest

from danlu.errors import DataError
from danlu.evaluate.answering import LocalModel, answered
from danlu.evaluate.forgetting import forgotten, general_texts, losses
from danlu.evaluate.kept import Kept
from danlu.evaluate.pairwise import prefer, preference, together
from danlu.evaluate.rows import FaultyRow, Row
from danlu.evaluate.scale import Failed, Reading
from tiny import make_tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    changes = {"max_position_embeddings": 2048, "initializer_range": 0.2}
    return [make_tiny_model(folder / name, seed=seed, changes=changes) for seed, name in enumerate(("one", "two"))]


class Order:
    """A judge that likes "good", and otherwise the first."""

    name, identity = "order", "order"

    def read(self, rubric, rows):
        assert rubric == preference()
        return [self._one(row) for row in rows]

    def _one(self, row):
        if "odd" in row.answer:
            return Failed("odd")
        first, second = row.answer.split("\n\n")
        return Reading((0.1, 0.8) if "good" in second and "good" not in first else (0.8, 0.1), 0.1)


def rows(*answers):
    return [Row(str(at), f"f:{at}", answer, f"What {at}?") for at, answer in enumerate(answers)]


def test_a_win_is_one_in_both_orders():
    before = rows("bad", "bad", "good", "same", "odd")
    after = rows("good", "poor", "bad", "same", "x")
    found = prefer(Order(), before, after, Kept(None))
    assert list(found.outcomes) == ["win", "tie", "loss", "tie"]
    assert (found.flips, found.failed) == (1, 1)
    assert found.rate.value == pytest.approx(0.5)
    assert found.to_dict()["win"] == 1
    assert prefer(Order(), before[:1], after[:1], Kept(None)).rate is None


def test_both_answers_stand_in_one_text():
    one, other = rows("a", "b")
    assert together(one, other).answer == "[Answer 1]\na\n\n[Answer 2]\nb"


def test_answers_are_kept_and_a_question_that_cannot_be_answered_fails_alone(models, tmp_path):
    model = LocalModel(str(models[0]))
    questions = [
        Row("1", "f:1", None, "Where?"),
        Row("2", "f:2", None, "x " * 3000),
        Row("3", "f:3", None),
        FaultyRow("4", "f:4", "no JSON"),
    ]
    kept = Kept(tmp_path / "kept.jsonl")
    first, long, empty, faulty = answered(model, questions, 5, kept)
    assert isinstance(first, Row)
    assert isinstance(first.answer, str)
    assert "not answered" in long.reason
    assert empty.reason == "no question"
    assert faulty.reason == "no JSON"
    asked = []
    model.answer = lambda texts, limit: asked.extend(texts) or [Failed("no")] * len(texts)
    assert answered(model, questions, 5, Kept(tmp_path / "kept.jsonl"))[0] == first
    assert len(asked) == 1
    model.close()


def test_the_command_answers_judges_and_compares(call, tmp_path, models):
    data, out = tmp_path / "questions.jsonl", tmp_path / "out"
    lines = [{"id": at, "question": f"What is {at}?", "truth": str(at)} for at in range(5)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    general = tmp_path / "general.jsonl"
    general.write_text("".join(json.dumps({"text": f"the quick brown fox {at}"}) + "\n" for at in range(4)), "utf-8")
    asked = ["--models", f"{models[0]},{models[1]}", "--judge", models[0], "--out", out, "--max_new_tokens", 6]
    asked += ["--general", general]
    code, told, news = call("evaluate", "--data", data, *asked, "--measures", "relevance")
    assert code == 0, news
    assert "win rate" in told
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    assert summary["models"] == [str(one) for one in models]
    assert summary["differences"][str(models[1])]["relevance"]["n"] == 5
    lost = summary["differences"][str(models[1])]["general_loss"]
    assert lost["low"] <= lost["value"] <= lost["high"]
    assert lost["n"] == 4
    assert "general_loss" in told
    assert (out / "2-two" / "report.html").exists()
    kept = (out / "readings.jsonl").read_bytes()
    code, _, _ = call("evaluate", "--data", data, *asked, "--measures", "relevance")
    assert code == 0
    assert (out / "readings.jsonl").read_bytes() == kept


def test_what_is_forgotten_by_hand():
    # 2 nats a token before, 3 after: on all four tokens, whatever the other model's tokens are.
    found = forgotten([(4.0, 2.0), (4.0, 2.0), (9.0, 3.0)], [(6.0, 5.0), (6.0, 1.0), Failed("long")])
    assert found["value"] == pytest.approx(1.0)
    assert found["n"] == 2
    assert forgotten([(1.0, 1.0)], [(1.0, 1.0)]) is None


def test_losses_are_the_engines_own_and_kept(models, tmp_path):
    model, kept = LocalModel(str(models[0])), Kept(tmp_path / "kept.jsonl")
    ids = model.engine.chat.words_prompt("the quick brown fox")
    (found,) = losses(model.engine, "m", ["the quick brown fox"], kept)
    assert found == (pytest.approx(-sum(model.engine.logprobs_of(ids, 1))), len(ids) - 1)
    model.close()
    assert losses(None, "m", ["the quick brown fox"], Kept(tmp_path / "kept.jsonl")) == [found]
    path = tmp_path / "none.jsonl"
    path.write_text('{"words": "a"}\n')
    with pytest.raises(DataError, match="0 rows with a text"):
        general_texts(path)


def test_answers_and_data_are_one_or_the_other(call, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"answer": "a", "question": "b"}\n')
    for arguments in ([], [path, "--data", path], ["--data", path], [path, "--models", "x"]):
        code, _, news = call("evaluate", *arguments, "--out", tmp_path / "out")
        assert code == 2, news
    assert not (tmp_path / "out").exists() or not (tmp_path / "out" / "rows.jsonl").exists()


def test_each_report_stands_by_its_own_model_where_others_were_before(call, models, tmp_path):
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    data.write_text(json.dumps({"question": "Where?", "truth": "There"}) + "\n")
    one, two = map(str, models)
    for names in (f"{one},{two}", f"{two},{one}"):
        call("evaluate", "--data", data, "--models", names, "--judge", "null", "--max_new_tokens", "2", "--out", out)
    for folder in ("1-one", "1-two", "2-one", "2-two"):
        made = [(out / folder / name).stat().st_mtime for name in ("summary.json", "report.html")]
        assert made[0] <= made[1]
