"""The bank: what it adds is what PEFT's own modules add, token by token, and only what is plain LoRA gets in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from adapting import CPU, bank_with, edit_config, edit_weights, make_adapter, plain_model
from rounding import of_model

from danlu.errors import ConfigError, ModelError
from danlu.model.adapter_files import put_adapter
from danlu.model.load import load_model
from danlu.model.lora_bank import EVERY, Hooks, LoraBank, Step
from danlu.model.lora_files import LowRank, why_not_plain
from tiny import make_tiny_model

IDS = torch.arange(5, 25)[None]  # (1, tokens)
Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora"


@torch.no_grad()
def scores(model):
    """(tokens, vocabulary)"""
    return model(input_ids=IDS, use_cache=False).logits[0]


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    return make_adapter(tiny_model, tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def copy(adapter, tmp_path):
    """A copy of the adapter, to be changed."""
    return Path(shutil.copytree(adapter, tmp_path / "copy"))


# --- the computation


def by_hand(x, out, parts, owners):
    """Row by row."""
    rows = []
    for row, before, owner in zip(x, out, owners, strict=True):
        rows.append(before if owner is None else before + row @ parts[owner].down @ parts[owner].up)
    return torch.stack(rows)


OWNERS = {
    "base": [None] * 7,
    "one": ["a"] * 7,
    "runs": ["a", "a", None, None, "b", "b", "b"],
    "mixed": ["a", "b", "a", None, "b", "a", "c"],
    "on other layers too": ["elsewhere", "a", "elsewhere", "b", "b", None, "elsewhere"],
    "many": ["a", "b", "a", "elsewhere", None, "c"] * 64,
}


@pytest.mark.parametrize("owners", OWNERS.values(), ids=OWNERS)
def test_each_token_takes_the_part_of_its_own_adapter(owners):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    parts = {name: LowRank(draw(6, rank), draw(rank, 5)) for name, rank in (("a", 2), ("b", 3), ("c", 1))}
    bank = LoraBank({"layer": (6, 5), "other": (6, 5)}, torch.device("cpu"), torch.float64)
    for name, part in parts.items():
        bank.put(name, Path(name), {"layer": part})
    bank.put("elsewhere", Path("elsewhere"), {"other": parts["a"]})
    x, wide = draw(len(owners), 6), draw(len(owners), 12)
    expected = by_hand(x, wide[:, 3:8], parts | {"elsewhere": LowRank(draw(6, 1) * 0, draw(1, 5))}, owners)
    step = Step.of([(owner, 1) for owner in owners], torch.device("cpu"))
    for add in (bank.add_to, bank.add_one_by_one):
        seen = wide.clone()
        add([("nothing here", slice(0, 3)), ("layer", slice(3, 8))], x, seen, step)  # as of fused layers
        add([("unknown layer", EVERY)], x, seen, step)
        torch.testing.assert_close(seen[:, 3:8], expected)
        assert torch.equal(seen[:, :3], wide[:, :3])
        assert torch.equal(seen[:, 8:], wide[:, 8:])


def test_it_follows_what_is_loaded_and_asked():
    bank = LoraBank({"layer": (1, 1)}, torch.device("cpu"), torch.float32)

    def put(name, value):
        bank.put(name, Path(name), {"layer": LowRank(torch.tensor([[value]]), torch.ones(1, 1))})

    def seen(*names):
        out = torch.zeros(len(names), 1)
        step = Step.of([(n, 1) for n in names], torch.device("cpu"))
        bank.add_to([("layer", EVERY)], torch.ones(len(names), 1), out, step)
        return out.flatten().tolist()

    for name, value in (("a", 1.0), ("b", 2.0), ("c", 3.0)):
        put(name, value)
    assert seen("a", "b") == [1, 2]
    assert seen("c", "b", "a") == [3, 2, 1]
    bank.drop("b")
    put("b", 5.0)
    assert seen("c", "b", "a") == [3, 5, 1]


def test_segments():
    def segments(*runs):
        return Step.of(runs, torch.device("cpu")).segments

    assert segments() == []
    assert segments((None, 3), (None, 2)) == []
    ((name, tokens),) = segments(("a", 2), ("a", 5))
    assert name == "a"
    assert tokens is EVERY
    assert segments(("a", 2), ("a", 1), (None, 1), ("b", 2)) == [("a", slice(0, 3)), ("b", slice(4, 6))]
    ((_, of_a), (_, of_b)) = segments(("a", 1), ("b", 2), ("a", 2))
    assert of_a.tolist() == [0, 3, 4]
    assert of_b == slice(1, 3)
    assert Step.of([("a", 1), (None, 4)], torch.device("cpu")).count == 5


KINDS = {
    "plain": {},
    "rank-stabilised": {"r": 9, "use_rslora": True},
    "all-linear": {"target_modules": "all-linear"},
    "regex": {"target_modules": r".*layers\.1.*(up|down)_proj"},
    "patterns": {
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 3},
        "alpha_pattern": {"v_proj": 3},
    },
    "some layers": {"layers_to_transform": [1], "exclude_modules": ["v_proj"]},
    "gaussian": {"init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_hooks_is_pefts_model(tiny_model, tmp_path, kind):
    directory = make_adapter(tiny_model, tmp_path / "adapter", **KINDS[kind])
    expected = scores(put_adapter(plain_model(tiny_model), directory))
    model = plain_model(tiny_model)
    plain = scores(model)
    hooks = Hooks(bank_with(model, it=directory), model)
    with hooks.during(Step.of([("it", 20)], torch.device("cpu"))):
        seen = scores(model)
    torch.testing.assert_close(seen, expected, atol=of_model(expected, model.config), rtol=0)
    assert not torch.allclose(seen, plain, atol=1e-3)
    assert torch.equal(scores(model), plain)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3_text", "qwen3"])
def test_other_architectures(tmp_path, architecture):
    """GPT-2's layers are Conv1D, whose weights lie the other way round."""
    directory = make_tiny_model(tmp_path / "model", architecture=architecture)
    adapter = make_adapter(directory, tmp_path / "adapter", target_modules="all-linear")
    model = plain_model(directory)
    with Hooks(bank_with(model, it=adapter), model).during(Step.of([("it", 20)], torch.device("cpu"))):
        seen = scores(model)
    expected = scores(put_adapter(plain_model(directory), adapter))
    torch.testing.assert_close(seen, expected, atol=of_model(expected, model.config), rtol=0)


