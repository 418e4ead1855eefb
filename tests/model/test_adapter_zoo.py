"""Adapters as PEFT itself writes them, of its many kinds: they load with its answers, or the true reason is told."""

from __future__ import annotations

import json
from contextlib import closing

import pytest
import torch
from adapting import CPU, edit_config, edit_weights, plain_model
from merging import run as merged
from merging import strengthen
from rounding import assert_same_model

from danlu import Engine, GenerationParams, MergedWeights
from danlu.errors import ModelError
from danlu.hub import quiet_transformers
from danlu.model.adapter_files import put_adapter
from danlu.model.load import load_model
from danlu.model.lora_files import why_not_plain
from danlu.quantize.export_adapter import export_gguf
from tiny import make_tiny_model

IDS = torch.tensor([[5, 60, 7, 200, 9, 31]])
# PEFT's options -> what those are told who read A and B alone; nothing where that is all there is.
ZOO = {
    "plain": ({}, ""),
    "rslora": ({"use_rslora": True}, ""),
    "patterns": ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"model\.layers\.1\.mlp\..*": 3}}, ""),
    "blocks": ({"layers_to_transform": [1], "layers_pattern": "layers"}, ""),
    "all linear": ({"target_modules": "all-linear"}, ""),
    "without some": ({"exclude_modules": r".*layers\.0.*"}, ""),
    "eva": ({"init_lora_weights": "orthogonal"}, ""),
    "dora": ({"use_dora": True}, "use_dora is True"),
    "biases of its own": ({"lora_bias": True}, "lora_bias is True"),
    "whole modules": ({"modules_to_save": ["norm"]}, "modules_to_save is"),
    "whole head": ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
    "head": ({"target_modules": ["q_proj", "lm_head"]}, "it holds the tensor base_model.model."),
    "embedding": ({"target_modules": ["q_proj", "embed_tokens"]}, "it holds the tensor base_model.model."),
    "rows": ({"trainable_token_indices": [5, 60]}, ""),
    "parameters": (
        {"target_modules": ["q_proj"], "target_parameters": ["layers.0.mlp.gate_proj.weight"]},
        "target_parameters is",
    ),
}


@pytest.fixture(scope="module", params=["llama", "qwen3"], ids=["tied", "untied"])
def base(request, tmp_path_factory):
    return strengthen(make_tiny_model(tmp_path_factory.mktemp("base") / "model", architecture=request.param))


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits[0]


def written(base, out, options):
    """(PEFT's own answer with an adapter each of whose weights was moved, its configuration)."""
    from peft import LoraConfig, get_peft_model

    chosen = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj", "down_proj"], **options}
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = get_peft_model(plain_model(base), LoraConfig(task_type="CAUSAL_LM", **chosen)).eval()
        with torch.no_grad():
            for weight in (weight for weight in model.parameters() if weight.requires_grad):
                weight += torch.randn(weight.shape) * 0.05
        model.save_pretrained(out)
    return logits(model), model.config


