"""Optimizers and their groups, against numbers worked out by hand and torch's own; what is kept of them."""

import sys
import types
from collections import OrderedDict

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.trainer import Trainer

from danlu.config import validate
from danlu.errors import ConfigError, ResourceError
from danlu.hub import import_bitsandbytes, quiet_transformers
from danlu.train.optim import OptimOptions, build_optimizer, check_optimizer, set_rate

needs_bitsandbytes = pytest.mark.skipif(import_bitsandbytes() is None, reason="bitsandbytes is not installed")


def trained(model):
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def adapted(model, targets, **options):
    with quiet_transformers():
        return get_peft_model(model, LoraConfig(r=2, target_modules=targets, **options))


def built(model, **options):
    return build_optimizer(model, trained(model), OptimOptions(**options))


def decayed(model):
    """Names of what is pulled to zero."""
    names = {weight: name for name, weight in model.named_parameters()}
    groups = built(model, weight_decay=0.1).param_groups
    assert {group["weight_decay"] for group in groups} <= {0.1, 0.0}
    return {names[weight] for group in groups if group["weight_decay"] for weight in group["params"]}


class ScaleNorm(nn.Module):
    """A norm whose weight has the shape of a matrix."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 4))
        self.bias = nn.Parameter(torch.zeros(1, 4))


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.A_log = nn.Parameter(torch.ones(2, 2))
        self.A_log._no_weight_decay = True  # as Mamba's authors mark it
        self.experts = nn.Parameter(torch.ones(2, 4, 4))
        self.experts_bias = nn.Parameter(torch.ones(2, 4))


def test_norms_biases_and_vectors_are_not_decayed_whatever_their_shape():
    parts = {"embed": nn.Embedding(5, 4), "proj": nn.Linear(4, 4), "post": ScaleNorm(), "gate": Gate()}
    parts |= {name: nn.Linear(4, 4) for name in ("q_norm", "norm1", "input_layernorm", "ln_f")}  # by their names
    parts |= {name: nn.Linear(4, 4) for name in ("norm_proj", "normalizer")}
    decay = {"embed.weight", "proj.weight", "gate.experts", "norm_proj.weight", "normalizer.weight"}
    assert decayed(nn.Sequential(OrderedDict(parts))) == decay


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text", "qwen3"])
def test_what_is_decayed_is_what_transformers_decays(architecture, tmp_path):
    from tiny import make_tiny_model

    model = AutoModelForCausalLM.from_pretrained(make_tiny_model(tmp_path, architecture=architecture))
    names = {name for name, _ in model.named_parameters()}
    theirs = set(Trainer.get_decay_parameter_names(None, model)) & names
    own = {name for name in theirs if ".ln_" not in name}  # a LayerNorm: they know it too
    assert decayed(model) == own
    assert own < names


def test_of_an_adapter_the_matrices_are_decayed_and_doras_magnitudes_are_not(tiny_model):
    model = adapted(AutoModelForCausalLM.from_pretrained(tiny_model), ["q_proj"], use_dora=True)
    kinds = {name.split(".")[-3 if "lora_magnitude" not in name else -2] for name in decayed(model)}
    assert kinds == {"lora_A", "lora_B"}
    assert any("lora_magnitude" in name for name in trained(model))


def test_decay_moves_what_is_decayed_and_nothing_else():
    layer = nn.Linear(3, 2)
    before = [weight.detach().clone() for weight in (layer.weight, layer.bias)]
    for weight in layer.parameters():
        weight.grad = torch.zeros_like(weight)
    built(layer, weight_decay=0.5, learning_rate=0.1).step()
    assert torch.allclose(layer.weight, before[0] * (1 - 0.1 * 0.5))
    assert torch.equal(layer.bias, before[1])


def test_frozen_parameters_are_left_out():
    layer = nn.Linear(3, 2)
    layer.weight.requires_grad_(False)
    assert [p is layer.bias for g in built(layer, optim="sgd").param_groups for p in g["params"]] == [True]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"momentum": 0.5}, "momentum has no effect with optim=adamw_torch"),
        ({"momentum": 0.5, "optim": "adamw_8bit"}, "momentum has no effect with optim=adamw_8bit"),
        ({"optim": "sgd", "adam_beta1": 0.8}, "adam_beta1 has no effect with optim=sgd"),
    ],
)
def test_a_knob_without_effect_is_an_error(given, named):
    with pytest.raises(ConfigError, match=named):
        validate(OptimOptions, given, where="train")


@pytest.mark.parametrize(
    ("spelt", "name"),
    [("adamw", "adamw_torch"), ("adamw_torch_fused", "adamw_torch"), ("adamw_bnb_8bit", "adamw_8bit")],
)
def test_other_spellings_are_one_optimizer(spelt, name):
    assert OptimOptions(optim=spelt) == OptimOptions(optim=name)


def test_one_adamw_step_by_hand():
    # The first AdamW step moves by rate * sign(gradient), after decay: 1 - 0.1 * 0.5 * 1 - 0.1 * 1 = 0.85
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = built(model, learning_rate=0.1, weight_decay=0.5)
    model.weight.grad = torch.full((1, 1), 7.0)
    optimizer.step()
    assert model.weight.item() == pytest.approx(0.85, abs=1e-6)


def moved(gradients, **options):
    """Where a weight of 1 is after steps of 0.1 with these gradients, without decay."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = built(model, learning_rate=0.1, weight_decay=0.0, **options)
    for gradient in gradients:
        model.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
    return model.weight.item()


