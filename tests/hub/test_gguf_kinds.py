"""Every kind of GGUF file that is read gives the model that it was made of; every other is refused by name."""

from __future__ import annotations

import pytest
import torch
from ggufs import CASES, make_model, write_gguf
from rounding import assert_same_model
from safetensors.torch import load_file

from danlu import hub
from danlu.errors import ModelError
from danlu.hub.gguf_kinds import KINDS, REFUSED, Head, check_head

WEIGHTS = "model.safetensors"
IDS = torch.arange(3, 300)[None]  # (rows, time): past every window, and past the lengths that scaling begins at


def logits(model):
    with torch.no_grad():
        return model(IDS).logits  # (rows, time, vocab)


def convert(gguf, out):
    out.mkdir()
    hub.convert_gguf(gguf, out)
    return out


def read(directory):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def test_every_kind_has_a_case():
    assert {kind for kind, _, _ in CASES.values()} == KINDS.keys()
    assert not KINDS.keys() & REFUSED.keys()


@pytest.mark.parametrize("case", CASES)
def test_a_file_answers_as_the_model_it_was_made_of(tmp_path, case):
    model = make_model(case)
    converted = read(convert(write_gguf(case, model, tmp_path / "model.gguf"), tmp_path / "out"))
    expected = logits(model)
    assert expected.std() > 0.5
    if "qwen35" in case:  # its decay goes through exp and back; all else is the same number
        torch.testing.assert_close(logits(converted), expected, rtol=0, atol=1e-3)
    else:
        assert_same_model(logits(converted), expected, model.config.get_text_config())


@pytest.mark.parametrize("case", ["llama", "qwen3", "gemma3", "qwen3moe", "qwen35"])
def test_a_quantized_file_is_off_by_its_rounding_alone(tmp_path, case):
    """Q8_0: 32 weights share a scale, their largest / 127 in float16, so each is off by little more than half of it."""
    model = make_model(case)
    plain, rounded = (
        load_file(convert(write_gguf(case, model, tmp_path / f"{q8}.gguf", quantized=q8), tmp_path / f"{q8}") / WEIGHTS)
        for q8 in (False, True)
    )
    assert plain.keys() == rounded.keys()
    assert any(not torch.equal(plain[name], rounded[name]) for name in plain)
    for name, weight in plain.items():
        assert (weight - rounded[name]).abs().max() <= 0.6 * weight.abs().max() / 127, name


@pytest.mark.parametrize("kind", ["glm4", "granite", *REFUSED])
def test_a_kind_that_is_not_read(kind):
    with pytest.raises(
        ModelError, match=rf"the kind '{kind}' cannot be read(?s:.*)allowed: gemma2(?s:.*)safetensors"
    ) as e:
        check_head(Head(kind, keys={}, shapes={}, rope={}))
    assert REFUSED.get(kind, "") in str(e.value)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"expert_count": 8, "expert_used_count": 2}, "expert_count = 8, expert_used_count = 2"),
        ({"attention.scale": 0.5}, "attention.scale = 0.5"),
        ({"logit_scale": 0.1}, "logit_scale = 0.1"),
        ({"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0}, "scales rotary positions by 'longrope'"),
    ],
)
def test_a_key_that_changes_the_model_and_is_not_read(tmp_path, keys, words):
    gguf = write_gguf("llama", make_model("llama"), tmp_path / "model.gguf", **keys)
    with pytest.raises(ModelError, match=words):
        convert(gguf, tmp_path / "out")


def test_a_key_that_says_nothing_is_no_reason(tmp_path):
    gguf = write_gguf("llama", make_model("llama"), tmp_path / "model.gguf", expert_count=0)
    convert(gguf, tmp_path / "out")


def test_tensors_that_find_no_place(tmp_path, monkeypatch):
    """A qwen2 file with norms of queries: transformers would leave them out and say nothing."""
    import ggufs

    made = ggufs._tensors
    extra = torch.ones(8).numpy()
    monkeypatch.setattr(ggufs, "_tensors", lambda *given: made(*given) | {"blk.0.attn_q_norm.weight": extra})
    gguf = write_gguf("qwen2", make_model("qwen2"), tmp_path / "model.gguf")
    with pytest.raises(ModelError, match=r"weights, and Qwen2ForCausalLM was made of \d+: some have no place"):
        convert(gguf, tmp_path / "out")


def test_a_tensor_of_another_shape(tmp_path, monkeypatch):
    """llama.cpp's converter leaves the gate of shared experts in two dimensions, and transformers adds another."""
    import ggufs

    made = ggufs._tensors
    monkeypatch.setattr(
        ggufs,
        "_tensors",
        lambda *given: {name: w[None] if "inp_shexp" in name else w for name, w in made(*given).items()},
    )
    gguf = write_gguf("qwen2moe", make_model("qwen2moe"), tmp_path / "model.gguf")
    with pytest.raises(ModelError, match=r"shared_expert_gate\.weight is read as \(1, 1, 32\), and .* has \(1, 32\)"):
        convert(gguf, tmp_path / "out")


def test_rotary_scaling_that_is_not_llama_3s(tmp_path, monkeypatch):
    import ggufs

    odd = torch.tensor([1.0, 1.5, 2.0, 8.0]).numpy()
    monkeypatch.setattr(ggufs, "_rope_tensors", lambda config: {"rope_freqs.weight": odd})
    gguf = write_gguf("llama 3", make_model("llama 3"), tmp_path / "model.gguf")
    with pytest.raises(ModelError, match="not Llama 3's"):
        convert(gguf, tmp_path / "out")


def test_layers_of_multi_token_prediction_are_left_out(tmp_path, monkeypatch):
    import ggufs

    made = ggufs._tensors
    extra = torch.ones(32).numpy()
    monkeypatch.setattr(ggufs, "_tensors", lambda *given: made(*given) | {"blk.4.nextn.enorm.weight": extra})
    model = make_model("qwen35")
    keys = {"block_count": 5, "nextn_predict_layers": 1, "attention.recurrent_layers": [True, True, True, False, False]}
    converted = read(convert(write_gguf("qwen35", model, tmp_path / "model.gguf", **keys), tmp_path / "out"))
    torch.testing.assert_close(logits(converted), logits(model), rtol=0, atol=1e-3)


def test_a_word_splitting_that_is_not_known(tmp_path):
    gguf = write_gguf("llama", make_model("llama"), tmp_path / "model.gguf")
    gguf.write_bytes(gguf.read_bytes().replace(b"gpt-2", b"bloom"))
    with pytest.raises(ModelError, match=r"splits words as 'bloom' does(?s:.*)allowed: .*gpt-2"):
        convert(gguf, tmp_path / "out")


def test_stablelm_2_splits_words_as_qwen_2_does(tmp_path):
    from transformers import AutoTokenizer

    from tiny import make_tiny_gguf, make_tiny_model

    gguf = make_tiny_gguf(make_tiny_model(tmp_path / "model"), tmp_path / "model.gguf", pre="stablelm2")
    splitter = AutoTokenizer.from_pretrained(convert(gguf, tmp_path / "out")).backend_tokenizer.pre_tokenizer
    assert [word for word, _ in splitter.pre_tokenize_str("a-b 20")] == ["a", "-b", "Ġ", "2", "0"]
