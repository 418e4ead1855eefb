"""AWQ on a block: which scales are tried, how they are folded, and that nothing gets worse or is changed by the way."""

from functools import partial

import pytest
import torch
from answering import strengthen

from danlu.device import Device
from danlu.model.grouped import Scheme
from danlu.model.load import load_model
from danlu.quantize import awq
from danlu.quantize.blocks import Blocks
from danlu.quantize.clip import SHARES, grams_of, shares
from danlu.quantize.layers import file_names, layers_of, listening
from danlu.quantize.methods import by_awq
from danlu.quantize.readers import fold, readers_of, spread_over
from danlu.quantize.rtn import error, rounded
from tiny import make_tiny_model

SCHEME = Scheme(3, 16)
ROW = 40


class Stage:
    """The first block of a tiny model, with what comes to it: some inputs far larger than others, as in real ones."""

    def __init__(self, directory, architecture, **changes):
        make_tiny_model(directory, architecture=architecture, changes=changes)
        self.model = load_model(directory, device=Device("cpu", 1, 10**9, has_bfloat16=False), dtype=torch.float32)
        strengthen(self.model)
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                if "norm" in name:
                    weight[::7] += 6.0
        blocks = Blocks(self.model)
        blocks.check()
        generator = torch.Generator().manual_seed(0)
        self.hidden = blocks.enter([torch.randint(0, 300, (ROW,), generator=generator) for _ in range(3)])
        self.block = blocks.list[0]
        self.layers = layers_of(self.block, f"{blocks.name}.0", file_names(self.model))
        self.run = partial(blocks.run, 0)
        self.groups = readers_of(self.block, self.layers, lambda: self.run(self.hidden[0]))

    def group(self, last):
        return next(one for one in self.groups if any(layer.last == last for layer in one.layers))

    def weights(self):
        return {name: one.detach().clone() for name, one in self.block.named_parameters()}


@pytest.fixture(params=["llama", "qwen2", "gemma3_text"])
def stage(request, tmp_path):
    return Stage(tmp_path / "model", request.param)


def test_layers_are_found_by_what_they_read(stage):
    lasts = [[layer.last for layer in one.layers] for one in stage.groups]
    assert lasts == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    attention, out, mlp, down = stage.groups
    assert attention.norm is stage.block.input_layernorm
    assert (out.maker.last, down.maker.last) == ("v_proj", "up_proj")
    assert (attention.part, mlp.part) == (stage.block.self_attn, stage.block.mlp)
    assert mlp.norm is not None


