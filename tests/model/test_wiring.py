"""A wired model is still a model: it can be copied, saved, shared, interrupted and trained as any other."""

from __future__ import annotations

import copy
import io
import threading

import pytest
import torch
from scripted import distance, play, played
from stepping import prompt_of
from zoo import VARIANTS, plain_logits, tiny_model

from danlu.data.batches.packing import collate
from danlu.data.example import Example
from danlu.errors import ConfigError, ModelError
from danlu.generate.batch.core import Core
from danlu.model.company.check import alone
from danlu.model.company.wiring import as_it_came, wire, wiring_of
from danlu.model.likelihood import prepare, token_losses, why_alone
from danlu.model.lora_bank import Hooks, LoraBank, LowRank, Step

IDS = prompt_of(9)
# One whose attention asks by itself, those that are made to ask, one with states in a cache, one with attributes.
KINDS = ("llama", "bloom", "falcon", "gptj", "llama4_text", "bamba", "recurrent_gemma")


def batch(lengths=(11, 1, 17, 5)):
    documents = [tuple(prompt_of(length, length)) for length in lengths]
    return collate([Example(ids, tuple(at > 0 for at in range(len(ids)))) for ids in documents])


def halved(model):
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.5)
    return model


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def by_torch(model):
    stream = io.BytesIO()
    torch.save(model, stream)
    return torch.load(io.BytesIO(stream.getvalue()), weights_only=False)


@torch.no_grad()
@pytest.mark.parametrize("copied", [copy.deepcopy, by_torch])
def test_a_copy_computes_with_its_own_weights(kind, copied):
    model = tiny_model(kind)
    prepare(model)
    before = token_losses(model, batch())
    other = copied(model)
    assert wiring_of(other) is not wiring_of(model)
    assert torch.equal(token_losses(other, batch()), before)
    halved(other)
    assert torch.equal(token_losses(model, batch()), before)
    expected = halved(tiny_model(kind))
    torch.testing.assert_close(alone(other, IDS), plain_logits(expected, IDS), atol=1e-4, rtol=1e-4)
    prepare(expected)
    torch.testing.assert_close(token_losses(other, batch()), token_losses(expected, batch()), atol=1e-4, rtol=1e-4)


def test_a_wired_model_is_saved_as_it_was(kind, tmp_path):
    model = tiny_model(kind)
    model.save_pretrained(tmp_path / "before")
    wire(model)
    model.save_pretrained(tmp_path / "after")
    names = sorted(path.name for path in (tmp_path / "before").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "after").iterdir())
    for name in names:
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes(), name


@pytest.mark.parametrize("kind", ["llama", "llama4_text", "bamba", "recurrent_gemma"])
def test_called_by_itself_a_wired_model_says_that_it_cannot_answer(kind):
    model = tiny_model(kind)
    expected = plain_logits(model, IDS)
    wire(model)
    for ask in (plain_logits, lambda model, ids: model.generate(torch.tensor([ids]), max_new_tokens=2)):
        with pytest.raises(ModelError, match="it got neither"):
            ask(model, IDS)
    with as_it_came(model):
        assert torch.equal(plain_logits(model, IDS), expected)


