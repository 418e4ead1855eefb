"""An engine made by a name: with an adapter, of what is not there, under a licence."""

from __future__ import annotations

import pytest
import torch
from answering import PROMPTS
from rounding import of_model

from danlu import Engine
from danlu.device import Device
from danlu.errors import ConfigError, ModelError, UnknownModel
from danlu.generate import engine as engine_module
from danlu.model.adapters import attach, save_adapter
from danlu.model.load import load_model
from danlu.model.lora_options import LoraOptions

CPU = Device("cpu", 1, 10**9, has_bfloat16=False)


def test_an_adapter_is_put_on(tiny_model, tmp_path):
    plain = Engine(str(tiny_model), dtype="float32")
    model = attach(load_model(tiny_model, device=CPU, dtype=torch.float32), LoraOptions(r=2), seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 1)
    save_adapter(model, tmp_path / "adapter")
    engine = Engine(str(tiny_model), dtype="float32", adapter=str(tmp_path / "adapter"))
    ids = engine.token_ids(PROMPTS[0])
    expected = Engine.around(model, engine.chat).logits(ids)
    tolerance = of_model(expected, model.config)
    torch.testing.assert_close(engine.logits(ids), expected, atol=tolerance, rtol=0)
    assert not torch.allclose(engine.logits(ids), plain.logits(ids), atol=30 * tolerance)


def test_what_cannot_be_loaded_is_said(tiny_model, tmp_path):
    with pytest.raises(UnknownModel):
        Engine("no such model")
    with pytest.raises(ConfigError, match="dtype"):
        Engine(str(tiny_model), dtype="float8")
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        Engine(str(tiny_model), adapter=str(tmp_path))


def test_a_licence_is_asked_for_and_can_be_accepted(monkeypatch, tmp_path):
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="accept_licence=true"):
        Engine("gemma3-270m")
    asked = []
    monkeypatch.setattr(engine_module, "load", lambda options, *args, **more: asked.append(options) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Engine("gemma3-270m", accept_licence=True)
    assert asked[0].accept_licence
