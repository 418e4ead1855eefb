"""Multiple choice by likelihood, against plain passes; faulty choices are faulty rows."""

import json

import pytest

from danlu import Engine
from danlu.evaluate.choices import WAYS, checked, choices_of, picked
from danlu.evaluate.rows import FaultyRow, Row
from danlu.evaluate.scale import Failed
from danlu.evaluate.signals import Likelihoods
from tiny import make_tiny_model

CHOICES = ["Paris", "a much longer answer", "巴黎"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    changes = {"max_position_embeddings": 512, "initializer_range": 0.2}
    return make_tiny_model(tmp_path_factory.mktemp("m") / "m", changes=changes)


def row(**others):
    return Row("1", "f:1", None, "Where?", others=others)


def test_what_a_model_picks_is_what_plain_passes_say(model):
    engine = Engine(str(model), "float32")
    likelihoods = Likelihoods(engine)

    def total(prompt, text):
        ids = likelihoods.ids(text)
        logprobs = engine.logits([*prompt, *ids])[len(prompt) - 1 : -1].log_softmax(-1)
        return float(logprobs[range(len(ids)), ids].sum())

    raw = [total(likelihoods.prompt("Where?"), text) for text in CHOICES]
    alone = [total(likelihoods.prompt(), text) for text in CHOICES]
    scores = dict(zip(WAYS, (raw, [a / len(t.encode()) for a, t in zip(raw, CHOICES, strict=True)],
                             [a - b for a, b in zip(raw, alone, strict=True)]), strict=True))  # fmt: skip
    for right in range(3):
        (found,) = picked(engine, [row(choices=CHOICES, label=right)])
        assert found == {name: float(max(those) == those[right]) for name, those in scores.items()}
    assert picked(engine, [row()]) == [{}]
    (failed,) = picked(engine, [row(choices=["x " * 2000, "y"], label=0)])
    assert isinstance(failed, Failed)
    engine.close()


@pytest.mark.parametrize(
    "others",
    [{"choices": "ab"}, {"choices": ["a"]}, {"choices": ["a", "a"], "label": 0}, {"choices": ["a", ""], "label": 0},
     {"choices": ["a", "b"]}, {"choices": ["a", "b"], "label": 2}, {"choices": ["a", "b"], "label": True}],
)  # fmt: skip
def test_faulty_choices_are_faulty_rows(others):
    (found,) = checked([row(**others)])
    assert isinstance(found, FaultyRow)


def test_the_right_choice_is_the_truth():
    assert checked([row(choices=["a", "b"], label=1)])[0].truth == "b"
    assert choices_of(Row("1", "f", None, truth="b", others={"choices": ["a", "b"]})).right == 1
    assert choices_of(row()) is None


def test_the_command_weighs_choices(call, tmp_path, model):
    data = tmp_path / "questions.jsonl"
    lines = [{"question": f"What is {at}?", "choices": ["one", "two"], "label": at % 2} for at in range(4)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    asked = ["--models", model, "--judge", "null", "--out", tmp_path / "out", "--max_new_tokens", 2]
    code, told, news = call("evaluate", "--data", data, *asked, "--fail-under", "choice_raw=0")
    assert code == 0, news
    assert all(name in told for name in WAYS)
