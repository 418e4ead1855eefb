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
from danlu.hub import quiet_transformers
from danlu.model.adapter_files import put_adapter
from danlu.model.adapters import LoraOptions, attach
from danlu.model.load import load_model, load_tokenizer
from danlu.model.named import ModelOptions, load
from tiny import ARCHITECTURES, make_tiny_gguf, make_tiny_model

CPU = Device("cpu", 1, 10**9, has_bfloat16=False)


@pytest.fixture
def broken(tiny_model, tmp_path):
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny_model, tmp_path / "broken"))


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    """A LoRA adapter for the tiny model whose B is not zero."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    base = load_model(tiny_model, device=CPU, dtype=torch.float32)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    directory = tmp_path_factory.mktemp("adapter")
    with quiet_transformers():
        get_peft_model(base, config).save_pretrained(directory)
    return directory


@pytest.fixture
def broken_adapter(adapter, tmp_path):
    return Path(shutil.copytree(adapter, tmp_path / "adapter"))


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
    with pytest.raises(ConfigError, match="float16 on a CPU"):
        dtype_of(CPU, dtype="float16")


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
    edit(broken / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
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


# --- adapters


def loaded_with(adapter, model, tmp_path):
    options = ModelOptions(name=str(model), adapter=str(adapter), dtype="float32")
    return load(options, CPU, cache=tmp_path).model


def test_an_adapter_changes_the_answer(tiny_model, adapter, tmp_path, capfd):
    ids = torch.arange(20)[None]  # (rows, time)
    adapted = loaded_with(adapter, tiny_model, tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not adapted.training
    assert not torch.allclose(adapted(ids).logits, read(tiny_model)(ids).logits)
    weights = load_file(adapter / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B"
    assert torch.equal(adapted.get_parameter(f"{name}.default.weight"), weights[f"{name}.weight"])


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_with_a_file_missing_is_not_sought_on_the_network(tiny_model, broken_adapter, name, tmp_path):
    (broken_adapter / name).unlink()
    with pytest.raises(ModelError, match=f"no {name}"):
        loaded_with(broken_adapter, tiny_model, tmp_path)


def test_an_adapter_is_looked_at_before_the_model_is_fetched(tmp_path):
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        load(ModelOptions(adapter=""), CPU, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_an_adapter_in_place_of_a_model(adapter, tmp_path):
    with pytest.raises(ModelError, match="give its base as the model"):
        load(ModelOptions(name=str(adapter)), CPU, cache=tmp_path)


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_adapter_weights_cut_short(tiny_model, broken_adapter, keep, tmp_path):
    path = broken_adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match="cut short"):
        loaded_with(broken_adapter, tiny_model, tmp_path)


def test_an_adapter_of_another_architecture(adapter, tmp_path):
    gpt2 = make_tiny_model(tmp_path / "gpt2", architecture="gpt2")
    with pytest.raises(ModelError, match="does not fit the model"):
        loaded_with(adapter, gpt2, tmp_path)


@pytest.mark.parametrize(
    "more", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"target_modules": ["embed_tokens"]}]
)
def test_other_kinds_of_adapters(tmp_path, more):
    from peft import LoraConfig, get_peft_model

    qwen = make_tiny_model(tmp_path / "qwen", architecture="qwen3")
    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj"], "init_lora_weights": False, **more})
    ids = torch.arange(20)[None]  # (rows, time)
    with quiet_transformers():
        adapted = get_peft_model(read(qwen), config).eval()
        adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted(ids).logits
    assert_same_model(loaded_with(tmp_path / "adapter", qwen, tmp_path)(ids).logits, expected, adapted.config)


def test_an_adapter_of_another_shape(tiny_model, broken_adapter, tmp_path):
    name = "base_model__model__model__layers__0__self_attn__q_proj__lora_A__weight"
    edit_weights(broken_adapter / "adapter_model.safetensors", **{name: torch.ones(4, 31)})
    with pytest.raises(ModelError, match=r"does not fit the model(?s:.*)it was made for .*tiny"):
        loaded_with(broken_adapter, tiny_model, tmp_path)


@pytest.mark.parametrize("name", ["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight", "odd"])
def test_an_adapter_of_a_deeper_model(tiny_model, broken_adapter, name, tmp_path):
    weight = torch.ones(4, 32)
    edit_weights(broken_adapter / "adapter_model.safetensors", **{name.replace(".", "__"): weight})
    with pytest.raises(ModelError, match="do not match"):
        loaded_with(broken_adapter, tiny_model, tmp_path)


def test_an_adapter_that_lacks_weights(tiny_model, broken_adapter, tmp_path):
    name = "base_model__model__model__layers__0__self_attn__q_proj__lora_B__weight"
    edit_weights(broken_adapter / "adapter_model.safetensors", **{name: None})
    with pytest.raises(ModelError, match=r"do not match: .*q_proj\.lora_B"):
        loaded_with(broken_adapter, tiny_model, tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", '{"peft_type": "NONE"}', '{"peft_type": "LORA", "r": "x"}'])
def test_a_damaged_adapter_config(tiny_model, broken_adapter, text, tmp_path):
    (broken_adapter / "adapter_config.json").write_text(text)
    with pytest.raises(ModelError):
        loaded_with(broken_adapter, tiny_model, tmp_path)


def test_an_adapter_with_a_longer_vocabulary_brings_its_rows_and_its_tokenizer(tiny_model, tmp_path):
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.add_tokens(["<new>"])
    model = load_model(tiny_model, device=CPU, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    adapted = attach(model, LoraOptions(), seed=0)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "adapter")
    options = ModelOptions(name=str(tiny_model), adapter=str(tmp_path / "adapter"))
    loaded = load(options, CPU, cache=tmp_path / "cache")
    assert loaded.tokenizer.convert_tokens_to_ids("<new>") == len(tokenizer) - 1
    rows, wanted = (m.get_input_embeddings().weight.float() for m in (loaded.model, adapted))
    assert torch.equal(rows, wanted.to(loaded.dtype).float())


def extended_adapter(base, out, save_embedding_layers, **more):
    """(an adapter of the base with three rows more, trained as wholes; its scores; ids that use the new rows)."""
    from peft import LoraConfig, get_peft_model

    model = load_model(base, device=CPU, dtype=torch.float32)
    rows = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(rows + 3, mean_resizing=False)
    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj"], "init_lora_weights": False, **more})
    with quiet_transformers():
        adapted = get_peft_model(model, config).eval()
        for number, parameter in enumerate(adapted.parameters()):
            parameter.data += 0.01 * number * parameter.requires_grad
        adapted.save_pretrained(out, save_embedding_layers=save_embedding_layers)
    ids = torch.tensor([[1, rows, 5, rows + 2]])
    return ids, adapted(ids).logits


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])  # of one matrix for both ends, and of two
@pytest.mark.parametrize("saved", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_an_adapter_that_trained_the_extended_embedding_as_a_whole(tmp_path, architecture, saved):
    base = make_tiny_model(tmp_path / "base", architecture=architecture)
    ids, wanted = extended_adapter(base, tmp_path / "adapter", True, modules_to_save=saved)
    loaded = put_adapter(load_model(base, device=CPU, dtype=torch.float32), tmp_path / "adapter")
    assert_same_model(loaded(ids).logits, wanted, loaded.config)


@pytest.mark.parametrize(
    ("architecture", "saved", "missing"),
    [
        ("llama", ["embed_tokens"], "the output layer"),
        ("qwen3", ["embed_tokens"], "the output layer"),
        ("llama", ["lm_head"], "the input embedding"),
        ("qwen3", ["lm_head"], "the input embedding"),
    ],
)
def test_new_rows_that_an_adapter_does_not_bring_are_not_made_up(tmp_path, architecture, saved, missing):
    base = make_tiny_model(tmp_path / "base", architecture=architecture)
    extended_adapter(base, tmp_path / "adapter", False, modules_to_save=saved)
    model = load_model(base, device=CPU, dtype=torch.float32)
    rows = model.get_input_embeddings().num_embeddings
    with pytest.raises(
        ModelError, match=f"extended to {rows + 3} .* has {rows}, .*{missing}(?s:.*)save_embedding_layers"
    ):
        put_adapter(model, tmp_path / "adapter")
    assert model.get_input_embeddings().num_embeddings == rows


def test_of_one_matrix_that_is_kept_one_an_adapter_brings_the_rows_once(tmp_path):
    base = make_tiny_model(tmp_path / "base")
    more = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    ids, wanted = extended_adapter(base, tmp_path / "adapter", False, **more)
    loaded = put_adapter(load_model(base, device=CPU, dtype=torch.float32), tmp_path / "adapter")
    assert_same_model(loaded(ids).logits, wanted, loaded.config)
