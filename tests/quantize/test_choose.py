"""Which form is chosen: by figures worked out by hand, and of a tiny model by measurement."""

from __future__ import annotations

import json
import math

import pytest
from fewer_bits import DEVICE, TEXT, names_in

from danlu.config import validate
from danlu.errors import ConfigError, DataError, ParityError
from danlu.evaluate.bootstrap import Interval
from danlu.quantize import trials
from danlu.quantize.calibration import Texts
from danlu.quantize.choose import LEVEL, Scores, Trial, choose, divergence_of, reason, rise
from danlu.quantize.options import AskedOptions
from danlu.quantize.trials import part, quantize_as_asked
from danlu.report.forms import draw_forms, forms

ASKED = {
    "bits": "auto", "method": "auto", "group_size": 16, "calibration_tokens": 512, "calibration_length": 64,
    "judged_tokens": 1024, "prompts": 2, "max_new_tokens": 4, "max_kl": 20.0,
}  # fmt: skip


def lines_in(folder):
    """A file with lines of a page, each a text."""
    with open(TEXT) as file:
        lines = [line[:120] for line in file if len(line) > 40][:80]
    (folder / "lines.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return folder / "lines.jsonl"


@pytest.fixture
def text(tmp_path):
    return lines_in(tmp_path)


def interval(value, high):
    return Interval(value, 2 * value - high, high, LEVEL)


def trial(name, size, value, high):
    return Trial(name, size, 10.0, interval(value, high), interval(0.1, 0.2), 0.9, interval(50.0, 60.0), 100.0)


def asked(**more):
    return validate(AskedOptions, {**ASKED, **more}, where="test")


def test_perplexity_rises_by_the_difference_of_mean_losses():
    """Two texts of 2 and 3 tokens, each token 0.1 nats dearer: e^0.1 - 1, and no doubt about it."""
    original = Scores([2.0, 6.0], [2, 3], [0.0, 0.0], [2, 3])
    form = Scores([2.2, 6.3], [2, 3], [0.2, 0.4], [2, 2])
    found = rise(original, form)
    assert found.value == pytest.approx(math.expm1(0.1))
    assert (found.low, found.high) == pytest.approx((found.value, found.value))
    assert divergence_of(form).value == pytest.approx(0.6 / 5)
    assert form.only([1]) == Scores([6.3], [3], [0.4], [2])


def test_the_smallest_within_the_budget_is_taken_by_its_upper_end():
    tried = [trial("rtn 8", 80, 0.001, 0.002), trial("awq 4", 45, 0.01, 0.015), trial("rtn 4", 44, 0.015, 0.03)]
    choice = choose(tried, 0.02, lambda _: interval(0.01, 0.02))
    assert choice.taken == "awq 4"
    assert [one.name for one in choice.trials] == ["rtn 4", "awq 4", "rtn 8"]
    said = reason(choice, 0.02)
    assert "awq 4: perplexity rises by 1.00% (at most 1.50%" in said
    assert "of the smaller ones rtn 4 comes nearest: up to 3.00%" in said


def test_what_loses_too_much_on_further_texts_is_passed_over():
    tried = [trial("rtn 8", 80, 0.001, 0.002), trial("awq 4", 45, 0.01, 0.015)]
    looked = []

    def look_again(name):
        looked.append(name)
        return interval(0.021 if name == "awq 4" else 0.001, 0.05)

    assert choose(tried, 0.02, look_again).taken == "rtn 8"
    assert looked == ["awq 4", "rtn 8"]


def test_nothing_may_fit_and_what_was_refused_never_does():
    tried = [trial("rtn 8", 80, 0.03, 0.04), Trial("rtn 3", why="too far")]
    choice = choose(tried, 0.02, lambda _: interval(0.0, 0.0))
    assert choice.taken == ""
    assert choice.trials[-1].name == "rtn 3"


def test_texts_are_dealt_and_none_twice():
    texts = [[number] * 10 for number in range(80)]
    parts = part(Texts(texts, "these"), 160)
    assert [len(one) for one in parts] == [48, 16, 16]
    assert sorted(ids[0] for one in parts for ids in one) == list(range(80))


def test_a_long_text_is_many(tmp_path):
    parts = part(Texts([list(range(trials.LENGTH * 80))], "it"), 10**9)
    assert [len(one) for one in parts] == [40, 20, 20]
    assert all(len(ids) == trials.LENGTH for one in parts for ids in one)


def test_too_little_text():
    with pytest.raises(
        DataError, match=r"(?s)these: 30 texts of up to 512 tokens: too little to choose by.*at least 64"
    ):
        part(Texts([[1, 2, 3]] * 30, "these"), 1000)


@pytest.fixture(scope="module")
def chosen(base, tmp_path_factory):
    """A directory in which a form was chosen, what was told, and what was said."""
    folder = tmp_path_factory.mktemp("chosen")
    said = []
    path = lines_in(folder)
    told = quantize_as_asked(base, folder / "out", asked(calibration=str(path), max_loss="5%"), DEVICE, said.append)
    return folder, told, said


def test_the_chosen_form_stands_alone(chosen):
    folder, told, said = chosen
    assert names_in(folder) == ["lines.jsonl", "out"]
    report = json.loads((folder / "out" / trials.REPORT).read_text())
    assert report == told.report
    assert len(report["trials"]) == 9
    (refused,) = (one for one in report["trials"] if "why" in one)
    assert "gptq at 3 bits packs 32 of them together" in refused["why"]  # of 16
    by_name = {one["name"]: one for one in report["trials"] if one is not refused}
    taken = by_name[report["taken"]]
    assert taken["loss"]["high"] <= 0.05
    assert taken["again"]["value"] <= 0.05
    assert told.quantized.bytes == taken["bytes"]
    smaller = [one for one in by_name.values() if one["bytes"] < taken["bytes"]]
    assert all(one["loss"]["high"] > 0.05 or one["again"]["value"] > 0.05 for one in smaller)
    assert report["reason"] in said


def test_what_was_tried_is_drawn(chosen, tmp_path):
    _, told, _ = chosen
    charts = forms(told.report)
    assert all(one["name"] in charts["bytes"].svg for one in told.report["trials"] if "loss" in one)
    draw_forms(told.report, tmp_path)
    assert names_in(tmp_path) == ["choice-bytes.svg", "choice-speed.svg"]
    assert (tmp_path / "choice-bytes.svg").read_text().startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert forms({}) == {}


def test_where_nothing_fits_what_was_measured_is_used_again(base, text, tmp_path, monkeypatch):
    tight = asked(calibration=str(text), max_loss=0, bits=4, method="auto")
    with pytest.raises(
        ParityError, match=r"(?s)none of 4 forms keeps its loss .* below 0.00%: .*such as max_loss="
    ) as told:
        quantize_as_asked(base, tmp_path / "out", tight, DEVICE, lambda _: None)
    assert names_in(tmp_path) == [".out.choosing", "lines.jsonl"]
    assert names_in(tmp_path / ".out.choosing") == [trials.REPORT]
    enough = told.value.fix.split("max_loss=")[1].split(":")[0]
    monkeypatch.setattr(trials, "scored", lambda *_: pytest.fail("measured twice"))
    again = tight.model_copy(update={"max_loss": enough})
    assert quantize_as_asked(base, tmp_path / "out", again, DEVICE, lambda _: None).report["taken"]
    assert names_in(tmp_path) == ["lines.jsonl", "out"]


def test_a_process_that_ended_in_between_is_taken_up(base, text, tmp_path, monkeypatch):
    wanted = asked(calibration=str(text), max_loss="90%", method="rtn")
    own, made = trials.quantize, []

    def quantize(*given):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(given[1].name)
        return own(*given)

    monkeypatch.setattr(trials, "quantize", quantize)
    with pytest.raises(KeyboardInterrupt):
        quantize_as_asked(base, tmp_path / "out", wanted, DEVICE, lambda _: None)
    monkeypatch.setattr(trials, "quantize", lambda *given: made.append(given[1].name) or own(*given))
    told = quantize_as_asked(base, tmp_path / "out", wanted, DEVICE, lambda _: None)
    assert made == ["rtn-8", "rtn-4", "rtn-3"]
    assert told.quantized.method == "rtn"
    assert names_in(tmp_path) == ["lines.jsonl", "out"]


def test_a_form_that_the_gate_refuses_is_told_and_not_counted(base, text, tmp_path):
    wanted = asked(calibration=str(text), max_loss="90%", method="rtn", max_kl=0.05)
    told = quantize_as_asked(base, tmp_path / "out", wanted, DEVICE, lambda _: None).report
    refused = [one for one in told["trials"] if "why" in one]
    assert refused
    assert all("nats from the original" in one["why"] and "loss" not in one for one in refused)


def test_named_methods_and_widths_are_not_chosen(base, tmp_path):
    told = quantize_as_asked(base, tmp_path / "out", asked(bits=8, method="rtn", **_NO_CHOICE), DEVICE, lambda _: None)
    assert told.report == {}
    assert names_in(tmp_path) == ["out"]


_NO_CHOICE = {"judged_tokens": 16_384, "calibration_tokens": 32_768, "calibration_length": 512}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_loss": "3%"}, "nothing is chosen: max_loss has no effect without auto"),
        ({"bits": "auto", "max_loss": "much"}, "a share such as 2% or 0.02"),
        ({"method": "nf4", "bits": "auto"}, "nf4 is 4 bits"),
        ({"bits": 5}, "allowed: 8, 4, 3, 2"),
    ],
)
def test_options_that_cannot_be(given, said):
    with pytest.raises(ConfigError, match=said):
        validate(AskedOptions, given, where="test")


def test_what_is_tried():
    def tried(**given):
        return [(one.method, one.bits) for one in validate(AskedOptions, given, where="test").to_try()]

    assert tried() == [("awq", 4)]
    assert tried(bits="auto") == [("awq", 8), ("awq", 4), ("awq", 3)]
    assert tried(method="auto") == [("rtn", 4), ("awq", 4), ("gptq", 4), ("awq+gptq", 4)]
    assert len(tried(bits="auto", method="auto")) == 9
    assert tried(bits="auto", method="auto", format="awq", symmetric=False) == tried(method="auto")
    assert tried(method="nf4") == [("nf4", 4)]
