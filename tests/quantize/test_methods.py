"""The methods on blocks of many kinds: experts, joined projections, linear attention, parallel parts."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import zoo

from danlu.errors import ModelError
from danlu.model.grouped import Scheme
from danlu.quantize.blocks import Blocks
from danlu.quantize.layers import file_names, layers_of
from danlu.quantize.methods import METHODS

ROWS, LENGTH = 4, 32


def through(kind, method):
    """(names of layers, what was said) of a tiny model of this kind, block after block."""
    model = zoo.tiny_model(kind).eval()
    zoo.strengthen(model)
    blocks, names = Blocks(model), file_names(model)
    blocks.check()
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    hidden = blocks.enter([torch.randint(0, vocabulary, (LENGTH,), generator=generator) for _ in range(ROWS)])
    done, said = [], []
    for number in range(len(blocks)):
        layers = layers_of(blocks.list[number], f"{blocks.name}.{number}", names)
        made, hidden = METHODS[method](
            blocks.list[number],
            layers,
            hidden,
            partial(blocks.run, number),
            Scheme(4, 8, method == "gptq"),
            torch.float32,
        )
        assert made.layers.keys() == {layer.name for layer in layers}
        done += made.layers
        said += made.said
    assert all(torch.isfinite(one).all() for one in hidden)
    return done, said


@pytest.mark.parametrize("method", ["awq", "gptq"])
@pytest.mark.parametrize("kind", ["qwen2_moe", "phi3", "gemma2", "qwen3_next", "falcon"])
def test_blocks_of_many_kinds(kind, method):
    done, _ = through(kind, method)
    assert len(done) == len(set(done)) >= 8
    assert not any(name.endswith(("gate", "router", "conv1d", "lm_head")) for name in done)


def test_experts_to_which_no_text_came_are_rounded_and_said():
    """Of eight experts each token takes one of those that its group offers."""
    done, said = through("deepseek_v3", "gptq")
    idle = {one.partition(" is rounded plainly: no text came to it")[0] for one in said}
    assert idle
    assert idle < set(done)
    assert all(".experts." in name for name in idle)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_oss", "gemma4_text"])
def test_kinds_that_cannot_be_taken_are_refused_with_a_reason(kind):
    with pytest.raises(ModelError) as caught:
        through(kind, "awq")
    assert "use it as it is" in caught.value.fix