@pytest.mark.filterwarnings("ignore")  # PEFT warns of tied heads and of saved embeddings
@pytest.mark.parametrize(("options", "reason"), ZOO.values(), ids=ZOO)
def test_it_answers_as_peft_does_alone_and_merged_and_others_hear_the_reason(base, tmp_path, options, reason):
    adapter = tmp_path / "adapter"
    wanted, config = written(base, adapter, options)
    assert_same_model(logits(put_adapter(plain_model(base), adapter)), wanted, config)
    if "lora_bias" in options:
        with pytest.raises(ModelError, match=r"cannot be folded into its base: .*bias"):
            merged(base, adapter, tmp_path / "merged")
    else:
        merged(base, adapter, tmp_path / "merged")
        assert_same_model(logits(load_model(tmp_path / "merged", device=CPU, dtype=torch.float32)), wanted, config)
    told = why_not_plain(adapter, with_head=True)
    model = plain_model(base)
    if not reason:
        assert told is None
        MergedWeights(model).merge(adapter)
        assert_same_model(logits(model), wanted, config)
        return
    assert told is not None
    assert told.startswith(reason)
    for use in (lambda: MergedWeights(model).merge(adapter), lambda: export_gguf(adapter, base, tmp_path / "x", print)):
        with pytest.raises(ModelError) as caught:
            use()
        assert reason in caught.value.seen


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the base"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora', which changes the base"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is"),
        ({"alora_invocation_tokens": [1]}, "at work only after some tokens"),
        ({"init_lora_weights": "corda"}, "cannot be made again"),
        ({"a_field_of_tomorrow": {"x": 1}}, "a_field_of_tomorrow is"),
    ],
)
def test_what_a_configuration_says_beyond_plain_is_named(base, tmp_path, changes, said):
    written(base, tmp_path, {})
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ModelError) as caught:
        MergedWeights(plain_model(base)).merge(tmp_path)
    assert said in caught.value.seen


def refused_everywhere(base, adapter, match):
    """Put on, merged in memory, exported or merged: it is an error, and nothing is written."""
    for use in (
        lambda: put_adapter(plain_model(base), adapter),
        lambda: MergedWeights(plain_model(base)).merge(adapter),
        lambda: export_gguf(adapter, base, adapter / "x.gguf", print),
        lambda: merged(base, adapter, adapter / "merged"),
    ):
        with pytest.raises(ModelError, match=match):
            use()
    assert not (adapter / "merged").exists()


@pytest.mark.parametrize(
    "changes", [{"lora_alpha": 0}, {"alpha_pattern": {"q_proj": 0.0}}, {"lora_alpha": float("nan")}], ids=str
)
def test_an_alpha_that_takes_all_away_is_an_error_everywhere(base, tmp_path, changes):
    """The answers would be the base's, as with a B of zero; llama.cpp even takes the file for one without a scale."""
    written(base, tmp_path, {})
    edit_config(tmp_path, **changes)
    refused_everywhere(base, tmp_path, r"adapter_config\.json: alpha is (0|0\.0|nan) \(")


EXPERTS = {
    "their weights": {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    "their older names": {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]},
    "their router": {"target_parameters": ["mlp.gate.weight"]},
    "the whole of them": {"modules_to_save": ["experts"]},
}


@pytest.mark.parametrize("options", EXPERTS.values(), ids=EXPERTS)
def test_an_adapter_on_experts_answers_as_peft_does_in_an_engine_and_merged(tmp_path, options):
    """PEFT stands around the block of experts then, which the engine's own pass took for the block itself."""
    base = strengthen(make_tiny_model(tmp_path / "base", architecture="qwen3_moe"))
    wanted, config = written(base, tmp_path / "adapter", {"target_modules": ["q_proj"], **options})
    with closing(Engine(str(base), "float32", adapter=str(tmp_path / "adapter"))) as engine:
        answer = engine.generate([IDS[0].tolist()], GenerationParams(max_new_tokens=1))[0].sequences[0]
    assert answer.token_ids == (int(wanted[-1].argmax()),)
    merged(base, tmp_path / "adapter", tmp_path / "merged")
    assert_same_model(logits(load_model(tmp_path / "merged", device=CPU, dtype=torch.float32)), wanted, config)


def test_a_file_whose_keys_match_nothing_is_an_error_everywhere(base, tmp_path):
    """As adapters of wrapped models are (model.model.model): PEFT would load it with a warning, and without effect."""
    from safetensors.torch import load_file

    written(base, tmp_path, {})
    weights = load_file(tmp_path / "adapter_model.safetensors")
    moved = {name.replace("base_model.model.", "base_model.model.model."): weight for name, weight in weights.items()}
    edit_weights(tmp_path, {**dict.fromkeys(weights), **moved})
    refused_everywhere(base, tmp_path, r"do not match|no such layers")
