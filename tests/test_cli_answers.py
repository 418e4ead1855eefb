"""Commands that answer on the command line: generate, chat and merge, with models of both kinds."""

from __future__ import annotations

import io
import json
import sys

import pytest
import torch
from rich.console import Console

from danlu import Engine, GenerationParams
from danlu.device import Device
from danlu.generate.engine import Answer, Event
from danlu.generate.watching.trace import Trace
from danlu.model.adapters import attach, save_adapter
from danlu.model.load import load_model
from danlu.model.lora_options import LoraOptions
from danlu.terminal import show
from tiny import make_tiny_model

# --- generate, chat


def test_one_prompt_is_answered(call, tiny_model):
    code, out, err = call("generate", tiny_model, "one two", "--max_new_tokens", 9, "--dtype", "float32")
    engine = Engine(str(tiny_model), dtype="float32")
    params = GenerationParams(max_new_tokens=9)
    assert (code, err) == (0, "note: cut off after 9 tokens; --max_new_tokens 18 allows more\n")
    assert out == engine.generate([[{"role": "user", "content": "one two"}]], params)[0].text + "\n"


@pytest.fixture
def asked(monkeypatch):
    """The prompts and knobs that reach the engine, which answers what is set here."""
    asked = []
    asked_text = "a:b:c\t[bold]x[/bold]\n  :warning: " + "y" * 400

    def stream(self, prompt, params=None):
        asked.append((list(prompt) if isinstance(prompt, (list, tuple)) else prompt, params))
        answer = Answer((5, 6), asked_text, None, "length")
        yield from (Event(0, asked_text[:7], (5,)), Event(0, asked_text[7:], (6,), answer))

    monkeypatch.setattr(Engine, "stream", stream)
    return asked


def test_an_answer_is_printed_as_it_is(call, tiny_model, asked):
    """No emoji for :b:, no markup for [bold], no spaces for a tab, no break of a long line."""
    code, out, _ = call("generate", tiny_model, "hi")
    assert code == 0
    assert out == "a:b:c\t[bold]x[/bold]\n  :warning: " + "y" * 400 + "\n"


def test_options_reach_the_engine(call, tiny_model, asked):
    call("generate", tiny_model, "hi", "--system", "Be brief.", "--do_sample", "--top_k", 3, "--seed", 5)
    ((messages, params),) = asked
    assert messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert params == GenerationParams(do_sample=True, top_k=3, seed=5, max_new_tokens=256)


@pytest.mark.parametrize(
    ("flags", "knobs"),
    [
        (["--stop_sequences", "a", "--stop_sequences", "b c"], {"stop_sequences": ("a", "b c")}),
        (["--stop_sequences", '["a", [5, 6]]', "--stop_sequences", "b"], {"stop_sequences": ("a", (5, 6), "b")}),
        (["--bad_words_ids", "[[5, 6], [7]]"], {"bad_words_ids": ((5, 6), (7,))}),
        (["--eos_token_id", "5"], {"eos_token_id": (5,)}),
        (["--eos_token_id", "5", "--eos_token_id", "6"], {"eos_token_id": (5, 6)}),
        (["--eos_token_id", "[]"], {"eos_token_id": ()}),
        (["--logit_bias", '{"5": -2}', "--logit_bias", '{"6": 1.5}'], {"logit_bias": {5: -2.0, 6: 1.5}}),
        (["--force_words", '["a", ["b", "c"]]', "--num_beams", "2"],
         {"force_words": ("a", ("b", "c")), "num_beams": 2}),
        (["--force_words_ids", "[[5, 6], [7]]", "--num_beams", "2"],
         {"force_words_ids": ((5, 6), (7,)), "num_beams": 2}),
        (["--constraints", '{"choice": ["a", "b"]}', "--num_beams", "2"],
         {"constraints": [{"choice": ["a", "b"]}], "num_beams": 2}),
        (["--json_schema", '{"type": "object", "maxProperties": 2}'],
         {"json_schema": {"type": "object", "maxProperties": 2}}),
        (["--json_schema", "{}"], {"json_schema": {}}),
        (["--regex", "[a-z]{2,3}"], {"regex": "[a-z]{2,3}"}),
        (["--early_stopping", "never", "--num_beams", "2"], {"early_stopping": "never", "num_beams": 2}),
        (["--max_length", "30"], {"max_length": 30, "max_new_tokens": None}),
    ],
)  # fmt: skip
def test_lists_and_mappings_are_flags_too(call, tiny_model, asked, flags, knobs):
    assert call("generate", tiny_model, "hi", *flags)[0] == 0
    assert asked[0][1] == GenerationParams(**{"max_new_tokens": 256, **knobs})


def test_a_schema_may_stand_in_a_file(call, tiny_model, asked, tmp_path):
    (tmp_path / "form.json").write_text('{"type": "object"}\n', "utf-8")
    assert call("generate", tiny_model, "hi", "--json_schema", f"@{tmp_path}/form.json")[0] == 0
    assert asked[0][1].json_schema == {"type": "object"}
    code, _, err = call("generate", tiny_model, "hi", "--json_schema", f"@{tmp_path}/none.json")
    assert code == 2
    assert "json_schema" in err
    assert "none.json" in err


