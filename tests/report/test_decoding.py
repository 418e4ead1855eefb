"""Traces in a terminal: at several widths, with and without Unicode, with the knobs named and nothing cut off."""

from __future__ import annotations

import io
import re

import pytest
from answering import fixed_scores, strong_engine
from rich.cells import cell_len
from rich.console import Console

from danlu import GenerationParams
from danlu.report.decoding import show_trace
from danlu.words import speaking

P = {40: -0.9, 41: -1.4, 42: -1.9, 43: -2.6, 44: -3.9}


@pytest.fixture
def engine(tiny_model):
    return strong_engine(tiny_model)


def shown(trace, width=80, encoding="utf-8", tokens=8, **options):
    """The picture as text, and the bytes that a terminal would get."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    show_trace(Console(file=file, width=width, markup=False, emoji=False, **options), trace, tokens)
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def drawn(engine, prompt="one two", **knobs):
    return engine.trace(prompt, GenerationParams(**{"max_new_tokens": 3, **knobs}))


SAMPLED = {"do_sample": True, "seed": 2, "temperature": 0.8, "top_k": 4, "top_p": 0.85}


def rows_of(text):
    """Token text -> the line of its candidate, of the first token."""
    table = re.split(r"\n +2  ", text)[0]
    return {found[1]: found[0] for found in re.finditer(r'^[ ▶>] +\d+ ("\S+").*$', table, re.MULTILINE)}


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_token_s_candidates_at_each_width(engine, monkeypatch, width, encoding):
    fixed_scores(engine, monkeypatch, P)
    text = shown(drawn(engine, **SAMPLED), width, encoding)
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert "\x1b" not in text
    rows = rows_of(text)
    tokens = [f'"{engine.chat.tokenizer.decode([token])}"' for token in P]
    assert list(rows) == tokens
    assert rows[tokens[4]].split()[-1] == "top_k"
    assert rows[tokens[3]].split()[-1] == "top_p"
    assert re.search(r"\d%", rows[tokens[0]].split()[-1])
    assert ("█" in text) == (encoding == "utf-8")
    assert ("#" in text) == (encoding == "ascii")
    heading = text.split("dropped by")[0].splitlines()[-1]
    assert ("temperature" in heading) == (width >= 80)
    assert "u 0." in text


def test_the_chosen_token_is_marked(engine, monkeypatch):
    fixed_scores(engine, monkeypatch, P)
    text = shown(drawn(engine))
    marked = [line for line in text.splitlines() if line.startswith("▶")]
    assert len(marked) == 3
    assert all(f'"{engine.chat.tokenizer.decode([40])}"' in line for line in marked)
    assert all(line.startswith(">") for line in shown(drawn(engine), encoding="ascii").splitlines() if ">" in line)


def test_bans_are_named(engine, monkeypatch):
    fixed_scores(engine, monkeypatch, {**P, 40: 3.0})
    text = shown(drawn(engine, bad_words_ids=[[40]], max_new_tokens=1))
    assert rows_of(text)[f'"{engine.chat.tokenizer.decode([40])}"'].split()[-2:] == ["✗", "bad_words_ids"]


def test_unlikely_candidates_are_left_out_and_what_stages_took_is_told(engine, monkeypatch):
    likely = {token: 1.0 - token / 1000 for token in range(40, 52)}
    fixed_scores(engine, monkeypatch, likely)
    text = shown(drawn(engine, bad_words_ids=[[50]], max_new_tokens=1))
    assert f'bad_words_ids also dropped "{engine.chat.tokenizer.decode([50])}" 8.3%' in text
    fixed_scores(engine, monkeypatch, {40: 10.0, 41: 1.0})
    assert len(rows_of(shown(drawn(engine, max_new_tokens=1)))) == 1
    monkeypatch.undo()
    many = shown(drawn(engine, max_new_tokens=1, do_sample=True, seed=1, top_k=3))
    assert f"top_k dropped {len(engine.chat.tokenizer) - 3} tokens, 3 left" in many


def test_colour_where_there_is_a_terminal(engine, monkeypatch):
    fixed_scores(engine, monkeypatch, P)
    text = shown(drawn(engine), force_terminal=True, color_system="standard", legacy_windows=False)
    assert "\x1b[1;32m" in text


def test_long_answers_are_cut_and_it_is_said_how_to_see_more(engine):
    text = shown(drawn(engine, max_new_tokens=9), tokens=4)
    assert re.findall(r"^ +(\d)  \"", text, re.MULTILINE) == ["1", "2", "3", "4"]
    assert "… 5 more tokens: --show_tokens 9" in text
    assert "more tokens" not in shown(drawn(engine, max_new_tokens=9), tokens=9)


def test_every_sampled_answer_is_drawn(engine):
    text = shown(drawn(engine, do_sample=True, seed=1, num_return_sequences=3))
    assert re.findall(r"^answer (\d), token by token", text, re.MULTILINE) == ["1", "2", "3"]


def test_wide_characters_keep_the_columns(engine, monkeypatch):
    fixed_scores(engine, monkeypatch, {40: 1.0, engine.chat.tokenizer.convert_tokens_to_ids("ing") or 41: 0.5})
    monkeypatch.setattr(
        "danlu.generate.scores.text.TokenNames.data", lambda _self, token: "丹炉".encode() * (token == 40)
    )
    text = shown(drawn(engine, max_new_tokens=1))
    first, second = [line for line in text.splitlines() if line.endswith("%")][:2]
    assert '"丹炉"' in first
    assert cell_len(first) == cell_len(second)


# --- beams


BEAMS = {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 2, "eos_token_id": list(range(60, 110))}


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_beams_are_a_tree(engine, width, encoding):
    trace = drawn(engine, **BEAMS)
    text = shown(trace, width, encoding)
    assert all(cell_len(line) <= width for line in text.splitlines())
    tree = text.split("answer 1, token by token")[0]
    finished, pruned = ("✓", "✗") if encoding == "utf-8" else ("*", "x")
    for number, answer in enumerate(trace.answers, 1):
        (line,) = [line for line in tree.splitlines() if line.endswith(f"answer {number}")]
        assert f"score {answer.score:.3f}  {answer.finish_reason}" in line
        assert finished in line
    assert re.search(rf"{pruned} \d: \"", tree)
    assert "one two" in tree
    assert encoding == "utf-8" or tree.isascii()


def test_a_tree_is_as_deep_as_asked(engine):
    tree = shown(drawn(engine, **BEAMS, min_new_tokens=5), tokens=2).split("answer 1, token by token")[0]
    assert "goes on to answer 1" in tree
    assert "✓" not in tree


def test_pruned_branches_are_dim(engine):
    text = shown(drawn(engine, **BEAMS), force_terminal=True, color_system="standard", legacy_windows=False)
    dim = [line for line in text.splitlines() if "✗ 1:" in line]
    assert dim
    assert all("\x1b[2m" in line for line in dim)


def test_groups_and_progress_are_told(engine):
    groups = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}
    text = shown(drawn(engine, **groups))
    assert "[0] " in text
    assert "[1] " in text
    coloured = shown(drawn(engine, **groups), force_terminal=True, color_system="standard", legacy_windows=False)
    assert "\x1b[36m" in coloured
    assert "\x1b[35m" in coloured
    forced = shown(drawn(engine, num_beams=3, force_words_ids=[[50]], max_new_tokens=5))
    assert "bank 1" in forced
    assert "bank 0" in forced


def test_a_finished_character_stands_beside_its_last_byte(engine, monkeypatch):
    """Of 北, e5 8c 97, the tiny tokenizer has a token a byte; whoever reads the table wants to see the character."""
    tokenizer = engine.chat.tokenizer
    first, second, third = tokenizer.encode("北", add_special_tokens=False)
    text = shown(drawn(engine, force_words_ids=[[first, second, third]], max_new_tokens=3), tokens=3)
    assert r'"\xe5"' in text
    assert r'"\x97" = "北"' in text
    assert text.count("北") >= 2  # of the token, and of the candidate


def test_the_picture_in_chinese(engine):
    with speaking("zh"):
        out = shown(drawn(engine, **SAMPLED), tokens=1)
        beams = shown(drawn(engine, num_beams=3, num_return_sequences=2))
    assert "回答 1，逐 token" in out
    assert "排名" in out
    assert "筛除" in out
    assert "另有 2 个 token：--show_tokens 3" in out
    assert "answer" not in out + beams
    assert "回答 2" in beams
    assert "得分" in beams
