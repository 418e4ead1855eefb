"""What the probe said is kept with the files that it was said of, and nothing else takes it for its own."""

from __future__ import annotations

import shutil

import pytest
import torch
from answering import ids_of

from danlu import Engine
from danlu.errors import ConfigError, ModelError
from danlu.generate.batch.probe import Probe
from danlu.generate.batch.verdict import Verdict


@pytest.fixture
def directory(tiny_model, tmp_path):
    copy = shutil.copytree(tiny_model, tmp_path / "model")
    (copy / "config.json").touch()  # a copy is as old as its original
    return copy


@pytest.fixture
def looks(monkeypatch):
    """How often a model was looked at."""
    seen, own = [], Probe.of.__func__

    def counted(cls, model):
        seen.append(model)
        return own(cls, model)

    monkeypatch.setattr(Probe, "of", classmethod(counted))
    return seen


def test_the_same_files_are_looked_at_once(directory, looks):
    first = ids_of(Engine(str(directory), dtype="float32"))
    assert ids_of(Engine(str(directory), dtype="float32")) == first
    assert len(looks) == 1


def test_other_files_and_other_formats_are_looked_at_anew(directory, looks):
    Engine(str(directory), dtype="float32")
    Engine(str(directory), dtype="bfloat16")
    Engine(str(directory), dtype="int8")
    (directory / "config.json").touch()
    Engine(str(directory), dtype="float32")
    assert len(looks) == 4


def test_a_verdict_of_other_libraries_is_not_this_one_s(directory, tmp_path, monkeypatch):
    Verdict(tmp_path, directory, ["float32"]).keep("a reason")
    assert Verdict(tmp_path, directory, ["float32"]).known() == "a reason"
    assert Verdict(tmp_path, directory, ["bfloat16"]).known() is None
    monkeypatch.setattr("danlu.generate.batch.verdict.version", lambda name: f"another {name}")
    assert Verdict(tmp_path, directory, ["float32"]).known() is None


@pytest.mark.parametrize("damage", ["", "no json", "[]", '{"why_alone": 3}'])
def test_a_damaged_verdict_is_none(directory, tmp_path, damage):
    verdict = Verdict(tmp_path, directory, [])
    verdict.keep("")
    verdict.path.write_text(damage)
    assert verdict.known() is None


def test_a_cache_that_cannot_be_written_costs_another_look(directory, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("danlu.generate.batch.verdict.DIRECTORY", str(tmp_path / "file"))
    verdict = Verdict(tmp_path, directory, [])
    verdict.keep("")
    assert verdict.known() is None


# --- models that do not read in company


@pytest.fixture
def stubborn(monkeypatch):
    """Models whose code asks nobody."""
    monkeypatch.setattr("danlu.generate.batch.core.wire", _refuse)


KNOBS = (
    {},
    {"do_sample": True, "seed": 3, "num_return_sequences": 3},
    {"num_beams": 4},
    {"force_words_ids": [[40, 41]], "num_beams": 3},
)


def test_they_answer_the_same_each_text_by_itself_and_it_is_said(directory, monkeypatch):
    together = Engine(str(directory), dtype="float32")
    expected = [ids_of(together, **knobs) for knobs in KNOBS]
    scores = together.logits([5, 6, 7])
    with monkeypatch.context() as patch:
        patch.setattr("danlu.generate.batch.core.wire", _refuse)
        (directory / "config.json").touch()
        said = []
        alone = Engine(str(directory), dtype="float32", say=said.append)
    assert any("each text is read by itself" in line and "does not ask" in line for line in said)
    assert [ids_of(alone, **knobs) for knobs in KNOBS] == expected
    torch.testing.assert_close(alone.logits([5, 6, 7]), scores, atol=1e-5, rtol=1e-5)
    assert alone.load.kv_bytes == 0  # it keeps nothing


def test_their_weights_cannot_be_rounded(directory, stubborn):
    with pytest.raises(ConfigError, match="dtype int8: llama: its attention does not ask"):
        Engine(str(directory), dtype="int8")


def _refuse(_model):
    raise ModelError("llama: its attention does not ask")