def test_adams_numbers_by_hand():
    # beta1 = beta2 = 0: each step moves by 0.1 * g / (|g| + eps)
    still = {"adam_beta1": 0.0, "adam_beta2": 0.0}
    assert moved([2.0, -4.0], **still) == pytest.approx(1.0, abs=1e-6)
    # eps = 2: 0.1 * 2 / (2 + 2) = 0.05, then 0.1 * -4 / (4 + 2) = -0.0667
    assert moved([2.0, -4.0], **still, adam_epsilon=2.0) == pytest.approx(1 - 0.05 + 0.4 / 6, abs=1e-6)
    # beta1 = 0.5: the second mean is (0.5 * 1 + 0.5 * -4) / 0.75 = -2, of -4: the step is +0.05
    assert moved([2.0, -4.0], adam_beta1=0.5, adam_beta2=0.0) == pytest.approx(1 - 0.1 + 0.05, abs=1e-6)
    # beta2 = 0.5: the second square is (0.5 * 2 + 0.5 * 16) / 0.75 = 12: the step is +0.1 * 4 / sqrt(12)
    assert moved([2.0, -4.0], adam_beta1=0.0, adam_beta2=0.5) == pytest.approx(1 - 0.1 + 0.4 / 12**0.5, abs=1e-6)


def test_sgds_momentum_by_hand():
    # 0.1 * 1, then 0.1 * (0.5 * 1 + 1)
    assert moved([1.0, 1.0], optim="sgd", momentum=0.5) == pytest.approx(1 - 0.1 - 0.15, abs=1e-6)
    assert moved([1.0, 1.0], optim="sgd", momentum=0.0) == pytest.approx(1 - 0.2, abs=1e-6)


# -- LoRA+ ---------------------------------------------------------------------------------------------------


def test_the_rate_of_b_is_a_multiple_of_as_and_the_groups_are_pefts(tiny_model):
    model = adapted(AutoModelForCausalLM.from_pretrained(tiny_model), ["q_proj", "down_proj"])
    ours = built(model, learning_rate=1e-3, loraplus_lr_ratio=16)
    set_rate(ours, 5e-4)
    names = {weight: name for name, weight in model.named_parameters()}
    rates = {names[weight]: group["lr"] for group in ours.param_groups for weight in group["params"]}
    theirs = create_loraplus_optimizer(model, torch.optim.SGD, lr=5e-4, loraplus_lr_ratio=16)
    assert rates == {names[weight]: group["lr"] for group in theirs.param_groups for weight in group["params"]}
    assert {rate for name, rate in rates.items() if "lora_B" in name} == {5e-4 * 16}


