"""Likelihoods against plain forward passes of a tiny random model."""

import numpy as np
import pytest

from danlu import Engine
from danlu.errors import DanluError
from danlu.evaluate.rows import Row
from danlu.evaluate.scale import Failed
from danlu.evaluate.sentences import sentences
from danlu.evaluate.signals import SIGNALS, Likelihoods, likeness
from tiny import make_tiny_model

CONTEXT = "It is in Paris. It was built in 1889."
ROWS = [
    Row("1", "f:1", "Paris. In 1889.", "Where?", CONTEXT),
    Row("2", "f:2", "Paris.", "Where?"),
    Row("3", "f:3", "Paris.", context=CONTEXT),
    Row("4", "f:4", "  ", "Where?"),
    Row("5", "f:5", "巴黎。", "在哪里？", "在巴黎。", language="zh"),
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    changes = {"max_position_embeddings": 512, "initializer_range": 0.2}
    engine = Engine(str(make_tiny_model(tmp_path_factory.mktemp("m") / "m", changes=changes)), "float32")
    yield engine
    engine.close()


def plain(engine, prompt, text):
    """log p of each token of a text after another."""
    ids, own = engine.chat.words_prompt(prompt), Likelihoods(engine).ids(text)
    logprobs = engine.logits([*ids, *own])[len(ids) - 1 : -1].log_softmax(-1)
    return logprobs[range(len(own)), own].numpy()


def test_sentences():
    assert sentences("One. Two! 3.5 is a number? Yes") == ["One.", "Two!", "3.5 is a number?", "Yes"]
    assert sentences("第一句。第二句！\n第三句") == ["第一句。", "第二句！", "第三句"]
    assert sentences("…") == ["…"]


def test_signals_are_those_of_plain_passes(engine):
    one, *_ = Likelihoods(engine).of(ROWS)
    parts = ["Paris.", "In 1889."]
    ids = [Likelihoods(engine).ids(part) for part in parts]
    joined = [token for part in ids for token in part]

    def after(prompt):
        start = engine.chat.words_prompt(prompt)
        logprobs = engine.logits([*start, *joined])[len(start) - 1 : -1].log_softmax(-1)
        return logprobs[range(len(joined)), joined].numpy()

    given, alone = after(f"{CONTEXT}\n\nWhere?\n\n"), after("Where?\n\n")
    gains = given - alone
    assert one["likelihood"] == pytest.approx(given.mean(), abs=1e-4)
    assert one["context_gain"] == pytest.approx(gains.mean(), abs=1e-4)
    cut = len(ids[0])
    assert one["least_supported"] == pytest.approx(min(gains[:cut].mean(), gains[cut:].mean()), abs=1e-4)
    asked = plain(engine, "Paris. In 1889.\n\n", "Where?").mean() - plain(engine, "\n\n", "Where?").mean()
    assert one["asked_given_answer"] == pytest.approx(asked, abs=1e-4)


def test_what_a_row_lacks_has_no_signal(engine):
    found = Likelihoods(engine).of(ROWS)
    assert set(found[1]) == {"likelihood", "asked_given_answer"}
    assert set(found[2]) == {"likelihood", "context_gain", "least_supported", "asked_given_answer"}
    assert isinstance(found[3], Failed)
    assert set(found[4]) <= SIGNALS.keys()


def test_a_row_alone_has_the_same_signals(engine):
    together = Likelihoods(engine).of(ROWS)
    for row, one in zip(ROWS, together, strict=True):
        (alone,) = Likelihoods(engine).of([row])
        assert isinstance(one, Failed) if isinstance(alone, Failed) else alone == pytest.approx(one, abs=1e-4)


def test_a_row_that_is_too_long_fails_alone(engine):
    long, short = Likelihoods(engine).of([Row("1", "f:1", "x", "Where?", "y " * 2000), ROWS[1]])
    assert isinstance(long, Failed)
    assert "the model reads 512" in long.reason
    assert isinstance(short, dict)


def test_continuations_against_a_plain_pass(engine):
    found = engine.continuation_logprobs([[5, 6, 7], [9], [5] * 600], [[8, 9, 10], [11], [3]])
    for prompt, own, seen in zip(([5, 6, 7], [9]), ([8, 9, 10], [11]), found[:2], strict=True):
        logprobs = engine.logits([*prompt, *own])[len(prompt) - 1 : -1].log_softmax(-1)
        assert seen.tolist() == pytest.approx(logprobs[range(len(own)), own].tolist(), abs=1e-4)
        assert engine.logprobs_of([*prompt, *own], len(prompt)) == pytest.approx(seen.tolist(), abs=1e-4)
    assert isinstance(found[2], DanluError)


def test_likeness_is_a_cosine():
    vectors = {"Paris": [1.0, 0.0], "Where?": [0.6, 0.8], "c": [0.0, 1.0]}

    def embed(texts):
        return np.array([vectors[text] for text in texts], dtype=np.float32)

    rows = [Row("1", "f", "Paris", "Where?", "c"), Row("2", "f", "Paris", None, "c"), Row("3", "f", "Paris")]
    assert likeness(rows, embed) == [pytest.approx(0.6), pytest.approx(0.0), None]
