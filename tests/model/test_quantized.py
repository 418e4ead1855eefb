"""Models whose files are quantized: what is read is what the codes say, and what cannot be read is said."""

import json
import re
import shutil

import pytest
import torch
from adapting import make_adapter
from ggufs import make_model
from quantizing import change, make_quantized, make_whole, rounded, write
from rounding import assert_same_model, of_sums
from safetensors.torch import load_file
from wholes import make_tiny_whole

from danlu.device import Device
from danlu.errors import ConfigError, ModelError
from danlu.generate.engine import Engine
from danlu.generate.params import GenerationParams
from danlu.model.adapter_files import put_adapter
from danlu.model.compute.grouped_linear import GroupedLinear, grouped_layers
from danlu.model.formats.table import FORMATS
from danlu.model.grouped import Scheme
from danlu.model.load import load_model
from danlu.model.quantized import refuse_training, whole_layers
from danlu.quantize.merge import MergeOptions, merge_checked
from tiny import make_tiny_model, make_tokenizer

CASES = {
    "awq": ("awq", Scheme(4, 32)),
    "gptq": ("gptq", Scheme(4, 32, symmetric=True)),
    "gptq, zeros": ("gptq", Scheme(4, 32)),
    "gptq, 8 bits": ("gptq", Scheme(8, 32)),
    "gptq, 3 bits": ("gptq", Scheme(3, 32, symmetric=True)),
    "gptq, 2 bits": ("gptq_v2", Scheme(2, 32)),
    "packed, groups of 16": ("pack-quantized", Scheme(4, 16)),
    "packed, 3 bits": ("pack-quantized", Scheme(3, 32)),
    "bytes": ("int-quantized", Scheme(8, None, symmetric=True)),
}
CPU = Device("cpu", 1, 2**34, False)
LLAMA = {"initializer_range": 0.3, "num_key_value_heads": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("models") / "llama", changes=LLAMA)


def read(directory, dtype=torch.float32, say=lambda text: None):
    return load_model(directory, device=CPU, dtype=dtype, say=say)


def logits(model):
    with torch.no_grad():
        return model(torch.arange(3, 40)[None]).logits


@pytest.mark.parametrize("case", CASES)
def test_a_model_answers_as_what_its_codes_say(model, tmp_path, case):
    name, scheme = CASES[case]
    quantized = read(make_quantized(model, tmp_path / "few", FORMATS[name], scheme))
    whole = read(make_whole(model, tmp_path / "whole", scheme))
    assert len(grouped_layers(quantized)) == 14
    for layer, part in grouped_layers(quantized).items():
        assert torch.equal(part.whole(torch.float32), whole.get_submodule(layer).weight)
        assert torch.equal(part.weight, part.grouped.weight())
    assert_same_model(logits(quantized), logits(whole), whole.config)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "gemma3_text", "mistral", "gpt2"])
def test_other_kinds_are_read(tmp_path, architecture):
    scheme = Scheme(4, 32)
    model = make_tiny_model(tmp_path / "model", architecture=architecture, changes={"initializer_range": 0.3})
    quantized = read(make_quantized(model, tmp_path / "few", FORMATS["awq"], scheme, shards=3))
    assert grouped_layers(quantized)
    whole = read(make_whole(model, tmp_path / "whole", scheme))
    assert_same_model(logits(quantized), logits(whole), whole.config)


def test_an_engine_answers_alike(model, tmp_path):
    scheme = Scheme(4, 32)
    quantized = make_quantized(model, tmp_path / "few", FORMATS["gptq"], scheme)
    whole = make_whole(model, tmp_path / "whole", scheme)
    prompts, params = ["the quick brown", "one two three four five"], GenerationParams(max_new_tokens=12)
    one, two = (Engine(str(each), dtype="float32") for each in (quantized, whole))
    assert [g.sequences[0].token_ids for g in one.generate(prompts, params)] == [
        g.sequences[0].token_ids for g in two.generate(prompts, params)
    ]
    with pytest.raises(ConfigError, match="in few bits already"):
        Engine(str(quantized), dtype="int8")


