"""Adapters in the weights of a model: put in, changed for others, added up, and out again bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from adapting import CPU, edit_weights, make_adapter, plain_model
from rounding import assert_same_model

from danlu import MergedWeights
from danlu.errors import ConfigError, ModelError
from danlu.model.adapter_files import put_adapter
from danlu.model.load import load_model
from danlu.model.lora_sum import Weighted
from tiny import make_tiny_model

IDS = torch.tensor([[5, 60, 7, 200, 9, 31]])
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module", params=["llama", "qwen3", "gpt2"])
def base(request, tmp_path_factory):
    """A tied head; an untied one; layers whose weights lie the other way round."""
    return make_tiny_model(tmp_path_factory.mktemp("base") / "model", architecture=request.param)


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    targets = ["c_attn", "c_proj"] if "gpt2" in (base / "config.json").read_text() else ["q_proj", "down_proj"]
    home = tmp_path_factory.mktemp("adapters")
    first = make_adapter(base, home / "first", seed=1, target_modules=targets)
    second = make_adapter(base, home / "second", seed=2, target_modules=targets[:1], r=2, use_rslora=True)
    return first, second


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits[0]


def bits(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def assert_bits(model, wanted):
    now = model.state_dict()
    assert [name for name in wanted if not torch.equal(now[name], wanted[name])] == []


def test_merged_it_answers_as_with_the_adapter_and_unmerged_as_the_base_bit_for_bit(base, adapters):
    model, wanted = plain_model(base), logits(put_adapter(plain_model(base), adapters[0]))
    before = bits(model)
    weights = MergedWeights(model)
    told = weights.merge(adapters[0])
    assert_same_model(logits(model), wanted, model.config)
    assert not torch.allclose(logits(model), logits(plain_model(base)), atol=1e-3)
    changed = [name for name, weight in before.items() if not torch.equal(weight, model.state_dict()[name])]
    assert told.layers == len(changed)
    assert told.kept_bytes == sum(4 * before[name].numel() for name in changed)
    assert weights.unmerge().layers == told.layers
    assert_bits(model, before)
    assert weights.kept_bytes == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_switch_leaves_nothing_of_the_adapter_before(base, adapters, dtype):
    """Adding and taking away would leave what rounding made of it, more with each change."""
    switched, fresh = (load_model(base, device=CPU, dtype=dtype) for _ in range(2))
    MergedWeights(fresh).merge(adapters[1])
    weights = MergedWeights(switched)
    for _ in range(3):
        weights.merge(adapters[0])
        weights.merge(adapters[1])
    assert_bits(switched, bits(fresh))


def test_several_are_added_each_with_its_weight(base, adapters):
    """0.5 and -2 of the two: what PEFT's own modules of both add, taken by hand from each weight."""
    model, plain = plain_model(base), bits(plain_model(base))
    MergedWeights(model).merge({adapters[0]: 0.5, adapters[1]: -2})
    wanted = dict(plain)
    for adapter, share in zip(adapters, (0.5, -2), strict=True):
        alone = put_adapter(plain_model(base), adapter).merge_and_unload().state_dict()
        wanted = {name: weight + share * (alone[name] - plain[name]) for name, weight in wanted.items()}
    now = model.state_dict()
    assert all(torch.allclose(now[name], wanted[name], atol=1e-5) for name in wanted)


def test_rows_of_tokens_come_and_go(tmp_path):
    for architecture in ("llama", "qwen3"):  # tied and untied
        base = make_tiny_model(tmp_path / architecture, architecture=architecture)
        ends = ["embed_tokens"] if architecture == "llama" else ["embed_tokens", "lm_head"]
        rows = {name: [3, 60] for name in ends}
        adapter = make_adapter(base, tmp_path / f"{architecture}-rows", trainable_token_indices=rows)
        names = [f"base_model.model.{'model.' if 'embed' in end else ''}{end}" for end in ends]
        delta = {f"{n}.token_adapter.trainable_tokens_delta": torch.randn(2, 32) for n in names}
        edit_weights(adapter, delta)
        model = plain_model(base)
        before, wanted = bits(model), logits(put_adapter(plain_model(base), adapter))
        weights = MergedWeights(model)
        weights.merge(adapter)
        assert_same_model(logits(model), wanted, model.config)
        weights.unmerge()
        assert_bits(model, before)


@pytest.mark.parametrize("weight", [0.0, math.nan, math.inf])
def test_a_weight_that_says_nothing_is_refused_and_nothing_is_touched(base, adapters, weight):
    model = plain_model(base)
    weights, before = MergedWeights(model), bits(model)
    with pytest.raises(ConfigError, match="a number other than 0"):
        weights.merge({adapters[0]: 1.0, adapters[1]: weight})
    assert_bits(model, before)


def test_what_is_found_wrong_in_the_second_leaves_the_first_unmerged(base, adapters, tmp_path):
    other = make_tiny_model(tmp_path / "wide", architecture="llama", changes={"hidden_size": 64})
    foreign = make_adapter(other, tmp_path / "foreign")
    model = plain_model(base)
    before = bits(model)
    with pytest.raises(ModelError, match="does not fit the model"):
        MergedWeights(model).merge({adapters[0]: 1.0, foreign: 1.0})
    assert_bits(model, before)


def test_what_is_more_than_a_and_b_is_refused_with_its_reason(base, tmp_path):
    targets = ["c_attn"] if "gpt2" in (base / "config.json").read_text() else ["q_proj"]
    dora = make_adapter(base, tmp_path / "dora", use_dora=True, target_modules=targets)
    with pytest.raises(ModelError, match="cannot be weighted or added to others: use_dora is True"):
        MergedWeights(plain_model(base)).merge(dora)


def test_a_head_of_its_own_takes_an_adapter_and_a_tied_one_does_not(tmp_path):
    tied, own = (make_tiny_model(tmp_path / name, architecture=name) for name in ("llama", "qwen3"))
    for base in (tied, own):
        make_adapter(base, base / "adapter", target_modules=["q_proj", "lm_head"])
    model = plain_model(own)
    MergedWeights(model).merge(own / "adapter")
    assert_same_model(logits(model), logits(put_adapter(plain_model(own), own / "adapter")), model.config)
    with pytest.raises(ModelError, match="lm_head, which shares its weight with the embedding"):
        MergedWeights(plain_model(tied)).merge(tied / "adapter")


def test_a_model_with_modules_around_its_layers_is_refused(base, adapters):
    with pytest.raises(ModelError, match="stand around layers of this model already"):
        MergedWeights(put_adapter(plain_model(base), adapters[0]))


# --- adapters that have learnt nothing


def zeroed(base, directory, *layers, **fields):
    adapter = make_adapter(base, directory, **fields)
    edit_weights(adapter, {f"{layer}.lora_B.weight": torch.zeros(32, 4) for layer in layers})
    return adapter


def test_a_b_that_is_zero_is_an_error_wherever_the_adapter_is_used(tmp_path):
    base = make_tiny_model(tmp_path / "base")
    adapter = zeroed(base, tmp_path / "adapter", LAYER)
    for use in (
        lambda: put_adapter(plain_model(base), adapter),
        lambda: MergedWeights(plain_model(base)).merge(adapter),
    ):
        with pytest.raises(ModelError, match=r"1 of 4 layers have learnt nothing.*layers\.0\.self_attn\.q_proj\n"):
            use()


def test_the_same_adapter_twice_is_refused(base, adapters):
    from danlu.model.lora_sum import check_addable

    with pytest.raises(ConfigError, match="given twice"):
        check_addable([Weighted(adapters[0]), Weighted(adapters[0], 2)])
