"""A merged model is the base with its adapter, or it is not there."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from rounding import of_model
from safetensors.torch import load_file, save_file
from wholes import make_tiny_whole

from danlu import Engine
from danlu.data.templates import CHATML
from danlu.device import Device
from danlu.errors import ConfigError, DiskError, ModelError, ParityError
from danlu.hub import quiet_transformers
from danlu.model.adapters import LoraOptions, attach, save_adapter
from danlu.model.load import load_model, put_adapter
from danlu.quantize import merge
from danlu.quantize.merge import MergeOptions, merge_checked
from tiny import make_tiny_model, make_tokenizer

CPU = Device("cpu", 1, 10**9, has_bfloat16=False)
IDS = torch.tensor([[5, 60, 7, 200, 9, 31]])
OPTIONS = MergeOptions(max_new_tokens=8)


def strengthen(directory, dtype=torch.float32, seed=0):
    """Large random weights in the files, so that answers depend on the prompt."""
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(directory / "model.safetensors")
    for name in weights:
        if "norm" not in name:
            weights[name] = torch.randn(weights[name].shape, generator=generator) * 0.3
    weights = {name: weight.to(dtype) for name, weight in weights.items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def make_adapter(base, directory, scale=0.3, **options):
    model = attach(load_model(base, device=CPU, dtype=torch.float32), LoraOptions(r=4, **options), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    save_adapter(model, directory)
    return directory


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return strengthen(make_tiny_model(tmp_path_factory.mktemp("base") / "llama"))


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return make_adapter(base, tmp_path_factory.mktemp("adapter") / "adapter")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "products" / "merged"


def run(base, adapter, out, options=OPTIONS, prompts=(), **more):
    said = []
    parity = merge_checked(base, adapter, out, prompts, options, CPU, said.append, **more)
    return parity, said


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


def plain(directory):
    """The model as plain transformers reads it."""
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()


def names_in(directory):
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


# --- what comes out


def test_the_merged_model_is_a_plain_one_that_answers_as_the_adapter_does(base, adapter, out, capfd):
    parity, said = run(base, adapter, out)
    assert names_in(out.parent) == ["merged"]
    assert parity.prompts == len(merge.PROMPTS)
    assert parity.largest_logit_difference <= 1e-4
    with_adapter = put_adapter(load_model(base, device=CPU, dtype=torch.float32), adapter)
    expected = logits(with_adapter)
    torch.testing.assert_close(logits(plain(out)), expected, atol=of_model(expected, with_adapter.config), rtol=0)
    assert (logits(plain(out)) - logits(plain(base))).abs().max() > 0.1
    assert not any("lora" in name for name in load_file(out / "model.safetensors"))
    assert not list(out.glob("adapter*"))
    assert any("8 prompts" in line for line in said)
    assert capfd.readouterr() == ("", "")


def test_tokenizer_template_and_stop_tokens_come_along(base, adapter, out):
    run(base, adapter, out)
    before, after = Engine(str(base)).chat, Engine(str(out)).chat
    messages = [{"role": "user", "content": "丹炉"}]
    assert before.prompt(messages) == after.prompt(messages)
    assert before.stop_ids == after.stop_ids


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3_text", "qwen3"])
def test_other_architectures(tmp_path, architecture, out):
    base = make_tiny_model(tmp_path / "base", architecture=architecture)
    parity, _ = run(base, make_adapter(base, tmp_path / "adapter"), out)
    assert parity.answer_tokens > 0


def test_own_prompts_are_asked_and_no_more_than_allowed(base, adapter, out):
    prompts = [[{"role": "user", "content": text}] for text in ("one", "two", "three")]
    assert run(base, adapter, out, prompts=prompts)[0].prompts == 3
    assert run(base, adapter, out, MergeOptions(prompts=2, max_new_tokens=2), prompts)[0].prompts == 2


def test_an_older_merge_is_replaced(base, adapter, out):
    run(base, adapter, out)
    (out / "stale").write_text("")
    run(base, adapter, out)
    assert not (out / "stale").exists()
    assert names_in(out.parent) == ["merged"]


# --- dtype


def stored(directory):
    return {weight.dtype for weight in load_file(directory / "model.safetensors").values()}


def test_auto_is_the_dtype_of_the_bases_files(base, adapter, out):
    run(base, adapter, out)
    assert stored(out) == {torch.float32}
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"


def test_rounding_to_bfloat16_is_measured_and_refused_past_the_tolerance(base, adapter, out):
    """bfloat16 keeps 8 bits: weights are off by up to 1 / 512 of themselves, and logits by far more than 1e-3."""
    with pytest.raises(ParityError, match=r"merge\.dtype=float32"):
        run(base, adapter, out, MergeOptions(dtype="bfloat16", max_new_tokens=8))
    assert names_in(out.parent) == []


def test_rounding_passes_where_the_tolerance_allows_it(tmp_path, out):
    base = make_tiny_model(tmp_path / "base")  # weights of 0.02, so logits of about 0.1
    adapter = make_adapter(base, tmp_path / "adapter", scale=0.01)
    options = MergeOptions(dtype="bfloat16", max_new_tokens=1, tolerance=0.01)
    parity, _ = run(base, adapter, out, options)
    assert 1e-5 < parity.largest_logit_difference < 0.01
    assert stored(out) == {torch.bfloat16}


def test_a_bfloat16_base_is_merged_in_float32_where_rounding_changes_an_answer(tmp_path, out):
    base = strengthen(make_tiny_model(tmp_path / "base"), torch.bfloat16)
    adapter = make_adapter(base, tmp_path / "adapter")
    with pytest.raises(ParityError):
        run(base, adapter, out, MergeOptions(dtype="bfloat16", tolerance=1e-3, max_new_tokens=8))
    assert not out.exists()
    parity, _ = run(base, adapter, out, MergeOptions(tolerance=1e-3, max_new_tokens=8))
    assert stored(out) == {torch.float32}
    assert parity.dtype == "torch.float32"
    assert "in torch.bfloat16" in parity.reason


def test_a_bfloat16_base_stays_bfloat16_where_the_answers_stay(tmp_path, out):
    base = strengthen(make_tiny_model(tmp_path / "base"), torch.bfloat16)
    parity, _ = run(base, make_adapter(base, tmp_path / "adapter"), out, MergeOptions(tolerance=1e3, max_new_tokens=1))
    assert stored(out) == {torch.bfloat16}
    assert parity.reason == "the dtype of the base's files"


def test_float16_needs_a_gpu(base, adapter, out):
    with pytest.raises(ConfigError, match="float16 on a CPU"):
        run(base, adapter, out, MergeOptions(dtype="float16"))
    assert names_in(out.parent) == []


# --- what must not come out


@pytest.fixture
def tampered(monkeypatch):
    """One layer's weights are changed on their way to the disk."""
    own = merge.save_model

    def save(model, tokenizer, directory):
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight.mul_(3)
        own(model, tokenizer, directory)

    monkeypatch.setattr(merge, "save_model", save)