@pytest.mark.parametrize("kind", ["bloom", "falcon", "mpt", "gptj", "mamba"])
def test_called_by_itself_a_model_that_asks_nobody_answers_as_it_came(kind):
    model = tiny_model(kind)
    expected = plain_logits(model, IDS)
    wire(model)
    assert torch.equal(plain_logits(model, IDS), expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_layers_that_are_computed_again_find_their_documents(kind, reentrant):
    """Gradient checkpointing: the second time is in the backward pass."""
    model = tiny_model(kind)
    prepare(model)
    assert not why_alone(model)
    model.train()

    def gradients():
        model.zero_grad()
        losses = token_losses(model, batch())
        losses.sum().backward()
        return losses.detach(), {
            name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None
        }

    losses, expected = gradients()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    again, seen = gradients()
    assert torch.equal(again, losses)
    assert seen.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(seen[name], gradient, atol=1e-5 * float(gradient.abs().max()), rtol=0)
    assert wiring_of(model).company is None


def test_an_interrupted_wiring_is_undone(kind):
    model = tiny_model(kind)
    expected = plain_logits(model, IDS)
    last = [module for module in model.modules() if "Norm" in type(module).__name__][-1]

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = last.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        wire(model)
    handle.remove()
    assert wiring_of(model) is None
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(plain_logits(model, IDS), expected)
    prepare(model)
    assert why_alone(model) == ""


def test_what_is_made_in_inference_mode_serves_training(kind):
    model = tiny_model(kind)
    with torch.inference_mode():
        prepare(model)
        token_losses(model, batch((3, 8, 2)))
        Core(model, 2**26).logits(IDS)
    for lengths in ((3, 8, 2), (len(IDS),), (11, 17)):
        token_losses(model, batch(lengths)).sum().backward()


def test_a_model_that_is_being_trained_stays_so(kind):
    model = tiny_model(kind).train()
    prepare(model)
    prepare(model)
    assert all(module.training for module in model.modules())


def test_a_model_that_is_refused_stays_as_it_was():
    model = tiny_model("bert").train()
    with pytest.raises(ModelError, match="looks at the tokens that come after"):
        prepare(model)
    assert all(module.training for module in model.modules())
    assert wiring_of(model) is None


# -- rotations that the longest text of a row decides


def turning(kind, length):
    """A model that rotates otherwise where a text is longer than that."""
    if kind == "longrope":
        rope = {**VARIANTS["phi3 longrope"][1]["rope_parameters"], "original_max_position_embeddings": length}
        return "phi3", {"rope_parameters": rope, "original_max_position_embeddings": length}
    return "llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}


@pytest.fixture(params=["longrope", "dynamic"])
def turned(request, monkeypatch):
    """It takes up to 32 tokens as it was made to."""
    kind, changes = turning(request.param, 32)
    sizes = {"max_position_embeddings": 33 if request.param == "dynamic" else 512}
    monkeypatch.setitem(VARIANTS, "turned", (kind, changes | sizes))
    return tiny_model("turned")


@torch.no_grad()
def test_a_long_document_does_not_turn_those_beside_it(turned):
    given = batch((20, 40, 32))
    expected = token_losses(turned, given)  # not wired yet: each by itself
    prepare(turned)
    assert (why_alone(turned), wiring_of(turned).longest) == ("", 32)
    torch.testing.assert_close(token_losses(turned, given), expected, atol=1e-4, rtol=1e-4)
    reached = batch((32, 32))  # as long as it may be
    with as_it_came(turned):
        expected = token_losses(tiny_model("turned"), reached)
    torch.testing.assert_close(token_losses(turned, reached), expected, atol=1e-4, rtol=1e-4)


def test_a_request_that_would_turn_those_beside_it_is_refused(turned):
    core = Core(turned, 2**26)
    assert core.why_alone == ""
    scripts = played(core, play(prompt_of(20), 2), play(prompt_of(27, 1)))  # 27 and 5: as many as may be
    assert max(distance(turned, script) for script in scripts) < 1e-4
    with pytest.raises(ConfigError, match="28 tokens, and 5 to come"):
        played(core, play(prompt_of(28)))
    torch.testing.assert_close(
        core.logits(prompt_of(40)), plain_logits(tiny_model("turned"), prompt_of(40)), atol=1e-4, rtol=1e-4
    )


def test_a_model_whose_rotation_stays_takes_texts_of_any_length(kind):
    model = tiny_model(kind)
    assert wire(model).longest is None


# -- several engines around one model


@pytest.mark.parametrize("kind", ["bloom", "bamba"])
def test_engines_on_two_threads_do_not_hear_each_other(kind):
    model = tiny_model(kind)
    cores = [Core(model, 2**26, 10) for _ in range(2)]
    heard = [None, None]

    def ask(at):
        heard[at] = played(cores[at], play(prompt_of(30, at), 2, 12, at), play(prompt_of(7, at + 5), 1, 12, at))

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(distance(model, script) for scripts in heard for script in scripts) < 1e-4


def test_the_adapters_of_two_engines_come_and_go_by_themselves():
    model = tiny_model("llama")
    name = "model.layers.0.self_attn.q_proj"
    layer, shape = model.get_submodule(name), (32, 32)
    x = torch.ones(1, 32)
    plain = layer(x)
    hooks = []
    for strength in (1.0, 2.0):
        bank = LoraBank({name: shape}, model.device, model.dtype)
        bank.put("it", None, {name: LowRank(torch.full((32, 1), strength), torch.ones(1, 32))})  # adds 32 * strength
        hooks.append(Hooks(bank, model))
    one, nobody = Step.of([("it", 1)], model.device), Step.of([(None, 1)], model.device)
    with torch.no_grad():
        for turn in (one, nobody, one):
            for own, strength in ((hooks[0], 1.0), (hooks[1], 2.0)):
                with own.during(turn):
                    added = 32 * strength if turn is one else 0
                    torch.testing.assert_close(layer(x), plain + added)
            with hooks[0].during(nobody):
                torch.testing.assert_close(layer(x), plain)


def test_an_adapter_reaches_the_layers_inside_of_modules_with_states():
    """For one request of three; beside a model with the adapter's product in its weights."""
    for kind in ("bamba", "jamba", "lfm2", "recurrent_gemma"):
        model, merged = tiny_model(kind), tiny_model(kind)
        core = Core(model, 2**26, 7)
        generator = torch.Generator().manual_seed(0)
        parts = {}
        for name, (inside, outside) in core.bank._shapes.items():
            if name.split(".")[-1] in ("in_proj", "out_proj", "linear_x", "x_proj"):
                down, up = (torch.randn(*shape, generator=generator) * 0.3 for shape in ((inside, 2), (2, outside)))
                parts[name] = LowRank(down, up)
                merged.get_submodule(name).weight.data += (down @ up).T
        assert parts
        core.bank.put("it", None, parts)
        scripts = played(
            core, *[play(prompt_of(length, length), 2) for length in (30, 18, 9)], adapters=(None, "it", None)
        )
        for script, wanted in zip(scripts, (model, merged, model), strict=True):
            assert distance(wanted, script) < 1e-4


def test_threads_that_come_with_one_model_get_one_wiring():
    model, started, found = tiny_model("qwen3_5_text"), threading.Barrier(4), []

    def come():
        started.wait()
        found.append(wire(model))

    threads = [threading.Thread(target=come) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(map(id, found))) == 1
    assert len(found[0].states) == len(set(found[0].states)) > 0
