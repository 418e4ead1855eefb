"""A merged model is the base with its adapter."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from merging import CPU, make_adapter, names_in, run, strengthen
from rounding import of_model
from safetensors.torch import load_file
from wholes import make_tiny_whole

from danlu import Engine
from danlu.data.tokens.templates import CHATML
from danlu.errors import ModelError, ParityError
from danlu.hub import quiet_transformers
from danlu.model.adapter_files import put_adapter
from danlu.model.adapters import save_adapter
from danlu.model.load import load_model
from danlu.quantize import merge
from danlu.quantize.merge import MergeOptions
from tiny import make_tiny_model, make_tokenizer

IDS = torch.tensor([[5, 60, 7, 200, 9, 31]])


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


def plain(directory):
    """The model as plain transformers reads it."""
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()


# --- what comes out


def test_the_merged_model_is_a_plain_one_that_answers_as_the_adapter_does(base, adapter, out, capfd):
    parity, said = run(base, adapter, out)
    assert names_in(out.parent) == ["merged"]
    assert parity.prompts == len(merge.PROMPTS)
    assert parity.largest_logit_difference <= parity.tolerance / 4
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


def test_it_is_written_in_float16_where_that_is_asked(base, adapter, out):
    run(base, adapter, out, MergeOptions(dtype="float16"))
    assert {weight.dtype for weight in load_file(out / "model.safetensors").values()} == {torch.float16}


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


# --- a head tied to the embedding


def make_foreign_adapter(base, directory, **options):
    """An adapter that PEFT wrote for somebody else, every weight of it moved."""
    from peft import LoraConfig, get_peft_model

    options = {"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **options}
    with quiet_transformers():
        model = get_peft_model(load_model(base, device=CPU, dtype=torch.float32), LoraConfig(**options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in (w for w in model.parameters() if w.requires_grad):
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.3)
    save_adapter(model, directory)
    return directory


@pytest.mark.filterwarnings("ignore")  # PEFT says that such a merge goes wrong
@pytest.mark.parametrize(
    ("options", "stays_tied"),
    [
        ({"target_modules": ["q_proj", "lm_head"]}, False),
        ({"target_modules": ["q_proj", "embed_tokens"]}, False),
        ({"modules_to_save": ["lm_head"]}, False),
        ({"modules_to_save": ["embed_tokens"]}, False),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, False),
        ({"trainable_token_indices": [3, 4]}, True),
        ({}, True),
    ],
)
def test_a_tied_head_is_untied_where_the_adapter_parts_them(base, tmp_path, out, options, stays_tied):
    run(base, make_foreign_adapter(base, tmp_path / "adapter", **options), out)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is stays_tied
    assert ("lm_head.weight" in load_file(out / "model.safetensors")) is not stays_tied


# --- memory


PEAK = """
import sys, pathlib, torch
from danlu.device import PeakMemory, process_memory_bytes, read_device
from danlu.quantize.merge import MergeOptions, merge_checked, merging_bytes
from danlu.generate.engine import Engine
from tiny import make_tiny_model
torch.set_num_threads(1)
here = pathlib.Path(sys.argv[1])
small = make_tiny_model(here / "small")
options = MergeOptions(prompts=2, max_new_tokens=1, tolerance=1e6)
from merging import make_adapter
merge_checked(small, make_adapter(small, here / "a"), here / "out", [], options, read_device(), print)  # imports
wide = make_tiny_model(here / "wide", changes={"hidden_size": 2048, "intermediate_size": 8192})
adapter = make_adapter(wide, here / "b")
from danlu.device import release_memory
release_memory()
before, peak = process_memory_bytes("cpu"), PeakMemory("cpu")
peak.begin()
merge_checked(wide, adapter, here / "merged", [], options, read_device(), print)
print("bytes", peak.bytes() - before, merging_bytes(wide), sum(p.stat().st_size for p in wide.glob("*.safetensors")))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process's peak never falls")
def test_merging_holds_one_model(tmp_path):
    """540 MB of weights: what is taken beside them must be far from another 540."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PEAK, tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    taken, promised, weights = map(int, done.stdout.split("bytes")[-1].split())
    assert weights < taken < 1.5 * weights
    assert taken <= promised < 2 * weights
