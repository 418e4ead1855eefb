"""A head that scores texts: what it reads, what it is measured in, and that transformers reads what is written."""

import json

import pytest
import torch
from peft import PeftModel
from rounding import of_model
from transformers import AutoModelForSequenceClassification

from danlu.data.batches.packing import collate
from danlu.data.example import Example
from danlu.device import Device
from danlu.errors import ModelError
from danlu.hub import quiet_transformers
from danlu.model.adapters import attach
from danlu.model.likelihood import prepare
from danlu.model.load import load_model
from danlu.model.lora_options import LoraOptions
from danlu.model.score_head import Scale, put_head, read_scale, save_with_head, scores, write_scale
from tiny import make_tiny_model

CPU = Device("cpu", 1, 10**9, has_bfloat16=False)
TEXTS = [[5, 60, 7, 9, 11, 40], [30, 31], list(range(40, 70))]


def batch():
    return collate([Example(tuple(ids), (False,) * len(ids)) for ids in TEXTS])


def moved(model):
    """With weights that a fresh adapter and a fresh model have not."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "embed" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text", "gpt2"])
def test_transformers_gives_the_scores_that_were_trained(tmp_path, architecture):
    directory = make_tiny_model(tmp_path / "model", architecture=architecture)
    model = moved(attach(load_model(directory, device=CPU, dtype=torch.float32), LoraOptions(r=4), seed=0)).eval()
    put_head(model, seed=1)
    prepare(model)
    found = scores(model, batch())
    (tmp_path / "adapter").mkdir()
    save_with_head(model, tmp_path / "adapter")
    classifier = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=1, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in classifier.named_parameters():  # the base was moved as well
            if "embed" in name:
                own = next(w for n, w in model.named_parameters() if n.endswith(name))
                weight.copy_(own)
    with quiet_transformers():
        loaded = PeftModel.from_pretrained(classifier, tmp_path / "adapter").eval()
    expected = torch.cat([loaded(input_ids=torch.tensor([ids])).logits[0] for ids in TEXTS])
    torch.testing.assert_close(found, expected, atol=of_model(expected[None], model.config), rtol=0)
    assert float(found.std()) > 0.1


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_whole_model_is_a_sequence_classifier(tmp_path, architecture):
    directory = make_tiny_model(tmp_path / "model", architecture=architecture)
    model = moved(load_model(directory, device=CPU, dtype=torch.float32)).eval()
    put_head(model, seed=1)
    found = scores(model, batch())
    (tmp_path / "whole").mkdir()
    save_with_head(model, tmp_path / "whole")
    classifier, loading = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "whole", dtype=torch.float32, output_loading_info=True
    )
    assert not loading["missing_keys"]
    expected = torch.cat([classifier.eval()(input_ids=torch.tensor([ids])).logits[0] for ids in TEXTS])
    torch.testing.assert_close(found, expected, atol=of_model(expected[None], model.config), rtol=0)


def test_what_comes_after_a_text_does_not_change_its_score(tmp_path):
    directory = make_tiny_model(tmp_path / "model")
    model = load_model(directory, device=CPU, dtype=torch.float32)
    put_head(model, seed=1)
    prepare(model)
    with torch.no_grad():
        alone = [scores(model, collate([Example(tuple(ids), (False,) * len(ids))])) for ids in TEXTS]
        torch.testing.assert_close(scores(model, batch()), torch.cat(alone))


def test_a_scale_has_mean_0_and_deviation_1_on_its_samples(tmp_path):
    found = torch.tensor([1.0, 3.0, 5.0, 7.0])
    scale = Scale.of(found)
    assert (scale.mean, scale.deviation, scale.samples) == (4.0, pytest.approx(5**0.5), 4)
    assert float(scale(found).mean()) == pytest.approx(0.0)
    assert float(scale(found).std(unbiased=False)) == pytest.approx(1.0)
    write_scale(tmp_path, scale, {"accuracy": 0.75})
    assert read_scale(tmp_path) == scale
    assert json.loads((tmp_path / "reward.json").read_text())["held_out"] == {"accuracy": 0.75}


def test_scores_that_do_not_differ_are_no_scale():
    with pytest.raises(ModelError, match="gives 3 different answers one score"):
        Scale.of(torch.ones(3))


def test_a_directory_without_a_scale_is_no_reward_model(tmp_path):
    with pytest.raises(ModelError, match="is no reward model"):
        read_scale(tmp_path)
    (tmp_path / "reward.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        read_scale(tmp_path)
