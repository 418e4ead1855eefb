"""Reading a model with its adapter: the same answers as PEFT, or an error that says what is wrong with the files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from adapting import CPU, edit_config, edit_weights, plain_model
from rounding import assert_same_model
from safetensors.torch import load_file
from zoo import tiny_model as tiny_model_of

from danlu import Engine
from danlu.errors import ModelError
from danlu.hub import quiet_transformers
from danlu.model.adapter_files import put_adapter
from danlu.model.adapters import adapted_layers, attach
from danlu.model.load import load_model, load_tokenizer
from danlu.model.lora_options import LoraOptions
from danlu.model.named import ModelOptions, load
from tiny import make_tiny_model


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    """A LoRA adapter for the tiny model whose B is not zero."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = plain_model(tiny_model)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    directory = tmp_path_factory.mktemp("adapter")
    with quiet_transformers():
        get_peft_model(model, config).save_pretrained(directory)
    return directory


@pytest.fixture
def broken_adapter(adapter, tmp_path):
    return Path(shutil.copytree(adapter, tmp_path / "adapter"))


def loaded_with(adapter, model, tmp_path):
    options = ModelOptions(name=str(model), adapter=str(adapter), dtype="float32")
    return load(options, CPU, cache=tmp_path).model


def test_an_adapter_changes_the_answer(tiny_model, adapter, tmp_path, capfd):
    ids = torch.arange(20)[None]  # (rows, time)
    adapted = loaded_with(adapter, tiny_model, tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not adapted.training
    assert not torch.allclose(adapted(ids).logits, plain_model(tiny_model)(ids).logits)
    weights = load_file(adapter / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B"
    assert torch.equal(adapted.get_parameter(f"{name}.default.weight"), weights[f"{name}.weight"])


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_with_a_file_missing_is_not_sought_on_the_network(tiny_model, broken_adapter, name, tmp_path):
    (broken_adapter / name).unlink()
    with pytest.raises(ModelError, match=f"no {name}"):
        loaded_with(broken_adapter, tiny_model, tmp_path)


def test_an_adapter_in_the_older_format_hears_how_to_be_written_anew(tiny_model, broken_adapter, tmp_path):
    (broken_adapter / "adapter_model.safetensors").rename(broken_adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"only adapter_model\.bin(?s:.*)save_pretrained"):
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
        adapted = get_peft_model(plain_model(qwen), config).eval()
        adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted(ids).logits
    assert_same_model(loaded_with(tmp_path / "adapter", qwen, tmp_path)(ids).logits, expected, adapted.config)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"])
def test_values_that_are_no_numbers_are_said_to_be_the_adapters(tiny_model, tmp_path, part, number):
    """DoRA is read through PEFT, which looks at no value: the scores were no numbers, and the model was blamed."""
    from peft import LoraConfig, get_peft_model

    with quiet_transformers():
        config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, use_dora=True)
        get_peft_model(plain_model(tiny_model), config).save_pretrained(tmp_path / "adapter")
    name = f"base_model.model.model.layers.1.self_attn.q_proj.{part}"
    weight = load_file(tmp_path / "adapter" / "adapter_model.safetensors")[name]
    weight.view(-1)[3] = number
    edit_weights(tmp_path / "adapter", {name: weight})
    with pytest.raises(ModelError, match=r"adapter: model\.layers\.1\.self_attn\.q_proj.* not numbers"):
        loaded_with(tmp_path / "adapter", tiny_model, tmp_path)


def test_an_adapter_that_waits_for_some_tokens_is_refused(tiny_model, broken_adapter, tmp_path):
    """PEFT finds them in what its own generate is given: an engine would answer as the base does."""
    edit_config(broken_adapter, alora_invocation_tokens=[7, 200])
    with pytest.raises(ModelError, match="at work only after some tokens"):
        loaded_with(broken_adapter, tiny_model, tmp_path)
    with pytest.raises(ModelError, match="at work only after some tokens"):
        Engine(str(tmp_path / "a base that nobody reads"), adapter=str(broken_adapter))


@pytest.mark.parametrize("start", ["pissa_niter_4", "corda", "lora_ga"])
def test_an_adapter_on_a_base_that_cannot_be_made_again_is_refused(tiny_model, broken_adapter, tmp_path, start):
    """PEFT changes the base by other random numbers than in training, or not at all."""
    edit_config(broken_adapter, init_lora_weights=start)
    with pytest.raises(ModelError, match=f"{start}(?s:.*)path_initial_model_for_weight_conversion"):
        loaded_with(broken_adapter, tiny_model, tmp_path)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_on_a_base_that_is_made_again_answers_as_it_was_trained(tiny_model, tmp_path, start):
    from peft import LoraConfig, get_peft_model

    ids = torch.arange(20)[None]  # (rows, time)
    with quiet_transformers():
        adapted = get_peft_model(plain_model(tiny_model), LoraConfig(r=4, init_lora_weights=start)).eval()
        with torch.no_grad():
            for weight in (weight for weight in adapted.parameters() if weight.requires_grad):
                weight.add_(0.05)
        adapted.save_pretrained(tmp_path / "adapter")
    loaded = loaded_with(tmp_path / "adapter", tiny_model, tmp_path)
    assert_same_model(loaded(ids).logits, adapted(ids).logits, adapted.config)


def test_a_tokenizer_without_rows_is_said_to_be_the_adapters(tiny_model, broken_adapter, tmp_path):
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(broken_adapter)
    with pytest.raises(ModelError, match=r"tmp.*adapter: pad_token of the tokenizer has no row"):
        loaded_with(broken_adapter, tiny_model, tmp_path)


def test_an_adapter_of_another_shape(tiny_model, broken_adapter, tmp_path):
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    edit_weights(broken_adapter, {name: torch.ones(4, 31)})
    with pytest.raises(ModelError, match=r"does not fit the model(?s:.*)it was made for .*tiny"):
        loaded_with(broken_adapter, tiny_model, tmp_path)


@pytest.mark.parametrize("name", ["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight", "odd"])
def test_an_adapter_of_a_deeper_model(tiny_model, broken_adapter, name, tmp_path):
    weight = torch.ones(4, 32)
    edit_weights(broken_adapter, {name: weight})
    with pytest.raises(ModelError, match="do not match"):
        loaded_with(broken_adapter, tiny_model, tmp_path)


def test_an_adapter_that_scores_is_not_said_to_be_of_another_base(tiny_model, broken_adapter, tmp_path):
    edit_config(broken_adapter, task_type="SEQ_CLS", modules_to_save=["score"])
    edit_weights(broken_adapter, {"base_model.model.score.weight": torch.ones(1, 32)})
    with pytest.raises(ModelError, match=r"it scores texts(?s:.*)reward\.model"):
        loaded_with(broken_adapter, tiny_model, tmp_path)


def test_an_adapter_that_lacks_weights(tiny_model, broken_adapter, tmp_path):
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    edit_weights(broken_adapter, {name: None})
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
    with torch.no_grad():
        for layer in adapted_layers(adapted).values():
            layer.lora_B["default"].weight += 0.1
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


@pytest.mark.parametrize("kind", ["gpt_neox", "bloom", "falcon"])
@pytest.mark.parametrize("is_whole", [False, True])
def test_ends_of_other_names_bring_their_rows_as_well(tmp_path, kind, is_whole):
    """embed_in and embed_out, or word_embeddings; saved beside A and B, or trained as a whole."""
    base = tmp_path / "base"
    tiny_model_of(kind).save_pretrained(base)
    own = load_model(base, device=CPU, dtype=torch.float32)
    layers = {own.get_input_embeddings(): 0, own.get_output_embeddings(): 1}
    ends = [name.rsplit(".", 1)[-1] for name, part in own.named_modules() if part in layers]
    more = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", "modules_to_save": ends if is_whole else None}
    ids, wanted = extended_adapter(base, tmp_path / "adapter", True, **more)
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
