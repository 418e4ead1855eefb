"""Heads turned in one pass: where it is taken, what it answers, and whose code it leaves alone."""

from __future__ import annotations

import pytest
import torch
from zoo import tiny_model

from danlu.model.compute import native
from danlu.model.compute.rotary import fast_rotary, use_fast_rotary

pytestmark = pytest.mark.skipif(native.kernels() is None, reason="no C compiler here, or no OpenMP runtime to share")


def attentions(model):
    return [module for module in model.modules() if type(module).__name__.endswith("Attention")]


def losses(model):
    tokens = torch.arange(5, 29).view(2, 12)
    model.zero_grad()
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    return [loss, *(weight.grad.clone() for weight in model.parameters() if weight.grad is not None)]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gemma3_text", "olmo2"])
def test_it_learns_the_same(kind):
    model = tiny_model(kind).bfloat16().train()
    plain = losses(model)
    assert all(map(use_fast_rotary, attentions(model)))
    assert all(map(torch.equal, losses(model), plain))


@pytest.mark.parametrize("kind", ["glm4", "cohere", "gpt2", "gpt_neox"])
def test_who_turns_otherwise_keeps_its_own_code(kind):
    model = tiny_model(kind).bfloat16()
    assert not any(map(use_fast_rotary, attentions(model)))
    assert not any("forward" in vars(module) for module in attentions(model))


def test_no_other_model_is_touched():
    from transformers.models.llama import modeling_llama

    own, one, other = modeling_llama.apply_rotary_pos_emb, tiny_model("llama").bfloat16(), tiny_model("llama")
    assert all(map(use_fast_rotary, attentions(one)))
    assert modeling_llama.apply_rotary_pos_emb is own
    assert not any("forward" in vars(module) for module in attentions(other))


def test_float32_and_what_was_replaced_already_are_left_alone():
    assert not any(map(use_fast_rotary, attentions(tiny_model("llama"))))
    model = tiny_model("llama").bfloat16()
    assert all(map(use_fast_rotary, attentions(model)))
    assert not any(map(use_fast_rotary, attentions(model)))


@pytest.mark.parametrize("batch", [1, 3])
def test_heads_that_lie_in_any_order_and_angles_of_half_a_head(batch):
    """Against rotation as it is defined, in float64; the gradient as well."""

    def plain(q, k, cos, sin):
        def turned(x):
            width = cos.shape[-1]
            one, other = x[..., :width].chunk(2, -1)
            made = x[..., :width] * cos[:, None] + torch.cat([-other, one], -1) * sin[:, None]
            return torch.cat([made, x[..., width:]], -1)

        return turned(q), turned(k)

    generator = torch.Generator().manual_seed(batch)
    heads = [torch.randn(batch, count, 7, 32, generator=generator).bfloat16() for count in (4, 2)]
    angles = torch.randn(1, 7, 8, generator=generator).repeat(1, 1, 2)
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    answers = []
    for form, dtype in ((fast_rotary, torch.bfloat16), (None, torch.float64)):
        given = [x.to(dtype).requires_grad_() for x in heads]
        made = plain(*given, cos.double(), sin.double()) if form is None else form(plain, *given, cos, sin)
        answers.append([*made, *torch.autograd.grad(made, given, [x.detach() for x in made])])
    for own, wanted in zip(*answers, strict=True):
        assert (own.double() - wanted).abs().max() < 0.05


def test_what_it_is_not_made_for_goes_to_the_models_own():
    asked = []

    def own(*given, **more):
        asked.append(more)
        return given[:2]

    x, angle = torch.zeros(1, 2, 3, 4), torch.zeros(1, 3, 4)
    fast_rotary(own, x, x, angle, angle)
    fast_rotary(own, *(one.bfloat16() for one in (x, x, angle, angle)), unsqueeze_dim=2)
    assert asked == [{}, {"unsqueeze_dim": 2}]
