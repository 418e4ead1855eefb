"""Training over weights in 4 bits: what they hold, gradients through them, runs, resuming, and merging both ways."""

from __future__ import annotations

import json
import shutil
from contextlib import closing

import pytest
import torch
from adapting import CPU
from killing import Place, killed_at
from merging import strengthen
from rounding import of_model
from safetensors.torch import load_file
from showing import Lines
from trainings import joined, metrics, recipe_of, write_data

from danlu import Engine
from danlu.cli import call
from danlu.errors import ConfigError, ModelError, ResourceError
from danlu.hub import quiet_transformers
from danlu.journal import Journal
from danlu.model.adapters import adapted_layers, attach, parameter_counts
from danlu.model.company.check import alone
from danlu.model.compute.packed import whole
from danlu.model.four_bit import FourBit, packed_layers, unpacked
from danlu.model.likelihood import prepare
from danlu.model.load import load_model
from danlu.model.lora_options import LoraOptions
from danlu.quantize.merge import fold
from danlu.quantize.packed_base import packing_of, read_base
from danlu.run import run
from tiny import make_tiny_model

pytestmark = pytest.mark.long

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

IDS = [5, 60, 7, 200, 9, 31]
PACKED = {"load_in_4bit": True}
FORMATS = [torch.float32, torch.bfloat16]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return strengthen(make_tiny_model(tmp_path_factory.mktemp("base") / "model"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    return tmp_path


def read(base, dtype=torch.float32, four_bit=FourBit()):  # noqa: B008 - frozen
    return load_model(base, device=CPU, dtype=dtype, four_bit=four_bit)


# --- what the 4 bits hold


def test_bits_of_a_weight():
    """4 + 8 / 64 + 32 / (64 * 256) = 4 + 0.125 + 0.001953125; without double quantization 4 + 32 / 64."""
    assert FourBit().bits == 4.126953125
    assert FourBit(is_double=False).bits == 4.5
    assert round(FourBit().bits, 3) == 4.127


@pytest.mark.parametrize("four_bit", [FourBit(), FourBit(is_double=False)], ids=["double", "single"])
def test_nf4_takes_the_nearest_of_its_sixteen_values(base, four_bit):
    """Dettmers et al. 2023, appendix E, has the values. The widest gap is from -1 to -0.6961928: a weight is off by
    half of it, 0.1519 of the largest of its 64, at most, and where scales are packed by their own error more. Layers
    of 32 inputs have two rows in a block."""
    packed, plain = read(base, four_bit=four_bit), load_model(base, device=CPU, dtype=torch.float32)
    layers = packed_layers(packed)
    assert len(layers) == 14
    for name, layer in layers.items():
        weight, taken = plain.get_submodule(name).weight.detach(), whole(layer.weight, torch.float32)
        blocks, found = weight.reshape(-1, 64), taken.reshape(-1, 64)
        largest = blocks.abs().amax(1, keepdim=True)
        slack = 0.01 if four_bit.is_double else 1e-6
        assert bool(((blocks - found).abs() <= (0.15191 + slack) * largest).all())
        values = (found / found.abs().amax(1, keepdim=True)).unique(sorted=True)
        assert len((values * 1e4).round().unique()) <= 17  # 16, and -1 and 1 by turns the largest


def test_the_ends_stay_as_they_are(base):
    packed, plain = read(base), load_model(base, device=CPU, dtype=torch.float32)
    for name, weight in plain.named_parameters():
        if "proj" not in name:
            assert torch.equal(packed.get_parameter(name), weight)
    assert parameter_counts(packed)[1] == parameter_counts(plain)[1]


# --- gradients


def pass_of(model):
    """Loss of a text and gradients of what is trained, in a pass of training without dropout."""
    from danlu.data.batches.packing import collate
    from danlu.data.example import Example
    from danlu.model.likelihood import token_losses

    batch = collate([Example(tuple(IDS), (False, *[True] * (len(IDS) - 1)), "here")])
    model.train()
    token_losses(model, batch).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """All of whose layers have inputs that are a multiple of 64."""
    changes = {"hidden_size": 64, "intermediate_size": 128}
    return strengthen(make_tiny_model(tmp_path_factory.mktemp("wide") / "model", changes=changes))


@pytest.mark.parametrize("dora", [False, True], ids=["fast", "pefts"])
def test_gradients_go_through_the_packed_weights_as_through_what_they_say(base, wide, dora):
    options = LoraOptions(r=4, lora_dropout=0, use_dora=dora)
    of = wide if dora else base
    packed, plain = attach(read(of), options, 0), attach(unpacked(read(of)), options, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for (_, one), (_, other) in zip(packed.named_parameters(), plain.named_parameters(), strict=True):
            if one.requires_grad:
                one += torch.randn(one.shape, generator=generator) * 0.05
                other.copy_(one)
    taken = prepare(packed)
    assert taken.get("lora", 0) == (0 if dora else 14)
    prepare(plain)
    found, wanted = pass_of(packed), pass_of(plain)
    assert found.keys() == wanted.keys()
    assert all(".lora_" in name for name in found)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-5)


def test_dora_is_refused_where_its_code_misreads_the_weights(base):
    """bitsandbytes on a CPU, of 32 inputs: what it takes out is nothing like what was packed."""
    with pytest.raises(ConfigError, match=r"misreads .*k_proj.* on a CPU"):
        attach(read(base), LoraOptions(use_dora=True), 0)


@pytest.mark.parametrize(("saved", "said"), [("o_proj", r"layers\.0\..*o_proj"), ("mlp", r"layers\.0\.mlp\.down_proj")])
def test_what_lies_in_4_bits_is_not_trained_whole(base, saved, said):
    with pytest.raises(ConfigError, match=rf"modules_to_save: model\.{said}.* lies in 4 bits"):
        attach(read(base), LoraOptions(modules_to_save=(saved,)), 0)
    attach(read(base), LoraOptions(modules_to_save=("lm_head", "norm")), 0)


# --- nothing changes them


@pytest.mark.parametrize("dtype", FORMATS)
def test_training_looking_and_saving_leave_them_as_they_are(base, tmp_path, dtype):
    """bitsandbytes itself lays them out anew, and rounds their scales, when they are first read outside of training."""
    from danlu.model.adapters import save_adapter

    model = attach(read(base, dtype), LoraOptions(r=4, lora_dropout=0), 0)
    prepare(model)

    def bits():
        return {n: (p.weight.data.clone(), whole(p.weight, torch.float32)) for n, p in packed_layers(model).items()}

    begun, first = bits(), alone(model.eval(), IDS)
    for _ in range(2):
        pass_of(model)
        model.eval()
        assert torch.equal(alone(model, IDS), first)
        model.state_dict()
        save_adapter(model, tmp_path / "adapter")
    for name, (packed, said) in bits().items():
        assert torch.equal(packed, begun[name][0])
        assert torch.equal(said, begun[name][1])


# --- runs

KINDS = {
    "sft": {},
    "dpo": {},
    "reward": {},
    "pretrain": {"lora": {}, "pretrain": {"weights": "pretrained"}},
    "ppo": {"ppo": {"advantage_estimator": "grpo"}},
}


def packed_run(kind, base, **changes):
    short = {"model": PACKED, "train": {"max_steps": 4, "save_steps": 1}, "prove": None, **KINDS[kind]}
    return recipe_of(kind, base, **joined(short, changes))


@pytest.mark.parametrize(
    "kind", ["sft", "ppo", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("dpo", "reward", "pretrain"))]
)
def test_every_kind_trains_and_a_killed_run_goes_on_as_it_would_have(folder, base, kind):
    whole_run = run(packed_run(kind, base, name="whole"), Lines(), "")
    recipe = packed_run(kind, base, resume="auto")
    assert killed_at(recipe, Place(2, 5))
    lines = Lines()
    run(recipe, lines, "")
    assert any(said.startswith("resumed after step") for said in lines.said)
    assert metrics(recipe.directory) == metrics(whole_run)
    one, other = (load_file(place / "adapter" / "adapter_model.safetensors") for place in (recipe.directory, whole_run))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_run_over_4_bits_does_not_go_on_over_16(folder, base):
    run(packed_run("sft", base, train={"max_steps": 1}), Lines(), "")
    with pytest.raises(ConfigError, match="the model's weights changed"):
        run(packed_run("sft", base, train={"max_steps": 1}, model={"load_in_4bit": False}, resume=True), Lines(), "")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora": None}, "load_in_4bit holds weights that are not trained"),
        ({"model": {"dtype": "float16"}}, "load_in_4bit computes in bfloat16 or float32, not in float16"),
        ({"model": {"load_in_4bit": False, "bnb_4bit_quant_type": "fp4"}}, "bnb_4bit_quant_type has no effect without"),
    ],
)
def test_what_does_not_fit_is_refused(base, changes, said):
    with pytest.raises(ConfigError, match=said):
        packed_run("sft", base, **changes)