def test_bfloat16_matrices_follow_the_model(tiny_model, adapter):
    model = load_model(tiny_model, device=CPU, dtype=torch.bfloat16)
    with Hooks(bank_with(model, it=adapter), model).during(Step.of([("it", 20)], torch.device("cpu"))):
        seen = scores(model)
    expected = scores(put_adapter(load_model(tiny_model, device=CPU, dtype=torch.bfloat16), adapter))
    assert seen.dtype == torch.bfloat16
    assert (seen - expected).abs().max() < 0.02 * expected.abs().max()


def test_where_no_token_has_an_adapter_nothing_stands_in_the_model(tiny_model, adapter):
    model = plain_model(tiny_model)
    bank = bank_with(model, it=adapter)
    hooks = Hooks(bank, model)
    layers = [model.get_submodule(name) for name in bank.layers]
    assert len(layers) == 4
    with hooks.during(Step.of([(None, 20)], torch.device("cpu"))):
        assert not any(layer._forward_hooks for layer in layers)
    with hooks.during(Step.of([("it", 20)], torch.device("cpu"))):
        assert all(layer._forward_hooks for layer in layers)
    with hooks.during(Step.of([(None, 4), (None, 16)], torch.device("cpu"))):
        assert not any(layer._forward_hooks for layer in layers)
    with pytest.raises(ZeroDivisionError), hooks.during(Step.of([("it", 20)], torch.device("cpu"))):
        raise ZeroDivisionError
    assert torch.equal(scores(model), scores(plain_model(tiny_model)))


def test_a_layer_that_sees_other_tokens_is_refused(tiny_model, adapter):
    model = plain_model(tiny_model)
    with (
        Hooks(bank_with(model, it=adapter), model).during(Step.of([("it", 3)], torch.device("cpu"))),
        pytest.raises(ModelError, match="sees 20 of 3 tokens"),
    ):
        scores(model)


# --- names