def test_inputs_in_groups_of_their_own_are_read(model, tmp_path):
    scheme = Scheme(4, 16)
    directory = make_quantized(model, tmp_path / "few", FORMATS["gptq"], scheme)
    tensors, generator = load_file(directory / "model.safetensors"), torch.Generator().manual_seed(0)
    moved = {}
    for name, tensor in tensors.items():
        if name.endswith("g_idx"):
            moved[name.replace(".", "__")] = tensor[torch.randperm(len(tensor), generator=generator)]
    change(directory, **moved)
    quantized = read(directory)
    groups = {name.replace("__", "."): tensor for name, tensor in moved.items()}
    for name, part in grouped_layers(quantized).items():
        plain = FORMATS["gptq"].read({k: tensors[f"{name}.{k}"] for k in ("qweight", "qzeros", "scales")}, scheme)
        assert torch.equal(part.grouped.weight(), plain._replace(group_of=groups[f"{name}.g_idx"].long()).weight())
        x = torch.randn(3, part.in_features, generator=generator)
        wanted = x @ part.grouped.weight().T
        allowed = of_sums(float(wanted.abs().max()), part.in_features)
        torch.testing.assert_close(part(x), wanted, rtol=0, atol=allowed)


def test_scales_keep_their_format_in_a_model_of_another(model, tmp_path):
    quantized = read(make_quantized(model, tmp_path / "few", FORMATS["awq"], Scheme(4, 32)), torch.bfloat16)
    before = quantized.model.layers[0].mlp.up_proj.whole(torch.float32)
    assert torch.equal(quantized.to(torch.float64).model.layers[0].mlp.up_proj.whole(torch.float32), before)


def test_it_can_be_made_whole(model, tmp_path):
    quantized = read(make_quantized(model, tmp_path / "few", FORMATS["awq"], Scheme(4, 32)))
    before = logits(quantized)
    whole = whole_layers(quantized)
    assert not grouped_layers(whole)
    assert_same_model(logits(whole), before, whole.config)
    whole.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text("utf-8"))


def test_older_files_say_it_elsewhere(model, tmp_path):
    scheme = Scheme(4, 32, symmetric=True)
    directory = make_quantized(model, tmp_path / "few", FORMATS["gptq"], scheme)
    config = json.loads((directory / "config.json").read_text("utf-8"))
    said = config.pop("quantization_config")
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    del said["quant_method"], said["checkpoint_format"]
    (directory / "quantize_config.json").write_text(json.dumps(said), "utf-8")
    assert len(grouped_layers(read(directory))) == 14


def test_a_bias_of_zeros_is_no_loss(model, tmp_path):
    """GPTQ's programs write one for each layer; one that says something is told where the model has no place for it."""
    scheme = Scheme(4, 32, symmetric=True)
    directory, heard = make_quantized(model, tmp_path / "few", FORMATS["gptq"], scheme), []
    change(directory, **{f"{LAYER}.bias".replace(".", "__"): torch.zeros(64)})
    read(directory, say=heard.append)
    assert not heard
    change(directory, **{f"{LAYER}.bias".replace(".", "__"): torch.ones(64)})
    read(directory, say=heard.append)
    assert heard == [f"weights that LlamaForCausalLM has no place for: {LAYER}.bias"]


def test_what_is_not_done_is_said(model, tmp_path):
    heard = []
    scheme = Scheme(8, None, symmetric=True)
    read(make_quantized(model, tmp_path / "few", FORMATS["int-quantized"], scheme), say=heard.append)
    assert heard == ["not done: inputs of layers in few bits: they are left as they are, which is nearer to the whole "
                     "model"]  # fmt: skip


def test_each_token_may_have_an_adapter(model, tmp_path):
    quantized = make_quantized(model, tmp_path / "few", FORMATS["awq"], Scheme(4, 32))
    whole = make_whole(model, tmp_path / "whole", Scheme(4, 32))
    adapter = make_adapter(whole, tmp_path / "adapter")
    prompts, params = ["the quick brown", "a model is"], GenerationParams(max_new_tokens=8)
    answers = []
    for directory in (quantized, whole):
        engine = Engine(str(directory), dtype="float32")
        engine.load_adapter("one", adapter)
        answers.append([g.sequences[0].token_ids for g in engine.generate(prompts, params, ["one", None])])
    assert answers[0] == answers[1]