def test_tampered_weights_are_refused_with_both_continuations(base, adapter, out, tampered):
    with pytest.raises(ParityError, match=r"prompt \d+: greedy answers differ from token \d+ on: '.*' and '.*'"):
        run(base, adapter, out)
    assert names_in(out.parent) == []


def test_an_older_merge_stays_when_the_new_one_is_refused(base, adapter, out, tampered):
    shutil.copytree(base, out)
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(ParityError):
        run(base, adapter, out)
    assert (out / "model.safetensors").read_bytes() == before
    assert names_in(out.parent) == ["merged"]


def test_a_template_lost_on_the_way_is_found(base, adapter, out, monkeypatch):
    own = merge.save_model

    def save(model, tokenizer, directory):
        tokenizer.chat_template += "!"
        own(model, tokenizer, directory)

    monkeypatch.setattr(merge, "save_model", save)
    with pytest.raises(ParityError, match="the rendered ids differ"):
        run(base, adapter, out)
    assert names_in(out.parent) == []


def test_a_full_disk_leaves_the_older_one(base, adapter, out, monkeypatch):
    shutil.copytree(base, out)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(DiskError, match="GB are free"):
        run(base, adapter, out)
    assert names_in(out.parent) == ["merged"]


def test_an_adapter_of_another_model_is_refused(adapter, tmp_path, out):
    other = make_tiny_model(tmp_path / "other", architecture="gpt2")
    with pytest.raises(ModelError, match="adapter"):
        run(other, adapter, out)
    assert names_in(out.parent) == []


