"""Blocks that are computed a second time for their gradients keep their inside neither before nor after that."""

import logging
import weakref

import pytest
import torch
from losses import examples, load, with_adapter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from danlu.data.batches.packing import collate
from danlu.model.adapters import LoraOptions, attach
from danlu.model.company.wiring import base_of
from danlu.model.likelihood import compute_twice, prepare, token_losses
from tiny import make_tiny_model

LAYERS = (2, 8)


class Held(TorchDispatchMode):
    """The most bytes that tensors made in here hold at once."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._known = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {tensor.untyped_storage() for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in given:
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage):
        if storage not in self._known:
            size = self._known[storage] = storage.nbytes()
            weakref.finalize(storage, self._gone, size)
            self.now += size
            self.most = max(self.most, self.now)

    def _gone(self, size):
        self.now -= size


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """Models that differ only in how many layers they have."""
    root = tmp_path_factory.mktemp("deep")
    return {
        (name, layers): make_tiny_model(
            root / f"{name}-{layers}", architecture=name, changes={"num_hidden_layers": layers}
        )
        for name in ("llama", "qwen3")
        for layers in LAYERS
    }


def peak(model, *, twice):
    prepare(model.train())
    if twice:
        compute_twice(model)
    batch = collate(examples())
    for _ in range(2):  # what the first leaves behind counts in the second
        with Held() as held:
            token_losses(model, batch).sum().backward()
    return held.most


@pytest.mark.parametrize("make", [load, with_adapter])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_further_layer_costs_the_states_at_its_border_and_no_more(deep, name, make):
    few, many = ({twice: peak(make(deep[name, layers]), twice=twice) for twice in (False, True)} for layers in LAYERS)
    states = torch.empty(collate(examples()).tokens, 32).nbytes
    further = LAYERS[1] - LAYERS[0]
    assert many[True] - few[True] <= further * states
    assert many[False] - few[False] > 10 * further * states  # what they keep otherwise


def test_nobody_is_warned_of_a_cache_that_keeps_nothing(deep, monkeypatch):
    from transformers import modeling_layers

    logger, heard = modeling_layers.logger, []
    monkeypatch.setattr(logger, "warning_once", lambda *_: heard.append(logger.isEnabledFor(logging.WARNING)))
    peak(load(deep["llama", 2]), twice=True)
    assert heard
    assert not any(heard)


@pytest.mark.parametrize("alone", ["", "documents are read one at a time, for this test"])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_an_adapter_learns_the_same_with_what_dropout_dropped_the_first_time(deep, name, alone):
    def gradients(twice):
        model = attach(load(deep[name, 2]), LoraOptions(r=4, lora_dropout=0.3), seed=0)
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.constant_(weight, 0.1)
        prepare(model.train())
        base_of(model).danlu_alone = alone
        if twice:
            compute_twice(model)
        torch.manual_seed(1)
        losses = token_losses(model, collate(examples()))
        losses.sum().backward()
        return losses, {key: weight.grad for key, weight in model.named_parameters() if weight.requires_grad}

    (once, wanted), (twice, found) = gradients(False), gradients(True)
    assert torch.equal(once, twice)
    assert all(torch.equal(grad, found[key]) for key, grad in wanted.items())
    assert all(grad.abs().max() > 0 for grad in wanted.values())
