"""Formats of quantized weights, byte by byte, and what they and this reader refuse."""

import pytest
import torch

from danlu.errors import ConfigError, ModelError
from danlu.model.formats.packing import packed, packed_apart, unpacked, unpacked_apart
from danlu.model.formats.table import FORMATS, chosen, stored
from danlu.model.grouped import Grouped, Scheme


def word(text: str) -> int:
    """A word of 32 bits as torch has it, signed."""
    number = int(text, 16)
    return number - (1 << 32) if number >> 31 else number


def random_layer(scheme: Scheme, outputs: int = 32, inputs: int = 64, seed: int = 0) -> Grouped:
    generator = torch.Generator().manual_seed(seed)
    groups = scheme.groups(inputs)
    codes = torch.randint(0, scheme.largest + 1, (outputs, inputs), generator=generator).to(torch.uint8)
    zeros = torch.randint(1, scheme.largest + 1, (outputs, groups), generator=generator).to(torch.uint8)
    if scheme.symmetric:
        zeros = torch.full_like(zeros, scheme.middle)
    return Grouped(codes, torch.rand(outputs, groups, generator=generator).half(), zeros)


def own_parts(tensors: dict) -> dict:
    return {name.rpartition(".")[2]: tensor for name, tensor in tensors.items()}


CASES = [
    ("awq", Scheme(4, 32)),
    ("awq", Scheme(4, None, symmetric=True)),
    *(("gptq", Scheme(bits, 32, symmetric=bits != 8)) for bits in (2, 3, 4, 8)),
    ("gptq_v2", Scheme(4, 16)),
    *(("pack-quantized", Scheme(bits, 16, symmetric=bits == 8)) for bits in (2, 3, 4, 8)),
    ("pack-quantized", Scheme(4, None, symmetric=True)),
    ("int-quantized", Scheme(8, None, symmetric=True)),
]


@pytest.mark.parametrize(("name", "scheme"), CASES, ids=str)
def test_what_is_written_is_read(name, scheme):
    layer, form = random_layer(scheme), FORMATS[name]
    form.check(scheme, {"layer": (32, 64)})
    read = form.read(own_parts(form.tensors("a.layer", layer, scheme)), scheme)
    for part, found in zip(layer[:3], read[:3], strict=True):
        assert torch.equal(part, found)
    assert read.group_of is None


@pytest.mark.parametrize(("name", "scheme"), CASES, ids=str)
def test_the_configuration_says_what_it_is(name, scheme):
    found = stored(FORMATS[name].config(scheme, ["lm_head"]))
    [rule] = found.rules
    said = Scheme(4, scheme.group_size) if name == "awq" else scheme  # whose zeros always stand in the files
    assert (rule.format, rule.scheme) == (FORMATS[name], said)
    assert "lm_head" in found.left_out


