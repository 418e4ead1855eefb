"""The methods on a real model of 135 million weights: what each is worth beside plain rounding, and bit by bit."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from fewer_bits import DEVICE

from danlu.data.chat import Chat
from danlu.hub import cache_directory, resolve
from danlu.model.grouped import Scheme
from danlu.model.load import load_model, load_tokenizer
from danlu.quantize import awq
from danlu.quantize.blocks import Blocks
from danlu.quantize.calibration import read_calibration
from danlu.quantize.divergence import of_logits
from danlu.quantize.layers import file_names, layers_of
from danlu.quantize.methods import METHODS, by_awq
from danlu.quantize.readers import readers_of
from danlu.quantize.rtn import error, rounded

pytestmark = pytest.mark.slow

SCHEME = Scheme(4, 64)


class Real:
    """The model, with its blocks and some text."""

    def __init__(self):
        directory = resolve("smollm2-135m", cache=cache_directory())
        self.model = load_model(directory, device=DEVICE, dtype=torch.float32)
        chat = Chat.of(load_tokenizer(directory), self.model.generation_config)
        rows = read_calibration(None, chat, tokens=8192, length=512, at_least=1).rows
        self.rows, self.held_out = rows[:-4], rows[-4:]
        self.blocks = Blocks(self.model)
        self.blocks.check()
        self.names = file_names(self.model)

    def layers(self, number):
        return layers_of(self.blocks.list[number], f"{self.blocks.name}.{number}", self.names)


def test_no_layer_of_awq_answers_worse_than_a_rounded_one():
    """Of every block: what came to its layers, their answers, and those of codes in the layers' own scale."""
    real = Real()
    hidden = real.blocks.enter(real.rows)
    for number in range(len(real.blocks)):
        block, layers, run = real.blocks.list[number], real.layers(number), partial(real.blocks.run, number)
        groups = readers_of(block, layers, partial(run, hidden[0]))
        seen, _ = awq.seen_by(groups, hidden, run)
        plain = {}
        for at, readers in enumerate(groups):
            gram = seen[at].rows.T @ seen[at].rows
            for layer in readers.layers:
                plain[layer.name] = float(error(layer.weight, rounded(layer.weight, SCHEME).weight(), gram).sum())
        made, answers = by_awq(block, layers, hidden, run, SCHEME, torch.float32)
        after, _ = awq.seen_by(groups, hidden, run)
        for at, readers in enumerate(groups):
            gram = after[at].rows.T @ after[at].rows
            for layer in readers.layers:
                if layer.last not in awq.UNCUT:  # queries and keys are chosen by what attention answers
                    assert float(error(layer.weight, made.layers[layer.name].weight(), gram).sum()) <= plain[layer.name]
        hidden = answers


@pytest.fixture(scope="module")
def divergences():
    """Mean divergence from the original on text that no method saw, by (method, bits)."""
    found = {}
    for method, bits in (("rtn", 8), ("rtn", 4), ("rtn", 3), ("awq", 4), ("awq", 3), ("gptq", 4)):
        real = Real()
        with torch.inference_mode():
            wanted = [real.model(input_ids=row[None]).logits[0] for row in real.held_out]
        hidden = real.blocks.enter(real.rows)
        for number in range(len(real.blocks)):
            layers, run = real.layers(number), partial(real.blocks.run, number)
            made, answers = METHODS[method](
                real.blocks.list[number], layers, hidden, run, Scheme(bits, 64), torch.float32
            )
            for layer in layers:
                with torch.no_grad():
                    layer.weight.copy_(made.layers[layer.name].weight())
            hidden = answers or hidden
        with torch.inference_mode():
            kl = [
                of_logits(one, real.model(input_ids=row[None]).logits[0])
                for one, row in zip(wanted, real.held_out, strict=True)
            ]
        found[method, bits] = float(torch.cat(kl).mean())
    return found


def test_fewer_bits_are_further_away(divergences):
    assert divergences["rtn", 8] < divergences["rtn", 4] < divergences["rtn", 3]
    assert divergences["awq", 4] < divergences["awq", 3]


def test_methods_that_look_at_text_are_nearer_than_rounding(divergences):
    assert divergences["awq", 4] < divergences["rtn", 4]
    assert divergences["awq", 3] < divergences["rtn", 3]
    assert divergences["gptq", 4] < divergences["rtn", 4]
