"""The step of a recipe: the model of a step before is asked and judged, once, and a gate stops the chain."""

import json

import pytest
from showing import Lines

from danlu.chain import Chain
from danlu.config import validate
from danlu.errors import ConfigError, DataError, GateFailed
from danlu.journal import Journal
from danlu.run import product_of, run
from tiny import make_tiny_model


@pytest.fixture
def chain(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {"max_position_embeddings": 2048, "initializer_range": 0.2}
    model = str(make_tiny_model(tmp_path / "m", changes=changes))
    lines = [{"id": at, "question": f"What is {at}?", "truth": str(at)} for at in range(4)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")

    def made(**options):
        own = {"kind": "evaluate", "start": model, "data": "questions.jsonl", "judge": model, "max_new_tokens": 4}
        steps = {"asked": own | {"measures": "relevance"} | options}
        return validate(Chain, {"name": "c", "steps": steps}, "test")

    return made


def test_it_is_done_once_and_again_when_the_questions_change(chain, tmp_path):
    directory = run(chain(), Lines(), "again")
    found = Journal(directory / "asked").results()["evaluation"]
    (summary,) = found["summaries"].values()
    assert summary["measures"]["relevance"]["n"] == 4
    assert (directory / "asked" / "evaluation" / "1-m" / "report.html").exists()
    assert product_of(chain()).model == str(tmp_path / "m")
    again = Lines()
    run(chain(), again, "again")
    assert any("done before" in line for line in again.said)
    (tmp_path / "questions.jsonl").write_text('{"question": "Why?"}\n')
    run(chain(), Lines(), "again")
    (summary,) = Journal(directory / "asked").results()["evaluation"]["summaries"].values()
    assert summary["measures"]["relevance"]["n"] == 1


def test_a_gate_stops_the_chain_and_what_was_found_stays(chain):
    with pytest.raises(GateFailed, match="relevance is under 5"):
        run(chain(fail_under={"relevance": 5}), Lines(), "again")
    assert Journal(chain().directory / "asked").results()["evaluation"]


def test_what_is_wrong_is_said_before_anything_is_run(chain):
    with pytest.raises(DataError, match="no such file"):
        run(chain(data="none.jsonl"), Lines(), "again")
    with pytest.raises(ConfigError, match="unknown measure"):
        run(chain(measures="tone"), Lines(), "again")
    assert not chain().directory.exists()
