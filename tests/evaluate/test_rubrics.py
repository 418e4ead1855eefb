"""Rubrics: what ships, what is refused, and the prompts that they become."""

import pytest

from danlu.errors import ConfigError
from danlu.evaluate import prompts
from danlu.evaluate.rows import Row
from danlu.evaluate.rubrics import load_rubric, load_rubrics, read_rubric, rubric_names


def document(**changes):
    text = {"title": "Tone", "task": "Judge the tone.", "anchors": {1: "rude", 2: "kind"},
            "labels": {"answer": "Answer"}, "score": "Score:"}  # fmt: skip
    return {"name": "tone", "scale": [1, 2], "inputs": ["answer"], "texts": {"en": text}} | changes


def test_the_three_of_the_notes_ship_in_both_languages():
    assert rubric_names() == ["consistency", "relevance", "truthfulness"]
    for rubric in load_rubrics(tuple(rubric_names())).values():
        assert set(rubric.texts) == {"en", "zh"}
        assert list(rubric.scores) == [1, 2, 3, 4, 5]
        assert all(set(text.anchors) == set(rubric.scores) for text in rubric.texts.values())
    assert load_rubric("consistency").text("zh").title == "一致性"
    assert load_rubric("consistency").inputs == ("truth", "answer")
    assert load_rubric("truthfulness").inputs == ("context", "answer")


def without(key):
    made = document()
    del made["texts"]["en"][key]
    return made


@pytest.mark.parametrize(
    ("faulty", "said"),
    [
        (document(weight=2), "weight: unknown key"),
        (document(texts={"en": document()["texts"]["en"] | {"anchor": 1}}), "did you mean 'anchors'"),
        (document(texts={"fr": document()["texts"]["en"]}), "texts.fr"),
        (document(scale=[1, 10]), "less than or equal to 9"),
        (document(scale=[3, 3]), "must be above the lowest"),
        (document(scale=[1, 3]), "one for each of 1 to 3"),
        (document(inputs=["question"]), "inputs must hold answer"),
        (document(inputs=["answer", "question"]), "labels lack question"),
        (document(optional=["answer"]), "named twice"),
        (document(name="a b"), "letters, digits"),
        (without("score"), "texts.en.score: required"),
    ],
)
def test_what_is_wrong_is_named(faulty, said):
    with pytest.raises(ConfigError) as caught:
        read_rubric(faulty, "tone.yaml")
    assert said in str(caught.value)


def test_a_rubric_of_ones_own_is_read_from_a_file(tmp_path):
    import yaml

    path = tmp_path / "tone.yaml"
    path.write_text(yaml.safe_dump(document()), "utf-8")
    assert load_rubric(str(path)).name == "tone"
    with pytest.raises(ConfigError, match="given twice"):
        load_rubrics((str(path), str(path)))
    with pytest.raises(ConfigError, match="consistency"):
        load_rubric("consistancy")
    with pytest.raises(ConfigError, match="shipped"):
        load_rubric(str(tmp_path / "none.yaml"))
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_rubric(str(path))


def test_a_prompt_begins_with_what_all_rows_share():
    rubric = load_rubric("truthfulness")
    rows = [Row("1", "f:1", "Paris", context="It is Paris."), Row("2", "f:2", "Rome", "Where?", "It is Paris.")]
    first, second = (prompts.question(rubric, row) for row in rows)
    shared = prompts.instruction(rubric, "en")
    assert first.startswith(shared)
    assert second.startswith(shared)
    assert first.endswith("[Context]\nIt is Paris.\n\n[Answer]\nParis")
    assert "[Question]\nWhere?" in second
    assert "[问题]" in prompts.question(rubric, Row("3", "f:3", "对", "在哪里？", "在巴黎。", language="zh"))


def test_a_row_without_an_input_cannot_be_asked_about():
    with pytest.raises(prompts.Unjudgeable, match="no context"):
        prompts.question(load_rubric("truthfulness"), Row("1", "f:1", "Paris", context="  "))
    assert prompts.question(load_rubric("relevance"), Row("1", "f:1", "", "Where?")).endswith("[Answer]\n")


def test_a_rubric_of_one_language_judges_all_rows():
    rubric = read_rubric(document(), "tone")
    assert prompts.question(rubric, Row("1", "f:1", "好", language="zh")).startswith("Judge the tone.")
