"""Embedding and head in 8 bits: written, read, exported, and not to be told from what their codes say."""

from __future__ import annotations

import json
import shutil

import gguf
import pytest
import torch
from fewer_bits import DEVICE, options, run
from ggufs import make_model
from safetensors.torch import load_file

from danlu.config import validate
from danlu.errors import ConfigError, ModelError
from danlu.generate.engine import Engine
from danlu.generate.params import GenerationParams
from danlu.model.compute.grouped_embedding import GroupedEmbedding
from danlu.model.compute.grouped_linear import GroupedLinear
from danlu.model.grouped import Scheme
from danlu.model.load import load_model
from danlu.model.quantized import whole_layers
from danlu.quantize.export_gguf import write_gguf
from danlu.quantize.export_quantized import export_quantized
from danlu.quantize.options import QuantizeOptions
from danlu.quantize.rtn import rounded
from tiny import make_tiny_model, make_tokenizer


def loaded(directory, dtype=torch.float32):
    return load_model(directory, device=DEVICE, dtype=dtype)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "apart"])
def made(request, tmp_path_factory):
    """(original, quantized, what was told)"""
    folder = tmp_path_factory.mktemp("ends")
    source = make_tiny_model(folder / "model", changes={"tie_word_embeddings": request.param, "hidden_size": 64})
    return source, folder / "out", run(source, folder / "out", bits=8, embeddings=8, group_size=32, symmetric=True)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Layers in 4 bits, a tied embedding in 8."""
    folder = tmp_path_factory.mktemp("mixed")
    source = make_tiny_model(folder / "model", changes={"tie_word_embeddings": True, "hidden_size": 64})
    run(source, folder / "out", embeddings=8, group_size=32, symmetric=True, format="compressed-tensors")
    return folder / "out"


def test_what_is_read_is_what_the_codes_say(made):
    source, out, told = made
    assert told.format == "pack-quantized"
    assert told.closeness.mean_kl < 0.05
    weights = load_file(out / "model.safetensors")
    original = loaded(source)
    is_tied = original.config.tie_word_embeddings
    assert "model.embed_tokens.weight" not in weights
    assert ("lm_head.weight_packed" in weights) is not is_tied
    said = json.loads((out / "config.json").read_text())["quantization_config"]
    assert said["config_groups"]["group_1"]["targets"] == ["model.embed_tokens", "lm_head"]
    assert "lm_head" not in said["ignore"]

    found = loaded(out)
    embedding, head = found.get_input_embeddings(), found.get_output_embeddings()
    assert isinstance(embedding, GroupedEmbedding)
    assert isinstance(head, GroupedLinear)
    assert (head.codes.data_ptr() == embedding.codes.data_ptr()) is is_tied
    wanted = rounded(original.get_input_embeddings().weight, Scheme(8, 32, symmetric=True)).weight()
    assert torch.equal(embedding.weight, wanted)
    ids = torch.arange(3, 40)[None]
    assert torch.equal(embedding(ids), wanted[ids])
    with torch.no_grad():
        original.get_input_embeddings().weight.copy_(wanted)
        original.get_output_embeddings().weight.copy_(head.weight)
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
                     "mlp.up_proj", "mlp.down_proj"):  # fmt: skip
            for own, other in zip(original.model.layers, found.model.layers, strict=True):
                own.get_submodule(name).weight.copy_(other.get_submodule(name).weight)
        torch.testing.assert_close(found(ids).logits, original(ids).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("targets", [["Embedding"], ["re:.*embed_tokens$"]])
def test_an_embedding_that_others_wrote(mixed, tmp_path, targets):
    """llm-compressor's targets, beside linear layers of other bits."""
    wanted = loaded(mixed).get_input_embeddings().weight
    shutil.copytree(mixed, tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    said = json.loads(path.read_text())
    said["quantization_config"]["config_groups"]["group_1"]["targets"] = targets
    path.write_text(json.dumps(said))
    assert torch.equal(loaded(tmp_path / "out").get_input_embeddings().weight, wanted)


def test_the_engine_answers_by_it(made):
    _, out, _ = made
    engine = Engine(str(out), dtype="float32")
    [answer] = engine.generate([[5, 9, 14, 3]], GenerationParams(max_new_tokens=6, eos_token_id=()))
    engine.close()
    ids = list(answer.sequences[0].token_ids)
    with torch.no_grad():
        logits = loaded(out)(torch.tensor([[5, 9, 14, 3, *ids]])).logits[0, 3:-1]
    assert logits.argmax(-1).tolist() == ids


def test_as_gguf_the_codes_are_blocks_of_eight_bits(mixed, tmp_path):
    write_gguf(mixed, tmp_path / "it.gguf", "auto", print)
    tensors = {one.name: one for one in gguf.GGUFReader(tmp_path / "it.gguf").tensors}
    held = tensors["token_embd.weight"]
    assert held.tensor_type.name == "Q8_0"
    assert tensors["blk.0.ffn_up.weight"].tensor_type.name == "Q4_0"
    found = torch.from_numpy(gguf.quants.dequantize(held.data, held.tensor_type))
    assert torch.equal(found, loaded(mixed).get_input_embeddings().weight)


def test_an_embedding_that_is_multiplied(tmp_path):
    make_model("gemma3").save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    run(tmp_path / "model", tmp_path / "out", bits=8, embeddings=8, group_size=16, symmetric=True)
    original, found = (
        loaded(one, torch.bfloat16).get_input_embeddings() for one in (tmp_path / "model", tmp_path / "out")
    )
    ids = torch.arange(40)
    with torch.no_grad():
        original.weight.copy_(found.weight)
        assert torch.equal(found(ids), original(ids))


def test_what_cannot_be_said_with_it(tmp_path):
    for more in ({"method": "gptq", "format": "gptq"}, {"method": "nf4"}):
        with pytest.raises(ConfigError):
            validate(QuantizeOptions, {"embeddings": 8, **more}, where="x")
    assert options("awq", embeddings=8).form == "compressed-tensors"


def test_other_formats_and_whole_layers_are_refused(mixed, tmp_path):
    with pytest.raises(ConfigError, match="embed_tokens is in few bits"):
        export_quantized(mixed, tmp_path / "other", "gptq", print)
    with pytest.raises(ModelError, match="its embedding is in few bits"):
        whole_layers(loaded(mixed))
