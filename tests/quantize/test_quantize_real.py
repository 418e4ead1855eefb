"""The methods on a real model of 135 million weights: each layer, and what the model says, beside plain rounding."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from fewer_bits import DEVICE

from danlu.data.chat import Chat
from danlu.evaluate.bootstrap import bootstrap_difference
from danlu.hub import cache_directory, resolve
from danlu.model.grouped import Scheme
from danlu.model.load import load_model, load_tokenizer
from danlu.quantize import awq, methods
from danlu.quantize.blocks import Blocks
from danlu.quantize.calibration import in_rows, texts_of
from danlu.quantize.divergence import of_logits
from danlu.quantize.gptq import gptq
from danlu.quantize.layers import file_names, layers_of
from danlu.quantize.merge import PROMPTS
from danlu.quantize.methods import METHODS, by_awq, by_gptq
from danlu.quantize.readers import readers_of
from danlu.quantize.rtn import error, rounded

pytestmark = pytest.mark.slow

SCHEME = Scheme(4, 64, True)
ANSWER = 32  # tokens


class Real:
    """The model, its blocks, text to calibrate on, and text that no method sees: of the same kind, and what it says."""

    def __init__(self):
        directory = resolve("smollm2-135m", cache=cache_directory())
        self.model = load_model(directory, device=DEVICE, dtype=torch.float32)
        self.chat = Chat.of(load_tokenizer(directory), self.model.generation_config)
        rows = in_rows(*texts_of(None, self.chat), tokens=6144, length=512, at_least=1).rows
        self.rows, self.held_out = rows[:-4], [row[None] for row in rows[-4:]]
        self.blocks = Blocks(self.model)
        self.blocks.check()
        self.names = file_names(self.model)

    def layers(self, number):
        return layers_of(self.blocks.list[number], f"{self.blocks.name}.{number}", self.names)

    def quantize(self, method, scheme):
        hidden = self.blocks.enter(self.rows)
        for number in range(len(self.blocks)):
            layers, run = self.layers(number), partial(self.blocks.run, number)
            made, answers = METHODS[method](self.blocks.list[number], layers, hidden, run, scheme, torch.float32)
            with torch.no_grad():
                for layer in layers:
                    layer.weight.copy_(made.layers[layer.name].weight())
            hidden = answers or hidden


def energy(weight, gram):
    """(outputs,): the squares of what a layer answers, summed."""
    return error(weight, torch.zeros_like(weight), gram)


def test_no_layer_of_awq_answers_worse_than_a_rounded_one():
    """Of every block: what came to its layers, and how far answers are off, each output's as a part of its energy: a
    scale of the next layer's inputs may have been folded into this one's outputs."""
    real = Real()
    hidden = real.blocks.enter(real.rows)
    for number in range(len(real.blocks)):
        block, layers, run = real.blocks.list[number], real.layers(number), partial(real.blocks.run, number)
        groups = readers_of(block, layers, partial(run, hidden[0]))
        seen, _ = awq.seen_by(groups, hidden, run)
        plain, before = {}, {}
        for at, readers in enumerate(groups):
            gram = seen[at].rows.T @ seen[at].rows
            for layer in readers.layers:
                plain[layer.name] = float(error(layer.weight, rounded(layer.weight, SCHEME).weight(), gram).sum())
                before[layer.name] = energy(layer.weight, gram)
        made, answers = by_awq(block, layers, hidden, run, SCHEME, torch.float32)
        after, _ = awq.seen_by(groups, hidden, run)
        for at, readers in enumerate(groups):
            gram = after[at].rows.T @ after[at].rows
            for layer in readers.layers:
                if layer.last not in awq.UNCUT:  # queries and keys are chosen by what attention answers
                    of_scale = before[layer.name] / energy(layer.weight, gram)
                    off = error(layer.weight, made.layers[layer.name].weight(), gram) * of_scale
                    assert float(off.sum()) <= plain[layer.name], layer.name
        hidden = answers


def test_no_layer_of_gptq_is_further_off_by_its_inputs_than_a_rounded_one(monkeypatch):
    compared = []

    def beside_rounding(weight, hessian, scheme):
        found = gptq(weight, hessian, scheme)
        errors = [float(error(weight, one.weight(), hessian).sum()) for one in (found.grouped, rounded(weight, scheme))]
        compared.append(errors)
        return found

    monkeypatch.setattr(methods, "gptq", beside_rounding)
    real = Real()
    hidden = real.blocks.enter(real.rows)
    for number in range(len(real.blocks)):
        _, hidden = by_gptq(
            real.blocks.list[number],
            real.layers(number),
            hidden,
            partial(real.blocks.run, number),
            SCHEME,
            torch.float32,
        )
    assert len(compared) == 7 * len(real.blocks)
    assert all(own <= plain for own, plain in compared)
    assert sum(own for own, _ in compared) < 0.7 * sum(plain for _, plain in compared)


@pytest.fixture(scope="module")
def divergences():
    """By (method, bits) and kind of text: (summed divergence from the original, tokens) of each text."""
    real = Real()
    with torch.inference_mode():
        asked = [torch.tensor([real.chat.prompt(messages)]) for messages in PROMPTS]
        talks = [real.model.generate(ids, max_new_tokens=ANSWER, do_sample=False) for ids in asked]
        texts = {"documents": real.held_out, "talks": talks}
        wanted = {kind: [real.model(input_ids=ids).logits[0] for ids in of] for kind, of in texts.items()}
    found = {}
    for method, bits in (("rtn", 8), ("rtn", 4), ("rtn", 3), ("awq", 4), ("awq", 3), ("gptq", 4), ("gptq", 3)):
        real = Real()
        real.quantize(method, Scheme(bits, 64, True))
        with torch.inference_mode():
            for kind, of in texts.items():
                kl = [
                    of_logits(one, real.model(input_ids=ids).logits[0])
                    for one, ids in zip(wanted[kind], of, strict=True)
                ]
                found[method, bits, kind] = [(float(one.sum()), float(len(one))) for one in kl]
    return found


def is_nearer(one, other):
    """By more than chance, over texts."""
    return bootstrap_difference(other, one).high < 0


@pytest.mark.parametrize("kind", ["documents", "talks"])
def test_fewer_bits_are_further_away(divergences, kind):
    assert is_nearer(divergences["rtn", 8, kind], divergences["rtn", 4, kind])
    assert is_nearer(divergences["rtn", 4, kind], divergences["rtn", 3, kind])


@pytest.mark.parametrize("kind", ["documents", "talks"])
@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_methods_that_look_at_text_are_nearer_than_rounding(divergences, method, bits, kind):
    assert is_nearer(divergences[method, bits, kind], divergences["rtn", bits, kind])
