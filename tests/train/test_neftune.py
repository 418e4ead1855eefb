"""Noise on embeddings: how far it reaches in each text, and whom it leaves alone."""

import math

import pytest
import torch
from showing import Lines
from trainings import metrics, recipe_of

from danlu.config import validate
from danlu.data.batches.packing import collate
from danlu.data.example import Example
from danlu.device import Device
from danlu.errors import ConfigError
from danlu.model.likelihood import prepare, token_losses
from danlu.model.load import load_model
from danlu.run import run
from danlu.train.loop import TrainOptions
from danlu.train.neftune import noisy_embeddings

ALPHA = 5.0
WIDTH = 32  # of the tiny model


@pytest.fixture
def model(tiny_model):
    model = load_model(tiny_model, device=Device("cpu", 1, 2**33, False), dtype=torch.float32)
    prepare(model)
    torch.manual_seed(0)
    return model.train()


def text(length, first=3):
    ids = tuple(3 + (first + at) % 200 for at in range(length))
    return Example(ids, (True,) * length, "x")


def noise_of(model, batch, draws=60):
    """(draws, tokens of the row, width) what was added to the embeddings."""
    found = []
    embedding = model.get_input_embeddings()
    with torch.no_grad(), noisy_embeddings(model, ALPHA):
        hook = embedding.register_forward_hook(lambda module, given, out: found.append(out - module.weight[given[0]]))
        for _ in range(draws):
            token_losses(model, batch)
        hook.remove()
    return torch.stack([one.reshape(-1, WIDTH) for one in found])


def assert_even(noise, length):
    """Drawn evenly from -m to m, with m of a text of so many tokens: its deviation is m / sqrt(3), its mean 0."""
    most = ALPHA / math.sqrt(length * WIDTH)
    count = noise.numel()
    assert noise.abs().max() <= most * 1.001
    # five deviations of the mean, and of the mean of squares: m^2 / 3, each with a deviation of m^2 sqrt(4 / 45)
    assert noise.mean().abs() < 5 * most / math.sqrt(3 * count)
    assert abs(noise.square().mean() - most**2 / 3) < 5 * most**2 * math.sqrt(4 / 45 / count)


def test_the_noise_of_each_text_in_a_row_is_that_of_its_own_length(model):
    lengths = [4, 30, 11]
    batch = collate([text(length, first=40 * at) for at, length in enumerate(lengths)])
    assert batch.places is None
    for noise, length in zip(noise_of(model, batch).split(lengths, dim=1), lengths, strict=True):
        assert_even(noise, length)


def test_it_is_drawn_anew_for_every_token_and_every_pass(model):
    noise = noise_of(model, collate([text(6)]), draws=2)
    assert len(set(noise.flatten().tolist())) == noise.numel()


def test_a_beginning_that_texts_share_has_one_noise_by_one_of_them(model):
    one = Example((*text(20).token_ids, 7), (True,) * 21, "x")
    other = Example((*text(20).token_ids, 8, 9, 10), (True,) * 23, "x")
    batch = collate([one, other])
    assert batch.tokens == 24
    noise = noise_of(model, batch)
    shared = batch.places[0, :20]
    assert_even(noise[:, shared], 21)
    assert_even(noise[:, batch.places[0, 20:21]], 21)
    assert_even(noise[:, batch.places[1, 20:23]], 23)


def test_a_text_that_is_read_by_itself_has_its_own_length(model, monkeypatch):
    monkeypatch.setattr(model, "danlu_alone", "each by itself", raising=False)
    noise = []
    embedding = model.get_input_embeddings()
    with torch.no_grad(), noisy_embeddings(model, ALPHA):
        embedding.register_forward_hook(lambda module, given, out: noise.append((out - module.weight[given[0]])[0]))
        for _ in range(60):
            token_losses(model, collate([text(5), text(17, first=90)]))
    by_length = {len(one): torch.stack([x for x in noise if len(x) == len(one)]) for one in noise}
    assert by_length.keys() == {5, 17}
    for length, found in by_length.items():
        assert_even(found, length)


def test_in_evaluation_and_afterwards_there_is_none(model):
    batch = collate([text(9)])
    clean = token_losses(model.eval(), batch)
    with noisy_embeddings(model, ALPHA):
        assert torch.equal(token_losses(model.eval(), batch), clean)
        assert not torch.equal(token_losses(model.train(), batch), clean)
    assert torch.equal(token_losses(model.train(), batch), clean)


def test_in_a_run_what_is_learnt_is_noisy_and_what_is_held_out_is_not(folder, tiny_model):
    # at so small a rate float32 weights of LoRA's A stay; B leaves 0 by 1e-12
    given = {"lora": {"lora_dropout": 0}, "train": {"learning_rate": 1e-12, "max_steps": 2, "eval_steps": 1}}
    found = []
    for name, alpha in (("clean", None), ("noisy", 200.0)):
        changes = {**given, "train": {**given["train"], "neftune_noise_alpha": alpha}}
        found.append(run(recipe_of("sft", tiny_model, name=name, prove=None, **changes), Lines(), ""))
    clean, noisy = found
    assert metrics(noisy, "eval_loss") == pytest.approx(metrics(clean, "eval_loss"), rel=1e-6)
    assert all(abs(a - b) > 1e-3 for a, b in zip(metrics(noisy), metrics(clean), strict=True))


def test_without_it_is_off_however_it_is_said():
    assert TrainOptions(neftune_noise_alpha=0) == TrainOptions(neftune_noise_alpha=None) == TrainOptions()


@pytest.mark.parametrize(
    ("kind", "said"), [("dpo", "the reference reads without noise"), ("ppo", "the ratio would differ from 1")]
)
def test_where_two_readings_are_compared_it_is_refused(tiny_model, kind, said):
    recipe = type(recipe_of(kind, tiny_model))
    document = recipe_of(kind, tiny_model).model_dump(mode="json")
    document["train"]["neftune_noise_alpha"] = 5
    with pytest.raises(ConfigError, match=said):
        validate(recipe, document, where="test")