def test_without_the_library_nothing_is_touched(folder, base, monkeypatch):
    monkeypatch.setattr("danlu.model.four_bit.import_bitsandbytes", lambda: None)
    with pytest.raises(ResourceError, match=r"needs bitsandbytes(?s:.*)danlu\[bitsandbytes\]"):
        run(packed_run("sft", base), Lines(), "")
    assert not (folder / "runs" / "sft").exists()


# --- merging


def merged_run(base, **changes):
    lines = Lines()
    short = {"merge": {"max_new_tokens": 3, "prompts": 2}, "train": {"max_steps": 6}}
    directory = run(packed_run("sft", base, **joined(short, changes)), lines, "")
    return directory, lines


def test_merged_both_ways_and_the_better_one_is_kept(folder, base):
    directory, lines = merged_run(base)
    event = next(row for row in Journal(directory).events() if row["kind"] == "merged onto")
    reason = event["reason"]
    losses = [float(part.split()[0]) for part in reason.split("loss ")[1].split(", ")]
    kept = "original" if losses[0] <= losses[1] else "dequantized"
    assert event["weights"] == kept
    assert "||quantization error|| / ||adapter's change|| = " in reason
    assert f"folded into the {kept} weights: {reason}" in lines.said
    adapter, packing = directory / "adapter", packing_of(directory / "adapter")
    wanted = fold(read_base(base, kept, packing, CPU), adapter).state_dict()
    for name, weight in load_file(directory / "merged" / "model.safetensors").items():
        torch.testing.assert_close(weight, wanted[name], atol=1e-6, rtol=0)


