"""Models as GGUF files: read again they are the same model, or it is said why they cannot be."""

import json

import gguf
import numpy as np
import pytest
import torch
from ggufs import CASES, make_model
from quantizing import make_quantized, make_whole, rounded
from safetensors.torch import load_file

from danlu.errors import ConfigError, ModelError
from danlu.hub import convert_gguf
from danlu.model.formats.table import FORMATS
from danlu.model.grouped import Scheme
from danlu.quantize.export_gguf import carried, write_gguf
from danlu.quantize.gguf_tokens import tokens_of
from tiny import make_tiny_model, make_tokenizer

KINDS = [case for case, (kind, own, _) in CASES.items() if own in ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")]


def saved(case, directory, tokenizer=None, dtype=torch.float32):
    model = make_model(case).to(dtype)
    model.save_pretrained(directory)
    (tokenizer or make_tokenizer()).save_pretrained(directory)
    return model


def pieces():
    """A tokenizer of pieces with bytes to fall back on, as Gemma's; 320 tokens at most."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"abcdefgh"]
    merges = [("a", "b"), ("ab", "c"), ("\u2581", "a"), ("\u2581a", "b"), ("d", "e"), ("f", "g")]
    tokens += [left + right for left, right in merges]
    vocabulary = {token: row for row, token in enumerate(tokens)}
    bpe = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@pytest.mark.parametrize("case", KINDS)
def test_it_is_read_as_the_same_model(case, tmp_path):
    model = saved(case, tmp_path / "model", pieces() if case.startswith("gemma") else None)
    made = write_gguf(tmp_path / "model", tmp_path / "it.gguf", "auto", print)
    assert (made.kind, made.type, made.carried) == (CASES[case][0], "f32", 0)
    (tmp_path / "again").mkdir()
    convert_gguf(tmp_path / "it.gguf", tmp_path / "again")
    again = type(model).from_pretrained(tmp_path / "again")
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for name, weight in before.items():
        # Gemma's norms are one more in the file, where 1 + w is rounded.
        assert torch.equal(weight, after[name]) or torch.allclose(weight, after[name], 0, 1e-7), name
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("dtype", "kind"), [(torch.bfloat16, "bf16"), (torch.float16, "f16")])
def test_auto_is_the_type_of_the_files(tmp_path, dtype, kind):
    saved("llama", tmp_path / "model", dtype=dtype)
    assert write_gguf(tmp_path / "model", tmp_path / "it.gguf", "auto", print).type == kind
    tensors = {one.name: one for one in gguf.GGUFReader(tmp_path / "it.gguf").tensors}
    held = tensors["blk.0.ffn_up.weight"]
    wanted = load_file(tmp_path / "model" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    found = gguf.quants.dequantize(held.data, held.tensor_type)
    assert np.array_equal(found, wanted.float().numpy())
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"


@pytest.mark.parametrize(("kind", "steps"), [("q8_0", 127), ("q4_0", 7)])
def test_blocks_round_to_the_nearest(tmp_path, kind, steps):
    saved("llama", tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "it.gguf", kind, print)
    tensors = {one.name: one for one in gguf.GGUFReader(tmp_path / "it.gguf").tensors}
    assert tensors["token_embd.weight"].tensor_type.name == "Q8_0"
    held = tensors["blk.0.ffn_up.weight"]
    assert held.tensor_type.name == kind.upper()
    wanted = load_file(tmp_path / "model" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].numpy()
    off = np.abs(gguf.quants.dequantize(held.data, held.tensor_type) - wanted).reshape(-1, 32)
    largest = np.abs(wanted).reshape(-1, 32).max(1, keepdims=True)
    assert (off <= largest / steps + 1e-6).all()  # a step at most: q4_0 has one code less above the middle
    assert off.max() > 0


@pytest.mark.parametrize(("bits", "kind"), [(4, "q4_0"), (8, "q8_0")])
@pytest.mark.parametrize("name", ["gptq", "pack-quantized"])
def test_codes_are_carried_over(tmp_path, bits, kind, name):
    changes = {"initializer_range": 0.3, "num_key_value_heads": 4}
    model, scheme = make_tiny_model(tmp_path / "model", changes=changes), Scheme(bits, 32, symmetric=True)
    quantized = make_quantized(model, tmp_path / "few", FORMATS[name], scheme)
    made = write_gguf(quantized, tmp_path / "it.gguf", "auto", print)
    assert (made.type, made.carried) == (kind, 14)
    (tmp_path / "again").mkdir()
    convert_gguf(tmp_path / "it.gguf", tmp_path / "again")
    wanted = load_file(make_whole(model, tmp_path / "whole", scheme) / "model.safetensors")
    found = load_file(tmp_path / "again" / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[one], wanted[one]) for one in wanted)


@pytest.mark.parametrize(
    ("scheme", "change", "said"),
    [
        (Scheme(4, 32), {}, "not symmetric"),
        (Scheme(4, 16, symmetric=True), {}, "no multiple of 32"),
        (Scheme(4, 32, symmetric=True), {"scales": torch.full((4, 2), 0.1)}, "no number of float16"),
        (Scheme(4, 32, symmetric=True), {"group_of": torch.arange(64) % 2}, "not neighbouring"),
    ],
)
def test_codes_that_blocks_do_not_hold(scheme, change, said):
    grouped = rounded(torch.randn(4, 64, generator=torch.Generator().manual_seed(0)), scheme)._replace(**change)
    with pytest.raises(ModelError, match=said):
        carried("a.layer", grouped, "q4_0")


def test_a_block_is_laid_out_as_llama_cpp_reads_it():
    # Scale 1 is 0x3c00; codes 0 to 15 and 15 to 0: byte i is i in its low half, 15 - i in the high one.
    scheme = Scheme(4, 32, symmetric=True)
    codes = torch.cat([torch.arange(16), torch.arange(15, -1, -1)])[None].to(torch.uint8)
    layer = rounded(torch.zeros(1, 32), scheme)._replace(codes=codes, scales=torch.ones(1, 1).half())
    block = carried("x", layer, "q4_0")
    assert block.tolist() == [[0x00, 0x3C, *(at | (15 - at) << 4 for at in range(16))]]


def test_codes_of_other_widths_are_refused(tmp_path):
    changes = {"num_key_value_heads": 4}
    model = make_tiny_model(tmp_path / "model", changes=changes)
    quantized = make_quantized(model, tmp_path / "few", FORMATS["pack-quantized"], Scheme(3, 32, symmetric=True))
    with pytest.raises(ModelError, match="not carried over into auto"):
        write_gguf(quantized, tmp_path / "it.gguf", "auto", print)
    quantized = make_quantized(model, tmp_path / "four", FORMATS["gptq"], Scheme(4, 32, symmetric=True))
    with pytest.raises(ModelError, match="not carried over into q8_0"):
        write_gguf(quantized, tmp_path / "it.gguf", "q8_0", print)
    assert not (tmp_path / "it.gguf").exists()


@pytest.mark.parametrize(
    ("case", "changes", "said"),
    [
        ("gpt2", {}, "gpt2 was not compared"),
        ("llama", {"hidden_act": "gelu"}, "its activation is gelu"),
        ("qwen3", {"attention_bias": True}, "biases"),
        ("qwen2", {"use_sliding_window": True}, "windows slide"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "capped"),
        ("gemma3", {"query_pre_attn_scalar": 99}, "scaled in its own way"),
        ("gemma3", {"layer_types": ["full_attention"] * 7}, "6th block"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(case, changes, said, tmp_path):
    saved(case, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")
    with pytest.raises(ModelError, match=said):
        write_gguf(tmp_path / "model", tmp_path / "it.gguf", "auto", print)
    assert not (tmp_path / "it.gguf").exists()


def test_a_way_of_cutting_words_without_a_name_is_refused(tmp_path):
    from tokenizers import pre_tokenizers

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ModelError, match=r"cuts words \(Whitespace\)"):
        tokens_of(tokenizer, 320)
    with pytest.raises(ModelError, match="a token 319, and the model 300 rows"):
        tokens_of(make_tokenizer(), 300)


def test_rows_without_a_token_are_marked(tmp_path):
    """Models are often wider than their tokenizers, so that widths divide."""
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(vocab_size=352, **CASES["llama"][2])).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "it.gguf", "auto", print)
    fields = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "it.gguf").fields.items()}
    assert len(fields["tokenizer.ggml.tokens"]) == 352
    assert fields["tokenizer.ggml.tokens"][-1] == "[PAD351]"
    assert fields["tokenizer.ggml.token_type"][-1] == 5


def test_the_file_says_tokens_and_template(tmp_path):
    saved("llama", tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "it.gguf", "auto", print)
    fields = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "it.gguf").fields.items()}
    tokenizer = make_tokenizer()
    assert fields["tokenizer.chat_template"] == tokenizer.chat_template
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert fields["tokenizer.ggml.tokens"][:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert fields["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert fields["tokenizer.ggml.add_bos_token"] is False


def tokenizer_fields(model, out, tokenizer):
    tokenizer.save_pretrained(model)
    write_gguf(model, out, "auto", print)
    return {name: field.contents() for name, field in gguf.GGUFReader(out).fields.items() if "tokenizer" in name}


def test_a_token_that_ends_answers_alone_is_said(tmp_path):
    """Llama 3's kind: the tokenizer names the end of a text, the template ends answers with another token."""
    saved("llama", tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    found = tokenizer_fields(tmp_path / "model", tmp_path / "it.gguf", tokenizer)
    assert (found["tokenizer.ggml.eos_token_id"], found["tokenizer.ggml.eot_token_id"]) == (0, 2)
    (tmp_path / "again").mkdir()
    convert_gguf(tmp_path / "it.gguf", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text())["eos_token_id"] == [0, 2]


def test_an_end_that_only_the_generation_config_names_is_said(tmp_path):
    saved("llama", tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 1]}))
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    found = tokenizer_fields(tmp_path / "model", tmp_path / "it.gguf", tokenizer)
    assert (found["tokenizer.ggml.eos_token_id"], found["tokenizer.ggml.eot_token_id"]) == (2, 1)


