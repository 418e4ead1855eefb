"""Adapters: what is attached and trained, and that what is saved is whole or not there."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections import namedtuple

import pytest
import torch
from pydantic import ValidationError
from rounding import assert_same_model

from danlu.device import Device
from danlu.errors import ConfigError, DiskError
from danlu.hub import quiet_transformers
from danlu.model.adapter_files import put_adapter
from danlu.model.adapters import attach, move_into_place, parameter_counts, save_adapter, save_whole
from danlu.model.load import load_model
from danlu.model.lora_options import LoraOptions
from tiny import make_tiny_model

CPU = Device("cpu", 1, 10**9, has_bfloat16=False)
IDS = torch.tensor([[5, 60, 7, 200, 9, 31]])
Usage = namedtuple("Usage", "total used free")


def base(directory, dtype=torch.float32):
    return load_model(directory, device=CPU, dtype=dtype)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def adapted(directory, seed=1, **options):
    """An adapter whose B is not zero."""
    model = attach(base(directory), LoraOptions(**{"r": 4, "lora_alpha": 8, **options}), seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(len(name)))
    return model.eval()


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


# --- options


def test_defaults_are_the_usual_ones():
    options = LoraOptions()
    assert (options.r, options.lora_alpha, options.lora_dropout) == (8, 16, 0.05)
    assert options.target_modules == "all-linear"


@pytest.mark.parametrize("options", [{"r": 0}, {"r": 4097}, {"lora_dropout": 1.0}, {"lora_alpha": 0}, {"rank": 8}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ValidationError):
        LoraOptions(**options)


def test_an_alpha_far_above_r_is_taken_for_a_slip():
    assert LoraOptions(r=2, lora_alpha=128).lora_alpha == 128  # 64 times r
    with pytest.raises(ValidationError, match="over 64 times r 2"):
        LoraOptions(r=2, lora_alpha=129)


# --- attaching


def test_trained_parameters_by_hand(tiny_model):
    plain = base(tiny_model)
    whole = sum(weight.numel() for weight in plain.parameters())
    model = attach(plain, LoraOptions(r=4), seed=0)
    # r * (in + out) for each layer: q 32->32 (4 heads of 8), k and v 32->16 (2 heads of 8), o 32->32,
    # gate and up 32->64, down 64->32; two blocks.
    block = 4 * ((32 + 32) + 2 * (32 + 16) + (32 + 32) + 2 * (32 + 64) + (64 + 32))
    assert block == 2048
    assert parameter_counts(model) == (2 * block, whole + 2 * block)


def test_chosen_layers_only(tiny_model):
    model = attach(base(tiny_model), LoraOptions(r=2, target_modules=("q_proj", "v_proj")), seed=0)
    # q: 2 * (32 + 32) = 128, v: 2 * (32 + 16) = 96; two blocks.
    assert parameter_counts(model)[0] == 2 * (128 + 96)
    trained = {name.split(".lora_")[0].split(".")[-1] for name, w in model.named_parameters() if w.requires_grad}
    assert trained == {"q_proj", "v_proj"}


def test_a_layer_can_be_named_by_its_place(tiny_model):
    model = attach(base(tiny_model), LoraOptions(r=2, target_modules=("1.self_attn.q_proj",)), seed=0)
    assert parameter_counts(model)[0] == 2 * (32 + 32)


def test_only_a_and_b_are_trained_and_the_head_gets_none(tiny_model):
    model = attach(base(tiny_model), LoraOptions(), seed=0)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trained
    assert all("lora_A" in name or "lora_B" in name for name in trained)
    assert not any("lm_head" in name for name in trained)


@pytest.mark.parametrize("init", ["gaussian", "kaiming"])
def test_it_starts_at_the_base(tiny_model, init):
    before = logits(base(tiny_model))
    model = attach(base(tiny_model), LoraOptions(init=init), seed=0).eval()
    assert torch.equal(logits(model), before)
    assert all((weight == 0).all() for name, weight in model.named_parameters() if "lora_B" in name)


def test_a_is_gaussian_with_standard_deviation_one_over_r(tiny_model):
    model = attach(base(tiny_model), LoraOptions(r=16), seed=0)
    values = torch.cat([w.detach().flatten() for name, w in model.named_parameters() if "lora_A" in name])
    # 2 blocks * 16 * (6 * 32 + 64) = 8192 draws: the mean is within 4 / sqrt(8192) of its spread, the spread
    # within 4 / sqrt(2 * 8192).
    assert len(values) == 8192
    assert abs(values.mean()) < 4 * (1 / 16) / 8192**0.5
    assert abs(values.std() * 16 - 1) < 4 / (2 * 8192) ** 0.5
    assert (values.abs() > 2 / 16).float().mean() == pytest.approx(0.0455, abs=0.01)  # a normal's tails


def test_the_seed_decides_how_it_starts(tiny_model):
    def first(seed):
        model = attach(base(tiny_model), LoraOptions(), seed)
        return next(w for name, w in model.named_parameters() if "lora_A" in name)

    assert torch.equal(first(3), first(3))
    assert not torch.equal(first(3), first(4))


def test_adapter_weights_are_float32_on_a_bfloat16_base(tiny_model):
    model = attach(base(tiny_model, torch.bfloat16), LoraOptions(), seed=0)
    kinds = {(weight.dtype, weight.requires_grad) for weight in model.parameters()}
    assert kinds == {(torch.float32, True), (torch.bfloat16, False)}


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3_text", "qwen3"])
def test_other_architectures_take_one_without_a_warning(tmp_path, architecture, capfd):
    directory = make_tiny_model(tmp_path, architecture=architecture)
    before = logits(base(directory))
    model = attach(base(directory), LoraOptions(), seed=0).eval()
    assert parameter_counts(model)[0] > 0
    assert torch.equal(logits(model), before)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("targets", "seen", "nearest"),
    [
        (("q_prj",), "no such layers: q_prj", "did you mean 'q_proj'"),
        (("q_proj", "nonsense"), "no such layers: nonsense", ""),  # PEFT alone would pass over it
        (("embed_tokens",), "no such layers: embed_tokens", ""),
        ((), "none named", ""),
    ],
)
def test_unknown_layers_are_refused_with_those_there_are(tiny_model, targets, seen, nearest):
    with pytest.raises(ConfigError) as caught:
        attach(base(tiny_model), LoraOptions(target_modules=targets), seed=0)
    assert seen in caught.value.seen
    assert nearest in caught.value.fix
    names = "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
    assert caught.value.allowed == f"all-linear, or some of {names}"


# --- saving


def test_a_saved_adapter_is_one_that_peft_reads(tiny_model, tmp_path):
    from peft import PeftModel

    model = adapted(tiny_model)
    save_adapter(model, tmp_path / "runs" / "adapter")
    with quiet_transformers():
        again = PeftModel.from_pretrained(base(tiny_model), str(tmp_path / "runs" / "adapter")).eval()
    assert_same_model(logits(again), logits(model), model.config)
    assert not torch.allclose(logits(again), logits(base(tiny_model)), atol=1e-2)
    read = put_adapter(base(tiny_model), tmp_path / "runs" / "adapter")
    assert_same_model(logits(read), logits(model), model.config)
    assert names_in(tmp_path / "runs") == ["adapter"]


def test_others_may_read_what_is_saved(tiny_model, tmp_path):
    before = os.umask(0o022)
    try:
        save_adapter(adapted(tiny_model), tmp_path / "adapter")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "adapter").iterdir()}
    assert modes == {0o644}
    assert stat.S_IMODE((tmp_path / "adapter").stat().st_mode) == 0o755


def test_a_continued_adapter_replaces_the_older_one(tiny_model, tmp_path):
    save_adapter(adapted(tiny_model, target_modules=("q_proj",)), tmp_path / "adapter")
    save_adapter(model := adapted(tiny_model), tmp_path / "adapter")
    assert_same_model(logits(put_adapter(base(tiny_model), tmp_path / "adapter")), logits(model), model.config)
    assert names_in(tmp_path) == ["adapter"]


@pytest.fixture
def older(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "file").write_text("older")
    return tmp_path / "made"


def write_new(staging):
    (staging / "file").write_text("new")


def test_what_is_written_appears_whole(older):
    save_whole(older, write_new)
    assert (older / "file").read_text() == "new"
    assert names_in(older.parent) == ["made"]


def test_parents_are_made(tmp_path):
    save_whole(tmp_path / "a" / "b", write_new)
    assert names_in(tmp_path / "a" / "b") == ["file"]


@pytest.mark.parametrize("fault", [RuntimeError("torn"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_leaves_the_older_one(older, fault):
    def write(staging):
        write_new(staging)
        raise fault

    with pytest.raises(type(fault)):
        save_whole(older, write)
    assert (older / "file").read_text() == "older"
    assert names_in(older.parent) == ["made"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_while_writing(older, number):
    def write(staging):
        write_new(staging)
        raise OSError(number, os.strerror(number), str(staging / "file"))

    with pytest.raises(DiskError, match=r"writing made/: (no space left|the disk quota)"):
        save_whole(older, write)
    assert (older / "file").read_text() == "older"
    assert names_in(older.parent) == ["made"]


def test_a_full_disk_that_safetensors_reports_in_words(tiny_model, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*args, **options):
        raise SafetensorError("Error while serializing: IoError(Os { code: 28, message: No space left on device })")

    monkeypatch.setattr("peft.peft_model.safe_save_file", full)
    with pytest.raises(DiskError, match="adapter: could not be written"):
        save_adapter(adapted(tiny_model), tmp_path / "adapter")
    assert names_in(tmp_path) == []


def test_too_little_room_is_said_before_anything_is_written(older, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 2 * 10**7, 2 * 10**7))
    with pytest.raises(DiskError, match=r"1\.50 GB are to be written, 20\.0 MB are free"):
        save_whole(older, lambda staging: pytest.fail("nothing may be written"), needs_bytes=1_500_000_000)
    assert (older / "file").read_text() == "older"
    assert names_in(older.parent) == ["made"]


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="a part of the path is a file"):
        save_whole(tmp_path / "file" / "run" / "adapter", write_new)


def test_a_move_that_fails_puts_the_older_one_back(older, tmp_path):
    with pytest.raises(FileNotFoundError):
        move_into_place(tmp_path / "never made", older)
    assert (older / "file").read_text() == "older"
    assert names_in(tmp_path) == ["made"]


def test_what_a_killed_process_left_does_not_stand_in_the_way(older, tmp_path):
    (tmp_path / ".made.old").mkdir()
    (tmp_path / ".made.old" / "file").write_text("much older")
    save_whole(older, write_new)
    assert (older / "file").read_text() == "new"
    assert names_in(tmp_path) == ["made"]


# --- rows of tokens


def learning(directory, tokens=(1, 2, 9), **options):
    return attach(base(directory), LoraOptions(r=2, **options), 0, tokens)


def token_parameters(model):
    return [name for name, weight in model.named_parameters() if weight.requires_grad and "trainable_tokens" in name]


def test_rows_of_tokens_are_trained_and_at_first_change_nothing(tiny_model):
    model = learning(tiny_model)
    assert len(token_parameters(model)) == 1  # the head is tied
    assert all(weight.dtype == torch.float32 for weight in model.parameters() if weight.requires_grad)
    torch.testing.assert_close(logits(model.eval()), logits(base(tiny_model)))


def test_a_head_of_its_own_has_rows_of_its_own(tmp_path):
    model = learning(make_tiny_model(tmp_path, architecture="qwen3"))
    assert len(token_parameters(model)) == 2


@pytest.mark.parametrize(
    ("chosen", "rows"), [("auto", [1, 2, 9]), (None, None), ((5,), [5]), ((7, 3), [3, 7])]
)  # fmt: skip
def test_which_rows_is_the_recipes_to_say(tiny_model, chosen, rows):
    model = learning(tiny_model, trainable_token_indices=chosen)
    told = model.peft_config["default"].trainable_token_indices
    assert told == (None if rows is None else {"model.embed_tokens": rows})


@pytest.mark.parametrize("tokens", [(), (1, 1), (-1,), "all"])
def test_tokens_that_mean_nothing_are_refused(tokens):
    with pytest.raises(ValidationError):
        LoraOptions(trainable_token_indices=tokens)


def test_tokens_without_a_row_are_refused(tiny_model):
    with pytest.raises(ConfigError, match=r"trainable_token_indices: \[320\]"):
        learning(tiny_model, trainable_token_indices=(2, 320))


def test_heads_that_do_more_than_a_product_are_refused(tmp_path):
    model = base(make_tiny_model(tmp_path))
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.lm_head.out_features))
    with pytest.raises(ConfigError, match="the head of llama is not a plain product"):
        attach(model, LoraOptions(r=2), 0, [1])


def test_an_adapter_of_the_head_leaves_no_room_for_rows(tiny_model):
    with pytest.raises(ConfigError, match="puts an adapter on the head, lm_head"):
        learning(tiny_model, target_modules=("q_proj", "lm_head"))


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text", "gpt2"])
def test_what_is_saved_with_rows_is_what_was_trained(tmp_path, architecture):
    directory = make_tiny_model(tmp_path / "model", architecture=architecture)
    model = learning(directory)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in (weight for weight in model.parameters() if weight.requires_grad):
            weight.normal_(0, 0.2, generator=generator)
    ids = torch.tensor([[1, 60, 2, 9, 31]])
    with torch.no_grad():
        trained = model.eval()(input_ids=ids).logits
        save_adapter(model, tmp_path / "adapter")
        again = put_adapter(base(directory), tmp_path / "adapter")
        torch.testing.assert_close(again(input_ids=ids).logits, trained)
        merged = again.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=ids).logits, trained, atol=1e-5, rtol=1e-5)
    is_tied = merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    assert is_tied == (architecture != "qwen3")