@pytest.mark.parametrize("inputs", [48, 72])
def test_the_last_group_of_gptq_may_be_smaller(inputs):
    """Of 48 inputs in groups of 32 two would be even as well, of 24; of 72 three."""
    scheme, wide = Scheme(4, 32, symmetric=True), -(-inputs // 32) * 32
    layer = random_layer(scheme, inputs=wide)
    parts = own_parts(FORMATS["gptq"].tensors("x", layer, scheme))
    parts |= {"qweight": parts["qweight"][: inputs // 8], "g_idx": parts["g_idx"][:inputs]}
    assert torch.equal(FORMATS["gptq"].read(parts, scheme).weight(), layer.weight()[:, :inputs])
    del parts["g_idx"]
    assert torch.equal(FORMATS["gptq"].read(parts, scheme).weight(), layer.weight()[:, :inputs])


@pytest.mark.parametrize(("outputs", "words"), [(1, 0), (1, 1), (60, 4), (60, 7), (60, 8)])
def test_zeros_of_outputs_that_do_not_fill_words(outputs, words):
    """What sends tokens to a shared expert has one output. Programs round the number of words up, or down."""
    scheme = Scheme(4, 32, symmetric=True)
    layer = random_layer(scheme, outputs=64)
    parts = own_parts(FORMATS["gptq"].tensors("x", layer, scheme))
    parts |= {name: parts[name][:, :outputs] for name in ("qweight", "scales")} | {"qzeros": parts["qzeros"][:, :words]}
    assert torch.equal(FORMATS["gptq"].read(parts, scheme).weight(), layer.weight()[:outputs])
    if words < 8 and outputs == 60:
        with pytest.raises(ModelError, match=rf"qzeros is \(2, {words}\)\n  allowed: \(2, 8\)"):
            FORMATS["gptq"].read(parts, Scheme(4, 32))


@pytest.mark.parametrize("group_size", [None, 32])
def test_inputs_that_were_never_put_in_order(group_size):
    scheme = Scheme(4, group_size, symmetric=True)
    layer, form = random_layer(scheme), FORMATS["pack-quantized"]
    parts = own_parts(form.tensors("x", layer, scheme)) | {"weight_g_idx": torch.full((64,), -1, dtype=torch.int32)}
    read = form.read(parts, scheme)
    assert read.group_of is None
    assert torch.equal(read.weight(), layer.weight())


def test_groups_that_there_are_none_of():
    scheme, form = Scheme(4, 32, symmetric=True), FORMATS["pack-quantized"]
    parts = own_parts(form.tensors("x", random_layer(scheme), scheme))
    parts["weight_g_idx"] = torch.arange(64, dtype=torch.int32) // 32 + 1
    with pytest.raises(ModelError, match="names the groups 1 to 2\n  allowed: each of 0 to 1"):
        form.read(parts, scheme)


# -- bytes, worked out by hand ---------------------------------------------------------------------------------


def test_awq_orders_the_outputs_in_a_word():
    # One input, outputs 0 to 7 with codes 0 to 7: nibbles, lowest first, are outputs 0 2 4 6 1 3 5 7.
    codes = torch.arange(8, dtype=torch.uint8)[:, None]
    layer = Grouped(codes, torch.ones(8, 1), codes + 8)
    tensors = FORMATS["awq"].tensors("x", layer, Scheme(4, 1))
    assert tensors["x.qweight"].tolist() == [[word("75316420")]]
    assert tensors["x.qzeros"].tolist() == [[word("fdb9eca8")]]
    assert tensors["x.scales"].dtype == torch.float16
    assert tensors["x.scales"].shape == (1, 8)


def test_gptq_packs_along_inputs_and_keeps_a_zero_less_one():
    codes = torch.arange(8, dtype=torch.uint8).repeat(8, 1)
    layer = Grouped(codes, torch.ones(8, 1), torch.full((8, 1), 8, dtype=torch.uint8))
    scheme = Scheme(4, None, symmetric=True)
    tensors = FORMATS["gptq"].tensors("x", layer, scheme)
    assert tensors["x.qweight"].tolist() == [[word("76543210")] * 8]
    assert tensors["x.qzeros"].tolist() == [[word("77777777")]]
    assert tensors["x.g_idx"].tolist() == [0] * 8
    assert FORMATS["gptq_v2"].tensors("x", layer, scheme)["x.qzeros"].tolist() == [[-2004318072]]  # 0x88888888


def test_three_bits_cross_words():
    # Codes 1 everywhere: the bits 100 100 100 ... lowest first. Word 0 ends with bits 30 and 31 of code 10 (10),
    # so that word 1 begins with its last bit.
    words = packed(torch.ones(1, 32, dtype=torch.uint8), 3)
    bits = "".join(f"{one & 0xFFFFFFFF:032b}"[::-1] for one in words[0].tolist())
    assert bits == "100" * 32
    assert unpacked(words, 3).tolist() == [[1] * 32]
    # compressed-tensors has ten in a word and leaves two bits empty.
    apart = packed_apart(torch.full((1, 11), 7, dtype=torch.uint8), 3)
    assert apart.tolist() == [[word("3fffffff"), 7]]
    assert unpacked_apart(apart, 3, 11).tolist() == [[7] * 11]


def test_compressed_tensors_packs_inputs_of_weights_and_outputs_of_zeros():
    codes = torch.arange(8, dtype=torch.uint8).repeat(2, 1)
    layer = Grouped(codes, torch.ones(2, 1), torch.tensor([[3], [12]], dtype=torch.uint8))
    tensors = FORMATS["pack-quantized"].tensors("x", layer, Scheme(4, None))
    assert tensors["x.weight_packed"].tolist() == [[word("76543210")]] * 2
    assert tensors["x.weight_zero_point"].tolist() == [[0xC3]]
    assert tensors["x.weight_shape"].tolist() == [2, 8]


def test_bytes_are_counted_from_the_middle():
    layer = Grouped(torch.tensor([[0, 128, 255]], dtype=torch.uint8), torch.ones(1, 1), torch.tensor([[128]]))
    tensors = FORMATS["int-quantized"].tensors("x", layer, Scheme(8, None, symmetric=True))
    assert tensors["x.weight"].tolist() == [[-128, 0, 127]]
    assert set(tensors) == {"x.weight", "x.weight_scale"}


# -- files of others -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("stored_zero", ["77777777", "88888888"])
def test_symmetric_zeros_say_themselves_which_version_they_are_in(name, stored_zero):
    scheme = Scheme(4, 32, symmetric=True)
    layer = random_layer(scheme)
    tensors = own_parts(FORMATS[name].tensors("x", layer, scheme))
    tensors["qzeros"].fill_(word(stored_zero))
    assert torch.equal(FORMATS[name].read(tensors, scheme).weight(), layer.weight())


def test_a_symmetric_zero_that_is_no_middle_is_refused():
    scheme = Scheme(4, 32, symmetric=True)
    tensors = own_parts(FORMATS["gptq"].tensors("x", random_layer(scheme), scheme))
    tensors["qzeros"][1, 0] = word("87777777")
    with pytest.raises(ModelError, match="7 everywhere"):
        FORMATS["gptq"].read(tensors, scheme)


def test_inputs_may_be_in_any_group():
    scheme = Scheme(4, 32)
    layer = random_layer(scheme)
    tensors = own_parts(FORMATS["gptq"].tensors("x", layer, scheme))
    tensors["g_idx"] = tensors["g_idx"].flip(0)
    read = FORMATS["gptq"].read(tensors, scheme)
    swapped = layer._replace(scales=layer.scales.flip(1), zeros=layer.zeros.flip(1))
    assert torch.equal(read.weight(), swapped.weight())
    with pytest.raises(ConfigError, match="not neighbouring"):
        FORMATS["awq"].tensors("x", read, scheme)


def test_a_file_without_a_list_of_groups_has_neighbours():
    scheme = Scheme(4, 32)
    tensors = own_parts(FORMATS["gptq"].tensors("x", random_layer(scheme), scheme))
    del tensors["g_idx"]
    assert FORMATS["gptq"].read(tensors, scheme).group_of is None


def test_one_scale_for_a_whole_layer_is_that_of_each_row():
    tensors = {"weight": torch.tensor([[1, -2], [3, 4]], dtype=torch.int8), "weight_scale": torch.tensor([0.5])}
    read = FORMATS["int-quantized"].read(tensors, Scheme(8, None, symmetric=True))
    assert read.weight().tolist() == [[0.5, -1.0], [1.5, 2.0]]


def test_layers_may_be_held_differently():
    groups = {
        "group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 32, "strategy": "group"}},
        "group_1": {"targets": ["re:.*down_proj"], "weights": {"num_bits": 8, "strategy": "channel"}},
    }
    found = stored({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups})
    assert found.rule("model.layers.0.mlp.up_proj").scheme == Scheme(4, 32, symmetric=True)
    assert found.rule("model.layers.0.mlp.down_proj").scheme == Scheme(8, None, symmetric=True)


# -- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "scheme", "sizes", "said"),
    [
        ("awq", Scheme(3, 32), (32, 64), "awq does not hold 3 bits"),
        ("awq", Scheme(4, 32), (36, 64), "36 outputs"),
        ("gptq", Scheme(3, None), (32, 80), "80 inputs"),
        ("gptq", Scheme(4, 128), (64, 576), "take 64"),
        ("int-quantized", Scheme(8, 32, symmetric=True), (32, 64), "pack-quantized"),
        ("int-quantized", Scheme(4, None, symmetric=True), (32, 64), "does not hold 4 bits"),
    ],
)
def test_what_a_format_cannot_hold(name, scheme, sizes, said):
    with pytest.raises(ConfigError, match=said):
        FORMATS[name].check(scheme, {"a.layer": sizes})


def test_numbers_that_a_format_would_change_are_refused():
    scheme = Scheme(4, 32)
    layer = random_layer(scheme)
    with pytest.raises(ConfigError, match="is not a number of torch"):
        FORMATS["awq"].tensors("x", layer._replace(scales=layer.scales.float() + 1e-7), scheme)
    with pytest.raises(ConfigError, match="none below 1"):
        FORMATS["gptq"].tensors("x", layer._replace(zeros=layer.zeros * 0), scheme)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "quant_method is None"),
        ({"quant_method": "bitsandbytes"}, "'bitsandbytes'"),
        ({"quant_method": "awq", "bits": 4, "version": "GEMV"}, "gemv"),
        ({"quant_method": "awq", "bits": 4, "zero_point": False}, "without zeros"),
        ({"quant_method": "awq", "bits": 5}, "5 bits"),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 0}, "group_size is 0"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "marlin"),
        ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "marlin"),
        ({"quant_method": "gptq", "bits": 4, "pack_dtype": "int16"}, "int16"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*down_proj": {"bits": 8}}}, "down_proj"),
        ({"quant_method": "compressed-tensors"}, "config_groups"),
        ({"quant_method": "compressed-tensors", "config_groups": {"W4A16": ["Linear"]}}, "preset"),
        ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-bitmask"}}, "sparse"),
        ({"quant_method": "compressed-tensors", "transform_config": {"R1": {}}}, "rotated"),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "float-quantized",
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}}},
            },
            "float-quantized",
        ),
    ],
)
def test_configurations_that_are_not_read(config, said):
    with pytest.raises(ModelError, match=said):
        stored(config)


