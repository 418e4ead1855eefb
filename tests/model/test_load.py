"""Reading a model: whole and exact, or an error that says what is wrong with the files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rounding import assert_same_model
from safetensors.torch import load_file, save_file

from danlu.config import validate
from danlu.device import Device
from danlu.errors import ConfigError, MemoryShortage, ModelError, UnknownModel
from danlu.model.load import load_model, load_tokenizer
from danlu.model.named import ModelOptions, load
from tiny import ARCHITECTURES, make_tiny_gguf, make_tiny_model

CPU = Device("cpu", 1, 10**9, has_bfloat16=False)


@pytest.fixture
def broken(tiny_model, tmp_path):
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny_model, tmp_path / "broken"))


def read(directory, **changes):
    return load_model(directory, **{"device": CPU, "dtype": torch.float32, **changes})


def edit(path, **changes):
    document = json.loads(path.read_text())
    document.update(changes)
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


def edit_weights(path, **changes):
    weights = load_file(path)
    for name, weight in changes.items():
        weights.pop(name.replace("__", "."), None)
        if weight is not None:
            weights[name.replace("__", ".")] = weight
    save_file(weights, path, metadata={"format": "pt"})


# --- whole models


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_tiny_architecture_is_read_exactly(tmp_path, architecture, capfd):
    directory = make_tiny_model(tmp_path, architecture=architecture)
    loaded = load(ModelOptions(name=str(directory)), CPU, cache=tmp_path / "cache")
    assert capfd.readouterr() == ("", "")
    assert not loaded.model.training
    state = loaded.model.state_dict()
    weights = load_file(directory / "model.safetensors")
    assert all((state[name] == weight).all() for name, weight in weights.items())
    ids = loaded.tokenizer("the quick brown fox 丹炉", return_tensors="pt")
    assert loaded.model(**ids).logits.isfinite().all()
    assert loaded.tokenizer.decode(ids["input_ids"][0]) == "the quick brown fox 丹炉"


def test_the_same_seed_makes_the_same_model(tmp_path):
    state = torch.get_rng_state()
    first, second, other = (make_tiny_model(tmp_path / str(n), seed=seed) for n, seed in enumerate((0, 0, 1)))
    assert torch.equal(state, torch.get_rng_state())
    first, second, other = ((path / "model.safetensors").read_bytes() for path in (first, second, other))
    assert first == second
    assert first != other


def test_the_dtype_is_chosen_by_the_options(tiny_model, tmp_path):
    def dtype_of(device, **options):
        loaded = load(ModelOptions(name=str(tiny_model), **options), device, cache=tmp_path)
        assert loaded.model.dtype == loaded.dtype
        return loaded.dtype

    assert dtype_of(CPU) is torch.float32
    assert dtype_of(replace(CPU, has_bfloat16=True)) is torch.bfloat16
    assert dtype_of(CPU, dtype="bfloat16") is torch.bfloat16
    assert dtype_of(CPU, dtype="float16") is torch.float16


def test_attention_is_the_callers_choice(tiny_model):
    assert read(tiny_model).config._attn_implementation == "sdpa"
    assert read(tiny_model, attention="eager").config._attn_implementation == "eager"
    with pytest.raises(ModelError, match="the model cannot be read"):
        read(tiny_model, attention="nonesuch")


def test_a_sharded_model(broken):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(broken)
    (broken / "model.safetensors").unlink()
    model.save_pretrained(broken, max_shard_size="40KB")
    shards = sorted(broken.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert torch.equal(read(broken).lm_head.weight, model.lm_head.weight)
    shards[-1].unlink()
    with pytest.raises(ModelError, match=f"weights are missing: {shards[-1].name}"):
        read(broken)


def test_a_gguf_file_answers_as_its_original(tiny_model, tmp_path):
    gguf = make_tiny_gguf(tiny_model, tmp_path / "tiny.gguf")
    options = ModelOptions(name=str(gguf), dtype="float32")
    ids = torch.arange(40)[None]  # (rows, time)
    converted = load(options, CPU, cache=tmp_path / "cache").model(ids).logits
    original = read(tiny_model)
    assert_same_model(converted, original(ids).logits, original.config)


def test_options_refuse_what_they_do_not_know():
    with pytest.raises(ConfigError, match="did you mean 'adapter'"):
        validate(ModelOptions, {"adaptor": "x"}, where="test")
    assert all(field.description for field in ModelOptions.model_fields.values())


def test_an_unknown_name(tmp_path):
    with pytest.raises(UnknownModel, match="did you mean"):
        load(ModelOptions(name="smollm2-135"), CPU, cache=tmp_path)


# --- broken models


@pytest.mark.parametrize("keep", [0, 4, 500, -1])
def test_weights_cut_short(broken, keep):
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    for device in (CPU, replace(CPU, memory_bytes=0)):
        with pytest.raises(ModelError, match=r"damaged"):
            read(broken, device=device)


def test_weights_that_are_noise(broken):
    path = broken / "model.safetensors"
    path.write_bytes(b"\xff" * 5000)
    with pytest.raises(ModelError, match="damaged"):
        read(broken)


def test_missing_weights_are_not_made_up(broken):
    edit_weights(broken / "model.safetensors", model__norm__weight=None)
    with pytest.raises(ModelError, match=r"lack weights of LlamaForCausalLM: model\.norm\.weight"):
        read(broken)


def test_weights_of_another_shape(broken):
    edit_weights(broken / "model.safetensors", model__norm__weight=torch.ones(3))
    with pytest.raises(ModelError, match="belong to different models"):
        read(broken)


def test_weights_without_a_place_are_told(broken):
    said = []
    edit_weights(broken / "model.safetensors", odd=torch.ones(3))
    read(broken, say=said.append)
    assert said == ["weights that LlamaForCausalLM has no place for: odd"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "allowed: a JSON object"),
        ("\udcff", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("{}", "unknown model_type 'None'"),
        ('{"model_type": "llamb"}', "unknown model_type 'llamb'"),
        ('{"model_type": ["llama"]}', "unknown model_type"),
        ('{"model_type": "own", "auto_map": {"AutoConfig": "x.Y"}}', "trust_remote_code"),
        ('{"model_type": "t5"}', "t5 is not a causal language model"),
        ('{"model_type": "bert", "architectures": ["BertForMaskedLM"]}', "BertForMaskedLM is not a causal"),
        ('{"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}', "is not a causal"),
        ('{"model_type": "bart", "is_encoder_decoder": true}', "bart is not a causal"),
        ('{"model_type": "llama", "hidden_size": "big"}', "the model cannot be read"),
    ],
)
def test_configs_that_cannot_be_used(broken, text, words):
    (broken / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match=words):
        read(broken)


def test_a_models_own_code_is_not_run(broken):
    edit(broken / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"})
    edit(broken / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    (broken / "evil.py").write_text("raise SystemExit('ran')")
    read(broken)
    load_tokenizer(broken)
    edit(broken / "config.json", model_type="evil")
    with pytest.raises(ModelError, match="does not run"):
        read(broken)


def test_a_quantized_model_whose_reader_is_not_here(broken):
    edit(broken / "config.json", quantization_config={"quant_method": "hqq", "quant_config": {}})
    with pytest.raises(ModelError, match="quantized in a way"):
        read(broken)


def test_too_large_for_the_device(tiny_model):
    with pytest.raises(MemoryShortage, match="free on cpu"):
        read(tiny_model, device=replace(CPU, memory_bytes=50_000))
    read(tiny_model, device=replace(CPU, memory_bytes=60_000), dtype=torch.bfloat16)
    read(tiny_model, device=replace(CPU, memory_bytes=0))  # unknown


def test_memory_that_runs_out_while_reading(tiny_model, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(MemoryShortage):
        read(tiny_model)


# --- tokenizers


def test_no_tokenizer(broken):
    for path in broken.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match=r"no tokenizer\n.*tokenizer\.json"):
        load_tokenizer(broken)


@pytest.mark.parametrize("text", ["", "{", "{}", '{"model": 3}'])
def test_a_damaged_tokenizer(broken, text):
    (broken / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match="the tokenizer cannot be read"):
        load_tokenizer(broken)


def test_eos_pads_where_there_is_no_pad(broken):
    edit(broken / "tokenizer_config.json", pad_token=None)
    tokenizer = load_tokenizer(broken)
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    assert len(tokenizer) == read(broken).get_input_embeddings().num_embeddings


def test_neither_pad_nor_eos(broken):
    edit(broken / "tokenizer_config.json", pad_token=None, eos_token=None)
    with pytest.raises(ModelError, match="neither a pad nor an eos"):
        load_tokenizer(broken)


def test_a_tokenizer_of_another_model(broken, tmp_path):
    edit(broken / "tokenizer_config.json", pad_token="<pad-of-another>")
    with pytest.raises(ModelError, match="pad_token of the tokenizer has no row in the model's 320"):
        load(ModelOptions(name=str(broken)), CPU, cache=tmp_path)
