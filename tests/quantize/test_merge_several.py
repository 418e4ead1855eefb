"""Several adapters, each with its weight, merged into one model through the gate."""

from __future__ import annotations

import json

import pytest
import torch
from merging import CPU, OPTIONS, make_adapter, names_in, run, strengthen
from safetensors.torch import load_file

from danlu import Engine
from danlu.cli import call
from danlu.errors import ConfigError, ModelError
from danlu.model.adapter_files import put_adapter
from danlu.model.load import load_model
from danlu.model.lora_sum import Weighted
from tiny import make_tiny_model


@pytest.fixture(scope="module", params=["llama", "qwen3"], ids=["tied", "untied"])
def base(request, tmp_path_factory):
    return strengthen(make_tiny_model(tmp_path_factory.mktemp("base") / request.param, architecture=request.param))


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    """Of other layers and ranks, one with a scale of its own, one with rows of tokens."""
    home = tmp_path_factory.mktemp("adapters")
    first = make_adapter(base, home / "first", rank_pattern={"q_proj": 2}, trainable_token_indices=[5, 60])
    return first, make_adapter(base, home / "second", use_rslora=True, target_modules=["q_proj", "down_proj"])


def merged_alone(base, adapter):
    from danlu.quantize.merge import fold

    return fold(load_model(base, device=CPU, dtype=torch.float32), adapter).state_dict()


def test_the_weights_are_the_bases_and_each_adapters_share(base, adapters, out):
    run(base, [Weighted(adapters[0], 0.75), Weighted(adapters[1], -0.5)], out)
    plain = load_model(base, device=CPU, dtype=torch.float32).state_dict()
    one, other = (merged_alone(base, adapter) for adapter in adapters)
    for name, weight in load_file(out / "model.safetensors").items():
        wanted = plain[name] + 0.75 * (one[name] - plain[name]) - 0.5 * (other[name] - plain[name])
        torch.testing.assert_close(weight, wanted, atol=1e-5, rtol=0)
    assert names_in(out.parent) == ["merged"]


def test_one_adapter_may_have_a_weight(base, adapters, out):
    run(base, [Weighted(adapters[1], 0.5)], out)
    plain, whole = load_model(base, device=CPU, dtype=torch.float32).state_dict(), merged_alone(base, adapters[1])
    for name, weight in load_file(out / "model.safetensors").items():
        torch.testing.assert_close(weight, (plain[name] + whole[name]) / 2, atol=1e-5, rtol=0)


def test_they_are_named_on_the_command_line(base, adapters, out, capsys):
    words = ["merge", str(adapters[0]), str(out), "--base", str(base), "--also", str(adapters[1])]
    assert call([*words, "--weights", "0.5", "0.25", "--max_new_tokens", "4"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "0.5 x " in said
    assert "0.25 x " in said
    assert "read and folded in" in said
    plain = load_model(base, device=CPU, dtype=torch.float32).state_dict()
    one, other = (merged_alone(base, adapter) for adapter in adapters)
    name = "model.layers.0.mlp.down_proj.weight"
    wanted = plain[name] + 0.5 * (one[name] - plain[name]) + 0.25 * (other[name] - plain[name])
    torch.testing.assert_close(load_file(out / "model.safetensors")[name], wanted, atol=1e-5, rtol=0)
    assert call([*words, "--weights", "0.5"]) != 0
    assert "1 weights for 2 adapters" in " ".join(capsys.readouterr().err.split())


def test_what_cannot_be_added_up_is_refused_before_anything_is_read(base, adapters, tmp_path, out, monkeypatch):
    dora = make_adapter(base, tmp_path / "dora", use_dora=True)
    monkeypatch.setattr("danlu.quantize.merge.load_model", None)
    with pytest.raises(ModelError, match="use_dora is True"):
        run(base, [Weighted(adapters[0]), Weighted(dora)], out)
    with pytest.raises(ConfigError, match="a number other than 0"):
        run(base, [Weighted(adapters[0]), Weighted(adapters[1], 0.0)], out)
    assert names_in(out.parent) == []


def test_adapters_of_two_bases_are_refused(base, adapters, tmp_path, out):
    wide = make_tiny_model(tmp_path / "wide", changes={"hidden_size": 64})
    with pytest.raises(ModelError, match="the adapters are of different bases"):
        run(base, [Weighted(adapters[0]), Weighted(make_adapter(wide, tmp_path / "other"))], out)
    assert names_in(out.parent) == []


def test_of_two_templates_one_must_be_named(base, adapters, tmp_path, out):
    import shutil

    other = shutil.copytree(adapters[1], tmp_path / "other")
    (other / "chat_template.jinja").write_text("{{ messages[0].content }}")
    both = [Weighted(adapters[0]), Weighted(other)]
    with pytest.raises(ConfigError, match="different chat templates"):
        run(base, both, out)
    run(base, both, out, OPTIONS, chat_template="chatml")
    assert Engine(str(out)).chat.tokenizer.chat_template.startswith("{")
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"


def test_the_sum_on_its_own_is_an_adapter_as_peft_reads_it(base, adapters, tmp_path):
    from danlu.model.lora_bank import Ends
    from danlu.model.lora_sum import write_sum

    model = load_model(base, device=CPU, dtype=torch.float32)

    def rows(layer, ids):
        return model.get_submodule(layer).weight.detach()[ids]

    write_sum([Weighted(one) for one in adapters], tmp_path / "sum", Ends.of(model).shapes, rows)
    put_adapter(model, tmp_path / "sum")