def test_where_one_token_ends_both_nothing_else_is_said(tmp_path):
    saved("llama", tmp_path / "model")
    found = tokenizer_fields(tmp_path / "model", tmp_path / "it.gguf", make_tokenizer())
    assert found["tokenizer.ggml.eos_token_id"] == 2
    assert "tokenizer.ggml.eot_token_id" not in found


def test_a_tokenizer_that_ends_every_text_does_not_end_prompts(tmp_path):
    from tokenizers.processors import TemplateProcessing

    saved("llama", tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", tokenizer.eos_token_id)]
    )
    assert tokenizer("x")["input_ids"][-1] == tokenizer.eos_token_id
    assert (
        tokenizer_fields(tmp_path / "model", tmp_path / "it.gguf", tokenizer)["tokenizer.ggml.add_eos_token"] is False
    )


def test_of_several_templates_the_default_is_the_template(tmp_path):
    saved("llama", tmp_path / "model")
    tokenizer = make_tokenizer()
    default = tokenizer.chat_template
    tokenizer.chat_template = {"default": default, "tool_use": default + "{# with tools #}"}
    found = tokenizer_fields(tmp_path / "model", tmp_path / "it.gguf", tokenizer)
    assert found["tokenizer.chat_template"] == default
    assert found["tokenizer.chat_template.tool_use"].endswith("{# with tools #}")


def test_what_is_no_gguf_file_stays(tmp_path):
    saved("llama", tmp_path / "model")
    (tmp_path / "it.gguf").write_text("mine")
    with pytest.raises(ConfigError, match="is no GGUF file"):
        write_gguf(tmp_path / "model", tmp_path / "it.gguf", "auto", print)
    assert (tmp_path / "it.gguf").read_text() == "mine"
    with pytest.raises(ConfigError, match="is a directory"):
        write_gguf(tmp_path / "model", tmp_path / "model", "auto", print)


def test_a_configuration_that_nobody_knows_is_said(tmp_path):
    directory = make_tiny_model(tmp_path / "model")
    config = json.loads((directory / "config.json").read_text("utf-8"))
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "lama"}), "utf-8")
    with pytest.raises(ModelError, match=r"its configuration cannot be read: .*lama"):
        write_gguf(directory, tmp_path / "out.gguf", "auto", print)
    assert not (tmp_path / "out.gguf").exists()
