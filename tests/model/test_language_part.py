"""The language part of a multimodal checkpoint answers text as the whole does, and the rest is never read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from rounding import assert_same_model
from safetensors.torch import load_file, save_file
from wholes import make_tiny_whole

from danlu.device import Device
from danlu.errors import MemoryShortage, ModelError
from danlu.model.adapters import save_model
from danlu.model.language_part import COMPARED, language_names
from danlu.model.load import load_model
from tiny import make_tokenizer

CPU = Device("cpu", 1, 10**9, has_bfloat16=False)
IDS = torch.arange(3, 40)[None]  # (rows, time)


@pytest.fixture(autouse=True)
def no_vision_package(monkeypatch):
    """Gemma 3n's eyes are a package that is not needed to leave them out: any weights stand for them."""
    from transformers.models.gemma3n import modeling_gemma3n

    made = modeling_gemma3n.AutoModel.from_config

    def from_config(config, **options):
        return torch.nn.Linear(4, 4) if config.model_type == "gemma3n_vision" else made(config, **options)

    monkeypatch.setattr(modeling_gemma3n, "AutoModel", type("AutoModel", (), {"from_config": from_config}))


def read(directory, **changes):
    return load_model(directory, **{"device": CPU, "dtype": torch.float32, **changes})


def answers(model):
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits  # (rows, time, vocab)


@pytest.mark.parametrize("kind", COMPARED)
def test_text_answers_are_those_of_the_whole(tmp_path, kind):
    whole = make_tiny_whole(tmp_path, kind)
    said = []
    part = read(tmp_path, say=said.append)
    assert not hasattr(part.config, "text_config")
    assert not any("vis" in name or "audio" in name for name in part.state_dict())
    assert not part.training
    assert_same_model(answers(part), answers(whole), part.config)
    assert len(said) == 1
    assert said[0].startswith(f"the language part of {type(whole).__name__} is used; ")


def test_what_is_left_out_is_said_in_one_sentence(tmp_path):
    make_tiny_whole(tmp_path, "gemma3")
    left_out = [name for name in load_file(tmp_path / "model.safetensors") if "language_model" not in name]
    said = []
    read(tmp_path, say=said.append)
    assert said == [
        "the language part of Gemma3ForConditionalGeneration is used; images are not read: "
        f"{len(left_out)} weights of multi_modal_projector, vision_tower left out"
    ]


def test_names_of_older_and_newer_files():
    names = {
        "model.language_model.layers.0.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight",
        "language_model.model.layers.0.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight",
        "model.text_model.norm.weight": "model.norm.weight",
        "language_model.lm_head.weight": "lm_head.weight",
        "lm_head.weight": "lm_head.weight",
        "model.layers.0.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight",  # Qwen2-VL
    }
    rest = [
        "visual.blocks.0.norm1.weight",
        "vision_tower.vision_model.head.weight",
        "mtp.norm.weight",
        "model.visual.x",
    ]
    assert language_names([*names, *rest]) == names


def test_the_head_is_the_embedding_where_the_whole_says_so(tmp_path):
    """Mistral 3 ties the two by the whole's configuration; its text model's own would leave the head random."""
    whole = make_tiny_whole(tmp_path, "mistral3", tie_word_embeddings=True)
    assert torch.equal(answers(read(tmp_path)), answers(whole))
    whole = make_tiny_whole(tmp_path, "mistral3", tie_word_embeddings=False)
    assert torch.equal(answers(read(tmp_path)), answers(whole))


def test_either_layout_of_names_is_read(tmp_path):
    """language_model.model.X, as Gemma 3 and Mistral 3 were published, or model.language_model.X, as Qwen 3.5 was."""
    whole = make_tiny_whole(tmp_path, "mistral3", tie_word_embeddings=False)
    path = tmp_path / "model.safetensors"
    old = load_file(path)
    assert {"language_model.lm_head.weight", "language_model.model.norm.weight"} < old.keys()
    assert torch.equal(answers(read(tmp_path)), answers(whole))
    new = {
        name.replace("language_model.model.", "model.language_model.").replace("language_model.lm_head.", "lm_head."): w
        for name, w in old.items()
    }
    save_file(new, path, metadata={"format": "pt"})
    assert torch.equal(answers(read(tmp_path)), answers(whole))


def test_weights_of_the_language_part_that_are_missing(tmp_path):
    make_tiny_whole(tmp_path, "gemma3")
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    del weights["language_model.model.norm.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack weights of Gemma3ForCausalLM: model\.norm\.weight"):
        read(tmp_path)


def test_weights_of_the_language_part_without_a_place_are_told(tmp_path):
    make_tiny_whole(tmp_path, "gemma3")
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {"language_model.model.odd": torch.ones(3)}, path, metadata={"format": "pt"})
    said = []
    read(tmp_path, say=said.append)
    assert said[1:] == ["weights that Gemma3ForCausalLM has no place for: model.odd"]


def test_only_what_is_read_needs_memory(tmp_path):
    whole = make_tiny_whole(tmp_path, "gemma3")
    text = 4 * sum(weight.numel() for weight in whole.model.language_model.parameters())
    assert 4 * sum(weight.numel() for weight in whole.parameters()) > text
    read(tmp_path, device=replace(CPU, memory_bytes=text))
    with pytest.raises(MemoryShortage):
        read(tmp_path, device=replace(CPU, memory_bytes=text - 4))


def test_it_is_saved_as_the_text_model_that_it_is(tmp_path):
    whole = make_tiny_whole(tmp_path / "whole", "qwen3_5")
    save_model(read(tmp_path / "whole"), make_tokenizer(), tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("qwen3_5_text", ["Qwen3_5ForCausalLM"])
    names = load_file(tmp_path / "saved" / "model.safetensors")
    assert all(name.startswith(("model.layers.", "model.norm.", "model.embed_tokens.", "lm_head.")) for name in names)
    said = []
    again = read(tmp_path / "saved", say=said.append)
    assert said == []
    assert torch.equal(answers(again), answers(whole))


def test_tokens_that_end_an_answer_are_those_of_the_whole(tmp_path):
    make_tiny_whole(tmp_path, "gemma3")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 106]}')
    assert read(tmp_path).generation_config.eos_token_id == [1, 106]
    assert read(tmp_path).name_or_path == str(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["text_config"]["eos_token_id"]
    path.write_text(json.dumps(config | {"eos_token_id": [1, 107]}))
    assert read(tmp_path).generation_config.eos_token_id == [1, 107]


def test_a_kind_whose_language_part_is_not_known_to_answer_alike(tmp_path):
    make_tiny_whole(tmp_path, "aya_vision")
    with pytest.raises(
        ModelError, match=r"AyaVisionForConditionalGeneration reads more than text(?s:.*)text-only release"
    ):
        read(tmp_path)
