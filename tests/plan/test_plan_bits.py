"""The notes' rule on bits as they give it, and the published figures beside it."""

from __future__ import annotations

import pytest

from danlu.cli import call
from danlu.errors import ConfigError
from danlu.plan.quantization import FIGURES, bits_by_figures, bits_by_notes, loss_of, of_size, size_of


@pytest.mark.parametrize(
    ("size", "loss", "bits"),
    [(8e9, 0, 8), (8e9, 0.02, 4), (8e9, 0.03, 4), (70e9, 0.0005, 4), (70e9, 0.027, 3), (70e9, 0, 8), (8e9, 0.019, 8)],
)
def test_the_notes(size, loss, bits):
    """8 bit costs nothing; 4 bit 2 % of an 8B and 0.05 % of a 70B; 3 bit 2.7 % of a 70B."""
    assert bits_by_notes(size, loss) == bits


def test_where_figures_and_notes_disagree_it_is_by_family():
    found = bits_by_figures(of_size(8e9), 0.02)
    assert found["Llama 2", 7].bits == 4
    assert found["Llama 3", 8].bits == 5


def test_a_70b_in_3_bits_loses_more_than_the_notes_say():
    losses = [one.loss for one in of_size(70e9) if one.bits == 3]
    assert min(losses) > 0.027


def test_only_models_of_about_that_size_stand_beside_it():
    assert {one.parameters for one in of_size(1e9)} == {1}
    assert {one.parameters for one in of_size(8e9)} == {7, 8}
    assert {one.parameters for one in of_size(671e9)} == {70}


def test_every_figure_is_one_and_has_its_source():
    assert all(one.loss > 0 and one.source and one.bits in (2, 3, 4, 5, 6, 8) for one in FIGURES)
    assert len({(one.family, one.parameters, one.form, one.source) for one in FIGURES}) == len(FIGURES)


@pytest.mark.parametrize(("text", "share"), [("2%", 0.02), ("0.02", 0.02), ("0", 0), (" 2.5 % ", 0.025)])
def test_a_loss(text, share):
    assert loss_of(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "two", "-1%", "200%", "2", "nan", "inf"])
def test_what_is_no_loss(text):
    with pytest.raises(ConfigError, match="loss="):
        loss_of(text)


def test_sizes():
    assert [size_of(text) for text in ("8B", "0.5b", "135M", "Llama-2-7B")] == [8e9, 0.5e9, 135e6, None]


def test_the_command_says_both(capsys):
    assert call(["plan", "bits", "--model", "8B", "--loss", "2%"]) == 0
    shown = capsys.readouterr().out
    assert "by the notes, for 2.00% at most: 4 bit" in shown
    assert "Llama 3 8B: published figures say 5 bit (Q5_K_M), not 4" in shown
    assert call(["plan", "bits", "--model", "Llama-2-70B", "--loss", "3%"]) == 0
    assert "published figures say 4 bit" in capsys.readouterr().out
