"""A quantized model from one format into another: the same weights, or a reason."""

import json

import pytest
import torch
from quantizing import change, make_quantized, rounded, write
from safetensors.torch import load_file

from danlu.device import Device
from danlu.errors import ConfigError, ModelError
from danlu.model.compute.grouped_linear import grouped_layers
from danlu.model.formats.table import FORMATS
from danlu.model.grouped import Scheme
from danlu.model.load import load_model
from danlu.quantize.export_quantized import export_quantized
from tiny import make_tiny_model

CPU = Device("cpu", 1, 2**34, False)
EVEN, UNEVEN = Scheme(4, 32, symmetric=True), Scheme(4, 32)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    changes = {"initializer_range": 0.3, "num_key_value_heads": 4}
    return make_tiny_model(tmp_path_factory.mktemp("models") / "llama", changes=changes)


def weights(directory):
    model = load_model(directory, device=CPU, dtype=torch.float32)
    found = {name: layer.whole(torch.float32) for name, layer in grouped_layers(model).items()}
    return found, model.get_input_embeddings().weight


def test_experts_are_carried_over_and_what_sends_tokens_to_them_is_left_out(tmp_path):
    """Other programs make a router in few bits where the configuration does not leave it out."""
    source = make_tiny_model(tmp_path / "model", architecture="qwen3_moe", changes={"num_experts": 2})
    tensors = load_file(source / "model.safetensors")
    experts = [name.removesuffix(".weight") for name in tensors if ".experts." in name]
    for name in experts:
        tensors |= FORMATS["gptq"].tensors(name, rounded(tensors.pop(f"{name}.weight"), EVEN), EVEN)
    write(source, tmp_path / "before", tensors, FORMATS["gptq"].config(EVEN, []), 1)
    assert export_quantized(tmp_path / "before", tmp_path / "after", "awq", print).layers == len(experts)
    models = [load_model(tmp_path / one, device=CPU, dtype=torch.float32) for one in ("before", "after")]
    one, two = (model.model.layers[1].mlp.experts.down_proj.whole(torch.float32) for model in models)
    assert torch.equal(one, two)
    said = json.loads((tmp_path / "after" / "config.json").read_text("utf-8"))["quantization_config"]
    assert {"lm_head", "model.layers.0.mlp.gate"} <= set(said["modules_to_not_convert"])


@pytest.mark.parametrize(
    ("before", "scheme", "after", "held_as"),
    [
        ("awq", EVEN, "gptq", "gptq"),
        ("awq", UNEVEN, "compressed-tensors", "pack-quantized"),
        ("awq", UNEVEN, "gptq", "gptq"),
        ("gptq", EVEN, "awq", "awq"),
        ("gptq_v2", EVEN, "gptq", "gptq"),
        ("gptq", Scheme(8, None, symmetric=True), "compressed-tensors", "int-quantized"),
        ("int-quantized", Scheme(8, None, symmetric=True), "gptq", "gptq"),
        ("pack-quantized", Scheme(3, 32), "gptq", "gptq"),
    ],
)
@pytest.mark.parametrize("shards", [1, 3])
def test_codes_are_carried_over(model, tmp_path, before, scheme, after, held_as, shards):
    source = make_quantized(model, tmp_path / "before", FORMATS[before], scheme, shards=shards)
    made = export_quantized(source, tmp_path / "after", after, print)
    assert (made.before, made.after, made.layers) == (before, held_as, 14)
    assert made.size_bytes == sum(path.stat().st_size for path in (tmp_path / "after").glob("*.safetensors"))
    (one, embedding), (two, other) = weights(source), weights(tmp_path / "after")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(embedding, other)
    said = json.loads((tmp_path / "after" / "config.json").read_text("utf-8"))["quantization_config"]
    assert said["quant_method"] == FORMATS[held_as].method
    if held_as == "gptq":
        assert said["sym"] == scheme.symmetric  # found by the zeros, where AWQ does not say it
        assert (said["desc_act"], said["lm_head"]) == (False, False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after", "before"]


def test_what_a_format_cannot_hold_is_said(model, tmp_path):
    source = make_quantized(model, tmp_path / "before", FORMATS["pack-quantized"], Scheme(3, 32))
    with pytest.raises(ConfigError, match="awq does not hold 3 bits"):
        export_quantized(source, tmp_path / "after", "awq", print)
    with pytest.raises(ConfigError, match="is in pack-quantized already"):
        export_quantized(source, tmp_path / "after", "compressed-tensors", print)
    with pytest.raises(ConfigError, match="no format 'gguff'"):
        export_quantized(source, tmp_path / "after", "gguff", print)
    assert not (tmp_path / "after").exists()


def test_scales_that_would_change_are_refused(model, tmp_path):
    source = make_quantized(model, tmp_path / "before", FORMATS["pack-quantized"], UNEVEN)
    name = "model.layers.0.mlp.up_proj.weight_scale"
    change(source, **{name.replace(".", "__"): torch.full((64, 1), 0.1)})
    with pytest.raises(ConfigError, match=r"the scale 0\.1 is not a number of torch"):
        export_quantized(source, tmp_path / "after", "awq", print)
    assert not (tmp_path / "after").exists()


def test_a_model_that_is_not_quantized_is_refused(model, tmp_path):
    with pytest.raises(ModelError, match=r"(?s)not in AWQ, GPTQ or compressed-tensors.*danlu quantize"):
        export_quantized(model, tmp_path / "after", "awq", print)


def test_what_stands_there_stays(model, tmp_path):
    source = make_quantized(model, tmp_path / "before", FORMATS["awq"], EVEN)
    with pytest.raises(ConfigError, match="which is exported"):
        export_quantized(source, source, "gptq", print)
    (tmp_path / "after").mkdir()
    (tmp_path / "after" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is no model"):
        export_quantized(source, tmp_path / "after", "gptq", print)
    assert (tmp_path / "after" / "mine.txt").read_text() == "mine"