def test_it_is_not_trained(model, tmp_path):
    quantized = read(make_quantized(model, tmp_path / "few", FORMATS["awq"], Scheme(4, 32)))
    with pytest.raises(ModelError, match=r"(?s)x: its weights are in few bits.*quantize what comes of it"):
        refuse_training(quantized, "x")


def test_an_adapter_is_folded_into_what_the_codes_say(model, tmp_path):
    quantized = make_quantized(model, tmp_path / "few", FORMATS["awq"], Scheme(4, 32))
    whole = make_whole(model, tmp_path / "whole", Scheme(4, 32))
    adapter, prompts = make_adapter(whole, tmp_path / "a"), [[{"role": "user", "content": "the quick brown"}]]
    options = MergeOptions(max_new_tokens=4, dtype="float32")
    parity = merge_checked(quantized, adapter, tmp_path / "merged", prompts, options, CPU, print)
    assert parity.prompts == 1
    merged, config = read(tmp_path / "merged"), json.loads((tmp_path / "merged" / "config.json").read_text("utf-8"))
    assert "quantization_config" not in config
    other = put_adapter(read(whole), adapter)
    assert_same_model(logits(merged), logits(other), merged.config)


def test_the_language_part_of_more_than_text_is_read(tmp_path):
    make_tiny_whole(tmp_path / "model", "mistral3", tie_word_embeddings=False)
    scheme, tensors = Scheme(4, 16), {}
    whole = load_file(tmp_path / "model" / "model.safetensors")
    for name, weight in whole.items():
        if "language_model" in name and name.endswith("_proj.weight"):
            found = rounded(weight, scheme)
            tensors |= FORMATS["pack-quantized"].tensors(name.removesuffix(".weight"), found, scheme)
            whole[name] = found.weight()
        else:
            tensors[name] = weight
    assert len(tensors) > len(whole)
    said = FORMATS["pack-quantized"].config(scheme, ["re:.*vision.*", "lm_head"])
    few = read(write(tmp_path / "model", tmp_path / "few", tensors, said, 1))
    assert grouped_layers(few)
    other = read(write(tmp_path / "model", tmp_path / "whole", whole, None, 1))
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert_same_model(few(ids).logits, other(ids).logits, other.config)


EXPERTS = Scheme(4, 32)


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """A mixture whose experts are in few bits, and the same with what the codes say as weights."""
    model, folder = make_model("qwen3moe", moe_intermediate_size=32), tmp_path_factory.mktemp("experts")
    model.save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    tensors, whole = {}, load_file(folder / "model" / "model.safetensors")
    for name, weight in whole.items():
        if ".experts." in name:
            found = rounded(weight, EXPERTS)
            tensors |= FORMATS["awq"].tensors(name.removesuffix(".weight"), found, EXPERTS)
            whole[name] = found.weight()
        else:
            tensors[name] = weight
    said = FORMATS["awq"].config(EXPERTS, ["lm_head"])
    few = write(folder / "model", folder / "few", tensors, said, 1)
    return few, write(folder / "model", folder / "whole", whole, None, 1)


def test_experts_stay_in_few_bits(experts):
    few, whole = map(read, experts)
    assert_same_model(logits(few), logits(whole), whole.config)
    for name, numbers in (("gate_up_proj", 0.5), ("down_proj", 0.5)):
        own, theirs = (getattr(model.model.layers[0].mlp.experts, name) for model in (few, whole))
        assert sum(layer.codes.nbytes for layer in own.layers) == theirs.numel() * numbers
        assert torch.equal(own.whole(torch.float32), theirs)
    with pytest.raises(ModelError, match="few bits, and are not trained"):
        refuse_training(few, "it")
    made = whole_layers(few)
    assert torch.equal(made.model.layers[0].mlp.experts.down_proj, whole.model.layers[0].mlp.experts.down_proj)
    assert_same_model(logits(made), logits(whole), whole.config)