def test_scales_are_those_of_the_paper():
    """Inputs 1 and 4, columns 1 and 0.25. r = 0: 1 / w is (1, 4), over sqrt(4): (0.5, 2). r = 1/2: sqrt(x) / sqrt(w) is
    (1, 4) as well."""
    found = awq.candidates(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 0.25]))
    assert len(found) == awq.STEPS + 1
    assert found[0].tolist() == [1.0, 1.0]
    for scale in (found[1], found[1 + awq.STEPS // 2]):
        torch.testing.assert_close(scale, torch.tensor([0.5, 2.0]), rtol=1e-3, atol=0)


def test_a_scale_that_is_no_number_is_one():
    found = awq.candidates(torch.tensor([torch.inf, 1.0]), torch.tensor([1.0, 1.0]))
    assert all(torch.isfinite(scale).all() for scale in found)


def test_sizes_are_parts_of_the_largest_in_a_group():
    """Of (1, 4) and (2, 2) in groups of two: (0.25, 1) and (1, 1)."""
    sizes = awq.sizes_of([torch.tensor([[1.0, -4.0]]), torch.tensor([[2.0, 2.0]])], Scheme(4, 2))
    torch.testing.assert_close(sizes, torch.tensor([0.625, 1.0]))


@pytest.mark.parametrize("last", ["q_proj", "o_proj", "up_proj", "down_proj"])
def test_a_division_undoes_a_multiplication(stage, last):
    readers, run = stage.group(last), lambda: stage.run(stage.hidden[1])
    before, wanted = [layer.weight.clone() for layer in readers.layers], run()
    width = before[0].shape[1]
    scale = 0.5 + torch.rand(width, generator=torch.Generator().manual_seed(3))
    if readers.maker is not None:
        scale = spread_over(readers, scale)
    taken = fold(readers, scale, run, torch.bfloat16)
    torch.testing.assert_close(taken, scale, rtol=2**-7, atol=2**-7)  # a norm in bfloat16
    for layer, weight in zip(readers.layers, before, strict=True):
        torch.testing.assert_close(layer.weight, weight * taken)
    assert float((run() - wanted).abs().max()) < 1e-3 * float(wanted.abs().max())


def test_where_it_does_not_undo_it_all_stays(stage):
    """A norm with something behind it that is no product with a constant."""
    readers = stage.group("q_proj")
    norm, own = readers.norm, readers.norm.forward
    norm.forward = lambda states: own(states).tanh()
    before = stage.weights()
    assert fold(readers, torch.full((32,), 2.0), lambda: stage.run(stage.hidden[0]), torch.float32) is None
    assert all(torch.equal(one, before[name]) for name, one in stage.weights().items())


def test_searching_changes_nothing(stage):
    """Float32 weights on a CPU: a copy that is none would let scale after scale add up."""
    seen, _ = awq.seen_by(stage.groups, stage.hidden, stage.run)
    before = stage.weights()
    for at, readers in enumerate(stage.groups):
        awq.best_scale(readers, seen[at], SCHEME)
        assert all(torch.equal(one, before[name]) for name, one in stage.weights().items())


def test_every_row_counts(stage):
    """Of texts that are read one after the other none may stand for all."""
    heard = []
    for row in stage.hidden:
        with listening(stage.group("down_proj").layers, lambda _, inputs: heard.append(inputs.clone())):
            stage.run(row)
    seen, _ = awq.seen_by(stage.groups, stage.hidden, stage.run)
    found = seen[stage.groups.index(stage.group("down_proj"))]
    torch.testing.assert_close(found.size, torch.cat(heard).abs().mean(0))
    assert len(found.rows) == len(torch.cat(heard))


def test_a_scale_is_no_worse_than_none(stage):
    seen, _ = awq.seen_by(stage.groups, stage.hidden, stage.run)
    gained = 0
    for at, readers in enumerate(stage.groups):
        own = [layer.weight.clone() for layer in readers.layers]
        scale = awq.best_scale(readers, seen[at], SCHEME)
        errors = []
        for taken in (scale, torch.ones_like(scale)):
            held = [rounded(weight * taken, SCHEME).weight() / taken for weight in own]
            errors.append(awq.off_by(readers, seen[at], own, held))
            for layer, weight in zip(readers.layers, own, strict=True):
                layer.weight.copy_(weight)
        assert errors[0] <= errors[1]
        gained += errors[0] < errors[1]
    assert gained >= 3


def test_answers_are_nearer_than_those_of_plain_rounding(stage):
    wanted = [stage.run(row) for row in stage.hidden]
    before = stage.weights()

    def off(made):
        with torch.no_grad():
            for layer in stage.layers:
                layer.weight.copy_(made[layer.name].weight())
        return sum(float((stage.run(row) - one).square().sum()) for row, one in zip(stage.hidden, wanted, strict=True))

    plain = off({layer.name: rounded(layer.weight, SCHEME) for layer in stage.layers})
    with torch.no_grad():
        for name, one in stage.block.named_parameters():
            one.copy_(before[name])
    made, answers = by_awq(stage.block, stage.layers, stage.hidden, stage.run, SCHEME, torch.float32)
    assert off(made.layers) < plain
    assert all(torch.equal(one, other) for one, other in zip(answers, wanted, strict=True))
    assert made.said == []
    assert all("norm" in name or name.endswith("bias") for name in made.changed)


def test_heads_that_share_their_values_share_a_scale(stage):
    """4 heads of 8 over 2 of values: inputs 0 to 7 and 8 to 15 are made of the same values."""
    scale = spread_over(stage.group("o_proj"), torch.arange(32.0))
    assert torch.equal(scale[:8], scale[8:16])
    assert scale[:8].tolist() == [4.0 + one for one in range(8)]


def test_extremes_are_cut_where_that_is_nearer():
    """One outlier whose input is always zero: it costs nothing to cut it off, and all others get finer steps."""
    weight = torch.tensor([[1.0, 0.3, -0.2, 0.1]])
    gram = torch.diag(torch.tensor([0.0, 1.0, 1.0, 1.0]))
    scheme = Scheme(2, 4, True)
    chosen = shares(weight, grams_of(gram, scheme), scheme)
    errors = [float(error(weight, rounded(weight, scheme, share).weight(), gram)) for share in SHARES]
    assert chosen.item() == pytest.approx(SHARES[errors.index(min(errors))])
    assert chosen.item() < 1


def test_cutting_is_no_worse_than_not_cutting():
    generator = torch.Generator().manual_seed(0)
    weight, rows = torch.randn(20, 64, generator=generator), torch.randn(100, 64, generator=generator)
    scheme = Scheme(3, 16)
    grams = grams_of(rows.T @ rows, scheme)
    cut = rounded(weight, scheme, shares(weight, grams, scheme)).weight()
    for at, gram in enumerate(grams):
        part = slice(16 * at, 16 * at + 16)
        plain = error(weight[:, part], rounded(weight, scheme).weight()[:, part], gram)
        assert bool((error(weight[:, part], cut[:, part], gram) <= plain).all())