def test_the_ratio_is_what_it_is_by_hand(folder, base):
    directory, _ = merged_run(base, merge={"onto": "original"}, lora={"target_modules": ["down_proj"]})
    reason = Journal(directory).results()["parity"]["chosen_by"]
    plain, packed = load_model(base, device=CPU, dtype=torch.float32), read(base)
    file = load_file(directory / "adapter" / "adapter_model.safetensors")
    error = change = 0.0
    for block in (0, 1):
        name = f"model.layers.{block}.mlp.down_proj"
        said = whole(packed.get_submodule(name).weight, torch.float32)
        error += float((plain.get_submodule(name).weight.detach() - said).square().sum())
        a, b = (file[f"base_model.model.{name}.lora_{which}.weight"] for which in "AB")
        change += float((16 / 8 * b @ a).square().sum())
    assert (
        reason == f"named in the options; ||quantization error|| / ||adapter's change|| = {(error / change) ** 0.5:.3g}"
    )


@pytest.mark.parametrize("onto", ["original", "dequantized"])
def test_what_is_named_is_merged_into(folder, base, onto):
    directory, _ = merged_run(base, merge={"onto": onto})
    assert Journal(directory).results()["parity"]["onto"] == onto
    name, merged = "model.layers.0.mlp.up_proj", load_file(directory / "merged" / "model.safetensors")
    layer = adapted_layers(attach_of(base, directory, onto))[name]
    torch.testing.assert_close(
        merged[f"{name}.weight"], layer.get_base_layer().weight + layer.get_delta_weight("default"), atol=1e-6, rtol=0
    )