@pytest.mark.parametrize("name", FORMATS)
def test_a_layer_that_lacks_a_tensor_is_refused(name):
    scheme = Scheme(8, None, symmetric=True) if name == "int-quantized" else Scheme(4, 32)
    tensors = own_parts(FORMATS[name].tensors("x", random_layer(scheme), scheme))
    for lost in [one for one in tensors if one != "g_idx"]:
        with pytest.raises(ModelError, match=f"{lost} is missing"):
            FORMATS[name].read({one: tensor for one, tensor in tensors.items() if one != lost}, scheme)


@pytest.mark.parametrize("name", FORMATS)
def test_sizes_that_do_not_fit_are_refused(name):
    scheme = Scheme(8, None, symmetric=True) if name == "int-quantized" else Scheme(4, 32)
    tensors = own_parts(FORMATS[name].tensors("x", random_layer(scheme), scheme))
    scales = next(one for one in tensors if "scale" in one)
    with pytest.raises(ModelError, match=scales):
        FORMATS[name].read({**tensors, scales: tensors[scales][1:]}, scheme)
    broken = torch.full_like(tensors[scales], float("nan"))
    with pytest.raises(ModelError, match="inf or nan"):
        FORMATS[name].read({**tensors, scales: broken}, scheme)


def test_compressed_tensors_is_two_formats():
    assert chosen("compressed-tensors", Scheme(8, None, symmetric=True)).name == "int-quantized"
    assert chosen("compressed-tensors", Scheme(8, 32, symmetric=True)).name == "pack-quantized"
    with pytest.raises(ConfigError, match="did you mean 'gptq'"):
        chosen("gtpq", Scheme(4))