def test_each_of_several_answers_is_printed(call, tiny_model):
    knobs = ["--do_sample", "--seed", 5, "--num_return_sequences", 3, "--max_new_tokens", 5]
    code, out, err = call("generate", tiny_model, "one two", *knobs, "--dtype", "float32")
    engine = Engine(str(tiny_model), dtype="float32")
    params = GenerationParams(do_sample=True, seed=5, num_return_sequences=3, max_new_tokens=5)
    expected = engine.generate([[{"role": "user", "content": "one two"}]], params)[0].sequences
    assert (code, out) == (0, "".join(answer.text + "\n" for answer in expected))
    assert err.count("cut off after 5 tokens") == sum(answer.finish_reason == "length" for answer in expected)


def test_decoding_is_drawn_and_written(call, tiny_model, tmp_path):
    asked = ("generate", tiny_model, "hi", "--max_new_tokens", 3, "--num_beams", 2)
    _, answer, cut = call(*asked)
    file = tmp_path / "trace.json"
    code, out, err = call(*asked, "--show", "--show_tokens", 2, "--show_json", file)
    assert (code, err) == (0, cut)
    assert out.startswith(answer)
    assert "answer 1, token by token" in out
    assert "1 more tokens: --show_tokens 3" in out
    trace = Trace.from_json(file.read_text("utf-8"))
    assert trace.answers[0].text + "\n" == answer
    assert call(*asked, "--show_json", file) == (0, answer, cut)
    code, _, err = call(*asked, "--show_json", tmp_path / "trace.json" / "inner")
    assert (code, "a part of the path is a file" in err) == (1, True)


def test_raw_text_and_standard_input(call, tiny_model, asked, monkeypatch):
    call("generate", tiny_model, "one two", "--raw")
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe\n丹炉"))
    call("generate", tiny_model, "-")
    assert asked[0][0] == "one two"
    assert asked[1][0] == [{"role": "user", "content": "from a pipe\n丹炉"}]