def test_the_engine_multiplies_with_experts_codes(experts):
    few, whole = (Engine(str(directory), "float32") for directory in experts)
    prompts = [[5, 6, 7], [40, 41, 42, 43, 44, 45, 46]]
    params = GenerationParams(max_new_tokens=8, logprobs=1)
    for own, theirs in zip(few.generate(prompts, params), whole.generate(prompts, params), strict=True):
        assert own.sequences[0].token_ids == theirs.sequences[0].token_ids
        notes = zip(own.sequences[0].logprobs, theirs.sequences[0].logprobs, strict=True)
        assert all(abs(one.logprob - other.logprob) < 1e-4 for one, other in notes)
    few.close()
    whole.close()


def mixture(kind, folder, form, scheme, names):
    """A mixture with these layers in few bits, and the same with what the codes say as weights."""
    make_tiny_model(folder / "model", architecture=kind, changes={"initializer_range": 0.3})
    tensors, whole = {}, load_file(folder / "model" / "model.safetensors")
    for name, weight in whole.items():
        if re.search(names, name):
            found = rounded(weight, scheme)
            tensors |= FORMATS[form].tensors(name.removesuffix(".weight"), found, scheme)
            whole[name] = found.weight()
        else:
            tensors[name] = weight
    few = write(folder / "model", folder / "few", tensors, FORMATS[form].config(scheme, ["lm_head"]), 1)
    return few, write(folder / "model", folder / "whole", whole, None, 1)


@pytest.mark.parametrize(
    ("kind", "form", "names"),
    [
        ("qwen3_moe", "int-quantized", r"experts\.\d"),
        ("qwen3_moe", "pack-quantized", r"experts\.\d+\.(gate|up)_proj"),
        ("qwen3_moe", "pack-quantized", r"mlp\.gate\."),
        ("mixtral", "gptq_v2", r"experts\.\d"),
        ("mixtral", "pack-quantized", r"block_sparse_moe|_proj\.weight"),
    ],
)
def test_any_part_of_a_mixture_may_be_in_few_bits(tmp_path, kind, form, names):
    """All experts, two of their three layers, what sends tokens to them: and nothing of it is said to be left over."""
    scheme = Scheme(8, None, symmetric=True) if form == "int-quantized" else Scheme(4, 16, symmetric=True)
    heard: list[str] = []
    few, whole = mixture(kind, tmp_path, form, scheme, names)
    made, plain = read(few, say=heard.append), read(whole)
    assert_same_model(logits(made), logits(plain), plain.config)
    assert not [words for words in heard if "no place for" in words]
    assert_same_model(logits(whole_layers(made)), logits(plain), plain.config)


def test_an_adapter_of_experts_weights_is_folded_into_their_codes(tmp_path):
    """Its matrices lie one in the other, in the order of the block's weights."""
    few, whole = mixture("qwen3_moe", tmp_path, "awq", Scheme(4, 16), r"experts\.\d")
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    adapter = make_adapter(whole, tmp_path / "a", target_modules=["q_proj"], target_parameters=parameters)
    made, plain = (put_adapter(whole_layers(read(one)), adapter) for one in (few, whole))
    assert_same_model(logits(made), logits(plain), plain.config)
    with pytest.raises(ModelError, match=r"(?s)the base's weights are in few bits.*next: merge it"):
        Engine(str(few), "float32", adapter=str(adapter))


def ends(model, folder, order=None, head=None):
    """The model with its embedding in 8 bits, and the same with what the codes say; with a head of its own, if given.

    Args:
        order: each input's group.
    """
    scheme, name = Scheme(8, 16, symmetric=True), "model.embed_tokens"
    tensors = load_file(model / "model.safetensors")
    found = rounded(tensors.pop(f"{name}.weight"), scheme)
    parts, whole = FORMATS["pack-quantized"].tensors(name, found, scheme), dict(tensors)
    if order is not None:
        parts[f"{name}.weight_g_idx"] = order
        found = found._replace(group_of=order)
    whole[f"{name}.weight"] = found.weight()
    own = {} if head is None else {"lm_head.weight": head}
    said = FORMATS["pack-quantized"].config(scheme, [])
    said["config_groups"]["group_0"]["targets"] = ["Embedding"]
    few = write(model, folder / "few", {**tensors, **parts, **own}, said, 1)
    return few, write(model, folder / "whole", {**whole, **own}, None, 1)