def test_b_of_an_embedding_is_a_b_too():
    model = adapted(nn.Sequential(OrderedDict(e=nn.Embedding(5, 4))), ["e"])
    groups = built(model, loraplus_lr_ratio=4).param_groups
    assert [(group["rate_ratio"], len(group["params"])) for group in groups] == [(1.0, 1), (4.0, 1)]


# -- bitsandbytes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["paged_adamw_8bit", "paged_adamw_32bit"])
def test_what_pages_a_gpus_memory_is_refused_on_a_cpu(name):
    with pytest.raises(ConfigError, match=f"train.optim={name} on a CPU") as caught:
        check_optimizer(OptimOptions(optim=name), "cpu", torch.float32)
    assert "train.optim=adamw_8bit" in caught.value.fix


def test_without_bitsandbytes_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("danlu.train.optim.import_bitsandbytes", lambda: None)
    check_optimizer(OptimOptions(), "cpu", torch.float32)
    with pytest.raises(ResourceError, match="adamw_8bit needs bitsandbytes") as caught:
        check_optimizer(OptimOptions(optim="adamw_8bit"), "cpu", torch.float32)
    assert "pip install 'danlu[bitsandbytes]'" in caught.value.fix


def test_bitsandbytes_is_imported_without_a_word_and_without_the_network(monkeypatch, tmp_path, capfd):
    """Its kernels for CPUs would come from the hub while it is imported."""
    (tmp_path / "bitsandbytes").mkdir()
    (tmp_path / "bitsandbytes" / "__init__.py").write_text(
        "import logging\ntry:\n    import kernels\n    asked = True\nexcept ImportError:\n    asked = False\n"
        "    logging.getLogger('bitsandbytes.cpu').warning('no kernels')\n"
    )
    there = types.ModuleType("kernels")
    monkeypatch.setitem(sys.modules, "kernels", there)
    for name in [name for name in sys.modules if name.partition(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert import_bitsandbytes().asked is False
    assert sys.modules["kernels"] is there
    assert capfd.readouterr() == ("", "")
    assert import_bitsandbytes() is sys.modules.pop("bitsandbytes")


@needs_bitsandbytes
def test_eight_bits_hold_a_quarter_of_the_state_and_learn_alike():
    sizes, losses = {}, {}
    x, y = torch.randn(2, 64, 128, generator=torch.Generator().manual_seed(0)).unbind()
    for name in ("adamw_torch", "adamw_8bit"):
        model = nn.Linear(128, 128, bias=False)
        nn.init.zeros_(model.weight)
        optimizer = built(model, optim=name, learning_rate=3e-3)
        for _ in range(60):
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        kept = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        sizes[name] = sum(value.numel() * value.element_size() for value in kept)
        losses[name] = loss.item()
    # 2 bytes a weight instead of 8, and two tables of 256 numbers and a scale for each 256 weights
    assert 2 * 128**2 <= sizes["adamw_8bit"] <= 2 * 128**2 + 2 * 4 * (256 + 128**2 // 256) + 16
    assert sizes["adamw_torch"] >= 8 * 128**2
    assert losses["adamw_8bit"] == pytest.approx(losses["adamw_torch"], rel=0.05)
    assert losses["adamw_8bit"] < 0.7 * y.square().mean().item()


@needs_bitsandbytes
def test_embeddings_keep_their_means_in_32_bits_and_no_other_optimizer_hears_of_it():
    model = nn.Sequential(nn.Embedding(64, 128), nn.Linear(128, 64))
    optimizer = built(model, optim="adamw_8bit")
    model(torch.arange(64)).sum().backward()
    optimizer.step()
    kinds = {name: optimizer.state[weight]["state1"].dtype for name, weight in model.named_parameters()}
    assert kinds == {"0.weight": torch.float32, "1.weight": torch.uint8, "1.bias": torch.float32}
    assert not import_bitsandbytes().optim.GlobalOptimManager.get_instance().pid2config