def test_a_talk_remembers_until_it_starts_anew(call, tiny_model, asked, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\nand you?\n/new\nagain\n\nnever read\n"))
    code, out, err = call("chat", tiny_model, "--system", "s", "--max_new_tokens", 3)
    assert code == 0
    assert err.startswith("an empty line or Ctrl-D ends the talk; /new starts another\n")
    said = [[(m["role"], m["content"][:8]) for m in messages] for messages, _ in asked]
    system, answer = ("system", "s"), ("assistant", "a:b:c\t[b")
    assert said == [
        [system, ("user", "hello")],
        [system, ("user", "hello"), answer, ("user", "and you?")],
        [system, ("user", "again")],
    ]
    assert "you " in out
    assert all(params.max_new_tokens == 3 for _, params in asked)


@pytest.mark.parametrize("prefill", ["- one", "<|im_end|> two"])
def test_an_answer_begins_as_it_is_told_to(call, tiny_model, prefill, tmp_path):
    engine = Engine(str(tiny_model), dtype="float32")
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": prefill}]
    ids = engine.chat.prompt(messages, continue_final_message=True)
    assert not set(ids[-3:]) & engine.chat.stop_ids
    answer = engine.generate([ids], GenerationParams(max_new_tokens=5))[0].text
    flags = ("--prefill", prefill, "--max_new_tokens", 5, "--dtype", "float32")
    code, out, _ = call("generate", tiny_model, "hi", *flags)
    assert (code, out) == (0, f"{prefill}{answer}\n")
    shown = call("generate", tiny_model, "hi", *flags, "--show_json", tmp_path / "trace.json")
    assert shown[1] == out
    several = ("--num_beams", 2, "--num_return_sequences", 2)
    both = engine.generate([ids], GenerationParams(max_new_tokens=5, num_beams=2, num_return_sequences=2))[0]
    said = call("generate", tiny_model, "hi", *flags, *several)[1]
    assert said == "".join(f"{prefill}{one.text}\n" for one in both.sequences)


def test_each_answer_of_a_talk_begins_as_it_is_told_to(call, tiny_model, asked, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\nand you?\n"))
    code, out, _ = call("chat", tiny_model, "--prefill", "Well,")
    assert code == 0
    engine = Engine(str(tiny_model), dtype="float32")
    answer = "a:b:c\t[bold]x[/bold]\n  :warning: " + "y" * 400
    begun = {"role": "assistant", "content": "Well,"}
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": f"Well,{answer}"},
            {"role": "user", "content": "and you?"}]  # fmt: skip
    assert [ids for ids, _ in asked] == [
        engine.chat.prompt([*messages, begun], continue_final_message=True) for messages in (talk[:1], talk)
    ]
    assert out.count(f"Well,{answer}\n") == 2


def test_a_talk_ends_with_its_input(call, tiny_model, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello"))
    code, out, err = call("chat", tiny_model, "--max_new_tokens", 3, "--dtype", "float32")
    answer = Engine(str(tiny_model), dtype="float32").generate(
        [[{"role": "user", "content": "hello"}]], GenerationParams(max_new_tokens=3)
    )[0]
    assert code == 0
    assert err.endswith("\nnote: cut off after 3 tokens; --max_new_tokens 6 allows more\n")
    assert answer.text in out


def test_what_a_terminal_has_no_characters_for_is_spelt_out():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", newline="\n")
    show(Console(file=file), "丹炉 and more")
    assert file.buffer.getvalue() == rb"\u4e39\u7089 and more" + b"\n"


def test_forced_words_that_did_not_fit_are_named(call, tiny_model):
    code, _, err = call(
        "generate", tiny_model, "hi", "--force_words", "quick brown fox", "--force_words", "a", "--max_new_tokens", 2
    )
    assert code == 0
    assert "note: unsatisfied: cut off after 2 tokens, without quick brown fox" in err
    assert "--max_new_tokens 4 allows more" in err


def test_what_is_cut_names_the_limit_that_was_given(call, tiny_model):
    assert "; --max_length 40 allows more" in call("generate", tiny_model, "hi", "--raw", "--max_length", 20)[2]


# --- base models


@pytest.fixture(scope="module")
def base_model(tmp_path_factory):
    """Random weights: they end no turn, whatever their template says."""
    return make_tiny_model(tmp_path_factory.mktemp("base") / "llama", kind=None)


def test_a_base_model_goes_on_with_the_prompt_and_says_so(call, base_model):
    code, out, err = call("generate", base_model, "one two", "--max_new_tokens", 4, "--dtype", "float32")
    raw = call("generate", base_model, "one two", "--max_new_tokens", 4, "--dtype", "float32", "--raw")
    assert (code, out) == (0, raw[1])
    assert "llama is a base model (after a short answer it gives <|im_end|> a probability of 0.00" in err
    assert "--kind instruct asks it all the same" in err
    assert "base model" not in raw[2]


def test_the_user_knows_better(call, base_model, tiny_model, asked):
    call("generate", base_model, "hi", "--kind", "instruct")
    call("generate", tiny_model, "hi", "--kind", "base")
    assert [prompt for prompt, _ in asked] == [[{"role": "user", "content": "hi"}], "hi"]
    code, _, err = call("generate", base_model, "hi", "--system", "s")
    assert code == 2
    assert "--system has no effect" in err
    code, _, err = call("generate", base_model, "hi", "--prefill", "s")
    assert code == 2
    assert "put it after the prompt" in err
    assert call("generate", base_model, "hi", "--kind", "chat")[0] == 2


def test_nobody_talks_with_a_base_model_by_mistake(call, base_model, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    code, out, err = call("chat", base_model)
    assert (code, out) == (1, "")
    assert "continues text and has not learnt to answer" in err
    assert "danlu generate" in err
    assert "danlu run chinese-qa" in err
    assert call("chat", base_model, "--kind", "instruct", "--max_new_tokens", 2)[0] == 0


# --- merge


@pytest.fixture
def adapter(tiny_model, tmp_path):
    device = Device("cpu", 1, 10**9, has_bfloat16=False)
    model = attach(load_model(tiny_model, device=device, dtype=torch.float32), LoraOptions(r=2), seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.05)
    save_adapter(model, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_is_merged_and_used(call, tiny_model, adapter, tmp_path):
    out = tmp_path / "merged"
    code, said, err = call("merge", adapter, out, "--max_new_tokens", 4)
    assert (code, err) == (0, "")
    assert f"{out}: 8 greedy answers equal, logits within" in said
    assert "(allowed 0.001)" in said
    with_adapter = call("generate", tiny_model, "hi", "--adapter", adapter, "--max_new_tokens", 5, "--dtype", "float32")
    assert "base model" not in with_adapter[2]  # an adapter on an instruct model
    assert call("generate", out, "hi", "--max_new_tokens", 5, "--dtype", "float32") == with_adapter


def test_prompts_of_ones_own_and_how_many(call, tiny_model, adapter, tmp_path):
    rows = [{"prompt": "丹炉是什么?", "completion": "炼丹的炉子。"}, {"prompt": "one", "completion": "two"}]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    arguments = (
        "merge",
        adapter,
        tmp_path / "merged",
        "--base",
        tiny_model,
        "--prompts_path",
        path,
        "--max_new_tokens",
        2,
    )
    assert ": 2 greedy answers equal" in call(*arguments)[1]
    assert ": 1 greedy answers equal" in call(*arguments, "--prompts", 1)[1]


def test_an_adapter_that_does_not_say_its_base_asks_for_it(call, adapter, tmp_path):
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": None}))
    code, _, err = call("merge", adapter, tmp_path / "merged")
    assert code == 1
    assert "does not say what it was trained on" in err
    assert "--base NAME" in err


def test_a_merge_that_does_not_agree_is_an_error(call, tiny_model, adapter, tmp_path):
    code, _, err = call("merge", adapter, tmp_path / "merged", "--tolerance", "1e-12", "--max_new_tokens", 1)
    assert code == 1
    assert "logits differ by" in err
    assert not (tmp_path / "merged").exists()