def test_names(tiny_model, adapter):
    bank = bank_with(plain_model(tiny_model), first=adapter, second=adapter)
    with pytest.raises(ConfigError, match="loaded already, from"):
        bank.put("first", adapter, {})
    with pytest.raises(ConfigError, match=r"(?s)no adapter 'secnd'.*first, second.*did you mean 'second'"):
        bank.require("secnd")
    bank.drop("first")
    assert list(bank.adapters) == ["second"]
    assert len(bank.layers) == 4
    bank.drop("second")
    assert not bank.layers
    with pytest.raises(ConfigError, match=r"(?s)no adapter 'second'.*none is loaded"):
        bank.drop("second")


# --- files


def refusal(directory, model):
    with pytest.raises(ModelError) as caught:
        LoraBank.of(model).read(directory)
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"modules_to_save": ["norm"]}, "modules_to_save is ['norm']"),
        ({"target_modules": ["embed_tokens"]}, "tensor base_model.model.model.embed_tokens."),
        ({"target_modules": ["lm_head", "q_proj"]}, "lm_head"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication is [[0, 2], [0, 2]]"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the base"),
    ],
)
def test_what_is_not_plain_lora_is_named(tiny_model, tmp_path, fields, named):
    directory = make_adapter(tiny_model, tmp_path / "adapter", **fields)
    reason = why_not_plain(directory)
    assert named in reason
    assert f"not plain LoRA: {reason}" in refusal(directory, plain_model(tiny_model))


def test_other_tuners_and_fields_unknown_are_named(copy):
    edit_config(copy, a_field_of_tomorrow=True)
    assert why_not_plain(copy) == "a_field_of_tomorrow is True"
    edit_config(copy, a_field_of_tomorrow=False)
    assert why_not_plain(copy) is None
    edit_config(copy, peft_type="LOHA")
    assert why_not_plain(copy) == "peft_type is 'LOHA'"


def test_layers_of_experts_see_only_some_tokens(copy):
    edit_weights(copy, {"base_model.model.model.layers.0.mlp.experts.3.up_proj.lora_A.weight": torch.ones(4, 32)})
    assert "layers of experts, model.layers.0.mlp.experts.3.up_proj" in why_not_plain(copy)


def cut(directory):
    path = directory / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {
    "no weights": (lambda d: (d / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
    "no config": (lambda d: (d / "adapter_config.json").unlink(), "no adapter_config.json"),
    "cut short": (cut, "cut short"),
    "not JSON": (lambda d: (d / "adapter_config.json").write_text("{"), "not valid JSON"),
    "a rank in words": (lambda d: edit_config(d, r="x"), "adapter_config.json: r: "),
    "rank 0": (lambda d: edit_config(d, r=0), "adapter_config.json: r: "),
    "no targets": (lambda d: edit_config(d, target_modules=None), "target_modules: required"),
    "no regex": (lambda d: edit_config(d, target_modules="("), "no regular expression"),
    "another rank": (lambda d: edit_config(d, r=5), "A (4, 32) and B (32, 4)"),
    "more targets": (lambda d: edit_config(d, target_modules=["q_proj", "v_proj", "up_proj"]), "lacks weights"),
    "no B": (lambda d: edit_weights(d, {f"{Q0}_B.weight": None}), "lacks weights: " + Q0),
    "another shape": (lambda d: edit_weights(d, {f"{Q0}_A.weight": torch.ones(4, 31)}), "does not fit the model"),
    "not finite": (lambda d: edit_weights(d, {f"{Q0}_A.weight": torch.full((4, 32), torch.nan)}), "not numbers"),
    "odd tensor": (lambda d: edit_weights(d, {"odd": torch.ones(1)}), "it holds the tensor odd"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files(tiny_model, copy, damage):
    spoil, said = DAMAGE[damage]
    spoil(copy)
    assert said in refusal(copy, plain_model(tiny_model))


@pytest.mark.parametrize(
    ("architecture", "changes", "said"),
    [
        ("llama", {"hidden_size": 64}, r"\(4, 64\)"),
        ("llama", {"num_hidden_layers": 1}, "no such layers: model.layers.1"),
        ("llama", {"num_hidden_layers": 3}, "lacks weights: .*layers.2"),
        ("gpt2", {}, "no such layers"),
    ],
)
def test_another_base(adapter, tmp_path, architecture, changes, said):
    other = plain_model(make_tiny_model(tmp_path / "other", architecture=architecture, changes=changes))
    with pytest.raises(ModelError, match=said) as caught:
        LoraBank.of(other).read(adapter)
    assert "it was made for" in caught.value.fix