def test_a_directory_that_is_no_model_is_never_replaced(base, adapter, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="exists and is no model"):
        run(base, adapter, tmp_path / "home")
    with pytest.raises(ConfigError, match="exists and is no model"):
        run(base, adapter, tmp_path / "home" / "thesis.txt")
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"


def test_what_is_merged_from_is_never_replaced(base, adapter, tmp_path):
    own_base, own_adapter = tmp_path / "m" / "base", tmp_path / "m" / "adapter"
    shutil.copytree(base, own_base)
    shutil.copytree(adapter, own_adapter)
    for out in (own_base, own_adapter, tmp_path / "m", own_base / ".." / "adapter"):
        with pytest.raises(ConfigError, match="which is merged from"):
            run(own_base, own_adapter, out)
    assert names_in(tmp_path / "m") == ["adapter", "base"]


# --- a template of one's own


@pytest.fixture
def bare(base, tmp_path):
    """The base without a chat template, as base models are."""
    directory = shutil.copytree(base, tmp_path / "bare")
    (directory / "chat_template.jinja").unlink()
    return directory


def test_a_base_without_a_template_is_compared_on_raw_text(bare, adapter, out):
    parity, _ = run(bare, adapter, out)
    assert parity.prompts == len(merge.PROMPTS)


def test_the_template_beside_the_adapter_is_the_merged_models(bare, adapter, tmp_path, out):
    own = shutil.copytree(adapter, tmp_path / "own")
    (own / "chat_template.jinja").write_text(CHATML, "utf-8")
    run(bare, own, out)
    messages = [{"role": "user", "content": "hi"}]
    merged, served = Engine(str(out)), Engine(str(bare), adapter=str(own))
    assert merged.token_ids(messages) == served.token_ids(messages)
    with pytest.raises(ModelError, match="no chat template"):
        served.token_ids(messages, adapter="base")


@pytest.mark.parametrize("template", ["chatml", CHATML.replace("\n", "|")])
def test_the_merged_model_carries_the_template_trained_with(bare, adapter, out, template):
    run(bare, adapter, out, chat_template=template)
    text = Engine(str(out)).chat.tokenizer.decode(Engine(str(out)).token_ids([{"role": "user", "content": "hi"}]))
    expected = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert text == (expected if template == "chatml" else expected.replace("\n", "|"))


def test_the_base_may_be_the_language_part_of_a_multimodal_checkpoint(tmp_path, out):
    whole = make_tiny_whole(tmp_path / "whole", "gemma3")
    make_tokenizer().save_pretrained(tmp_path / "whole")
    adapter = make_adapter(tmp_path / "whole", tmp_path / "adapter")
    parity, _ = run(tmp_path / "whole", adapter, out)
    assert parity.dtype == "torch.float32"
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("gemma3_text", ["Gemma3ForCausalLM"])
    merged = load_model(out, device=CPU, dtype=torch.float32)
    assert not torch.allclose(logits(merged), logits(whole), atol=0.1)


def test_the_dtype_of_a_multimodal_base_may_stand_beside_its_text(tmp_path):
    (tmp_path / "config.json").write_text('{"text_config": {"dtype": "bfloat16"}}')
    assert merge._dtypes("auto", tmp_path, CPU) == [torch.bfloat16, torch.float32]