def attach_of(base, directory, onto):
    from danlu.model.adapter_files import put_adapter

    return put_adapter(read_base(base, onto, packing_of(directory / "adapter"), CPU), directory / "adapter")


def test_on_the_command_line_the_file_of_questions_chooses(folder, base, capsys):
    directory = run(packed_run("sft", base), Lines(), "")
    words = ["merge", str(directory / "adapter"), str(folder / "out"), "--max_new_tokens", "2", "--prompts", "2"]
    assert call([*words, "--prompts_path", str(folder / "chats.jsonl")]) == 0
    assert "weights: held-out loss " in " ".join(capsys.readouterr().out.split())
    assert call(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "folded into the original weights: nothing is held out to choose by; ||quantization error||" in said


# --- files that hold 4 bits themselves


@pytest.fixture(scope="module")
def packed_files(base, tmp_path_factory):
    directory = tmp_path_factory.mktemp("packed")
    with quiet_transformers():
        read(base).save_pretrained(directory)
    for path in base.glob("*.json*"):
        if not (directory / path.name).exists():
            shutil.copy(path, directory)
    shutil.copy(base / "chat_template.jinja", directory)
    return directory


def test_files_in_4_bits_answer_train_and_merge_as_what_they_say(folder, base, packed_files):
    wanted = alone(read(base), IDS)
    found = load_model(packed_files, device=CPU, dtype=torch.float32)
    assert torch.equal(alone(found, IDS), wanted)
    with closing(Engine(str(packed_files), dtype="float32")) as engine:
        torch.testing.assert_close(engine.logits(IDS), wanted, rtol=0, atol=of_model(wanted, found.config))
    made = {"prove": None, "train": {"max_steps": 2}, "merge": {"max_new_tokens": 2, "prompts": 2}}
    directory = run(recipe_of("sft", packed_files, name="on-packed", **made), Lines(), "")
    config = json.loads((directory / "merged" / "config.json").read_text())
    assert "quantization_config" not in config
    said = whole(found.model.layers[0].mlp.up_proj.weight, torch.float32)
    file = load_file(directory / "adapter" / "adapter_model.safetensors")
    a, b = (file[f"base_model.model.model.layers.0.mlp.up_proj.lora_{which}.weight"] for which in "AB")
    merged = load_file(directory / "merged" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    torch.testing.assert_close(merged, said + 2 * b @ a, atol=1e-5, rtol=0)


def test_they_are_not_packed_once_more(folder, packed_files):
    with pytest.raises(ModelError, match="quantized already"):
        run(packed_run("sft", packed_files), Lines(), "")


def test_the_choice_has_no_effect_on_an_adapter_over_whole_weights(folder, base):
    with pytest.raises(ConfigError, match=r"merge\.onto=original has no effect"):
        merged_run(base, model={"load_in_4bit": False}, merge={"onto": "original"})


def test_what_origin_says_is_read_or_refused(folder, base):
    directory = run(packed_run("sft", base, train={"max_steps": 1}), Lines(), "")
    path = directory / "adapter" / "origin.json"
    said = json.loads(path.read_text())
    assert (said["four_bit"], said["dtype"]) == ("nf4 double", "float32")
    path.write_text(json.dumps({**said, "four_bit": "nf3"}))
    with pytest.raises(ModelError, match="packed as 'nf3'"):
        packing_of(directory / "adapter")