def test_an_embedding_in_groups_of_its_own(model, tmp_path):
    order = torch.arange(32).remainder(2)
    few, whole = map(read, ends(model, tmp_path, order=order))
    assert_same_model(logits(few), logits(whole), whole.config)


def test_a_head_that_the_files_have_beside_an_embedding_in_few_bits(model, tmp_path):
    """The configuration says that they are one, from the time before the embedding was rounded."""
    rows = load_file(model / "model.safetensors")["model.embed_tokens.weight"]
    heard: list[str] = []
    few, whole = ends(model, tmp_path, head=-rows)
    made, plain = read(few, say=heard.append), read(whole)
    assert_same_model(logits(made), logits(plain), plain.config)
    assert torch.equal(made.lm_head.weight, -rows)
    assert not heard


def test_an_expert_that_is_not_there(experts, tmp_path):
    directory = shutil.copytree(experts[0], tmp_path / "few")
    change(directory, ["model.layers.0.mlp.experts.2.up_proj.qweight"])
    with pytest.raises(ModelError, match=r"gate_up_proj is made of 8 layers of 4 experts, and 7 of them are"):
        read(directory)


# -- what cannot be read ---------------------------------------------------------------------------------------

LAYER = "model.layers.1.mlp.up_proj"


def test_a_layer_that_lacks_a_tensor(model, tmp_path):
    directory = make_quantized(model, tmp_path / "few", FORMATS["awq"], Scheme(4, 32))
    change(directory, [f"{LAYER}.qzeros"])
    with pytest.raises(ModelError, match=rf"{LAYER}: qzeros is missing"):
        read(directory)


def test_a_layer_without_codes(model, tmp_path):
    directory = make_quantized(model, tmp_path / "few", FORMATS["awq"], Scheme(4, 32))
    change(directory, [f"{LAYER}.qweight"])
    with pytest.raises(ModelError, match=rf"lack weights of LlamaForCausalLM: {LAYER}.weight"):
        read(directory)


def test_a_layer_of_another_size(model, tmp_path):
    scheme = Scheme(4, 32, symmetric=True)
    directory = make_quantized(model, tmp_path / "few", FORMATS["gptq"], scheme)
    other = FORMATS["gptq"].tensors(LAYER, rounded(torch.randn(32, 32), scheme), scheme)
    change(directory, **{name.replace(".", "__"): tensor for name, tensor in other.items()})
    with pytest.raises(ModelError, match=rf"{LAYER} is \(32, 32\) in the files, and the model has \(64, 32\)"):
        read(directory)


def test_groups_that_do_not_fit_the_scales(model, tmp_path):
    said = FORMATS["awq"].config(Scheme(4, 16), [])
    directory = make_quantized(model, tmp_path / "few", FORMATS["awq"], Scheme(4, 32), config=said)
    with pytest.raises(ModelError, match=r"down_proj: qzeros is \(2, 4\)\n  allowed: \(4, 4\)"):
        read(directory)


def test_a_directory_without_quantized_layers(model, tmp_path):
    directory = make_quantized(model, tmp_path / "few", FORMATS["awq"], Scheme(4, 32), config={"quant_method": "awq"})
    (directory / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match="weights of None bits"):
        read(directory)
    config = json.loads((directory / "config.json").read_text("utf-8"))
    config["quantization_config"] |= {"bits": 4, "group_size": 32}
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ModelError, match="no layer has qweight"):
        read(directory)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.norm", "model.norm in few bits, which is no linear layer but"),
        ("model.embed_tokens", "config.json does not say how model.embed_tokens is quantized"),
    ],
)
def test_what_is_no_linear_layer(model, tmp_path, name, said):
    directory = make_quantized(model, tmp_path / "few", FORMATS["awq"], Scheme(4, 32))
    tensors = load_file(directory / "model.safetensors")
    parts = {f"{name}.{one}".replace(".", "__"): tensors[f"{LAYER}.{one}"] for one in ("qweight", "scales")}
    change(directory, **parts)
    with pytest.raises(ModelError, match=said):
        read(directory)


def test_an_empty_layer_has_a_description():
    assert "GroupedLinear" in repr(GroupedLinear(4, 4, False, torch.float32))
