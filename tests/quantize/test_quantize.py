"""A model in few bits, from its directory to another: what stands there, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from fewer_bits import DEVICE, LOOKING, names_in, options, run
from rounding import of_sums
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from danlu.config import validate
from danlu.device import Device
from danlu.errors import ConfigError, DataError, DiskError, InUse, MemoryShortage, ModelError, ParityError
from danlu.journal import claimed
from danlu.model.formats.table import FORMATS, stored
from danlu.model.load import load_model
from danlu.model.quantized import whole_layers
from danlu.quantize import driver, written
from danlu.quantize.divergence import of_logits
from danlu.quantize.driver import quantize
from danlu.quantize.options import QuantizeOptions
from tiny import make_tiny_model

METHODS = ("rtn", "awq", "gptq", "awq+gptq")
LAYER = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    """A directory of each method, and what was told of it."""
    folder = tmp_path_factory.mktemp("made")
    return {method: (folder / method, run(base, folder / method, method)) for method in METHODS}


def weights(directory):
    return whole_layers(load_model(directory, device=DEVICE, dtype=torch.float32)).state_dict()


@pytest.mark.parametrize("method", METHODS)
def test_a_directory_holds_all_that_a_model_needs(made, base, method):
    directory, told = made[method]
    assert told.layers == 14
    assert told.bytes < told.source_bytes
    assert {"config.json", "model.safetensors", "tokenizer.json", "origin.json"} <= set(names_in(directory))
    assert names_in(directory.parent) == sorted(METHODS)  # nothing beside it
    told_of = json.loads((directory / "config.json").read_text())["quantization_config"]
    rule = stored(told_of).rule(LAYER)
    assert (rule.format.name, rule.scheme.bits, rule.scheme.group_size) == (told.format, 4, 16)
    with safe_open(directory / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names  # tied
    assert f"{LAYER}.weight" not in names


@pytest.mark.parametrize(
    ("method", "named"), [("rtn", "pack-quantized"), ("awq", "awq"), ("gptq", "gptq"), ("awq+gptq", "awq")]
)
def test_each_method_has_its_own_format(made, method, named):
    assert made[method][1].format == named


@pytest.mark.parametrize("method", METHODS)
def test_what_is_read_is_near_the_original(made, base, method):
    original = load_model(base, device=DEVICE, dtype=torch.float32).state_dict()
    found = weights(made[method][0])
    assert torch.equal(found["model.embed_tokens.weight"], original["model.embed_tokens.weight"])
    if method == "rtn":
        off = (found[f"{LAYER}.weight"] - original[f"{LAYER}.weight"]).abs()
        span = original[f"{LAYER}.weight"].unflatten(1, (-1, 16))
        steps = ((span.amax(-1) - span.amin(-1)) / 15).repeat_interleave(16, 1)
        assert float((off / steps).max()) < 0.52  # half a step, and what float16 takes of it
    assert made[method][1].closeness.positions > 0


def test_methods_make_different_models(made, base):
    found = [weights(made[method][0])[f"{LAYER}.weight"] for method in METHODS]
    assert not any(torch.equal(found[at], found[at - 1]) for at in range(len(METHODS)))


def test_more_bits_are_nearer(base, tmp_path):
    near = [run(base, tmp_path / f"{bits}", bits=bits).closeness.mean_kl for bits in (8, 4, 3)]
    assert near == sorted(near)


def test_bytes_of_whole_rows_are_for_products_of_int8(base, tmp_path):
    assert run(base, tmp_path / "out", bits=8, group_size=None).format == "int-quantized"


def test_what_is_quantized_again_is_refused(made, tmp_path):
    with pytest.raises(ModelError, match=r"(?s)quantized already \(awq\).*danlu export"):
        run(made["awq"][0], tmp_path / "out")
    assert names_in(tmp_path) == []


def test_files_in_bfloat16_stay_so(base, tmp_path):
    model = load_model(base, device=DEVICE, dtype=torch.bfloat16)
    shutil.copytree(base, tmp_path / "half")
    model.save_pretrained(tmp_path / "half")
    run(tmp_path / "half", tmp_path / "out", "awq")
    found = load_file(tmp_path / "out" / "model.safetensors")
    kept = {name: one.dtype for name, one in found.items() if name.endswith(("norm.weight", "embed_tokens.weight"))}
    assert len(kept) == 6
    assert set(kept.values()) == {torch.bfloat16}


def test_a_model_larger_than_a_file_lies_in_several(base, tmp_path, monkeypatch):
    monkeypatch.setattr(written, "FILE_BYTES", 10_000)
    told = run(base, tmp_path / "out")
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-0000{at}-of-00003.safetensors" for at in (1, 2, 3)]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert told.bytes == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))


def test_rows_are_no_longer_than_the_model_has_positions(base, tmp_path):
    directory = shutil.copytree(base, tmp_path / "short")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32}))
    said = []
    run(directory, tmp_path / "out", "awq", said.append)
    assert said[0] == "rows of 32 tokens, not 64: the model has no more positions"


@pytest.mark.parametrize("method", METHODS)
def test_groups_of_zeros_stay_zero_and_finite(base, tmp_path, method):
    directory = shutil.copytree(base, tmp_path / "zeros")
    tensors = load_file(directory / "model.safetensors")
    for name, one in tensors.items():
        if "proj" in name:
            one[:, 16:32] = 0
            one[3] = 0
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    run(directory, tmp_path / "out", method)
    found = {name: one for name, one in weights(tmp_path / "out").items() if "proj" in name}
    assert all(bool(torch.isfinite(one).all()) for one in found.values())
    assert max(float(one[:, 16:32].abs().max()) for one in found.values()) < 1e-5


# -- experts ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """Four experts, of which each token takes two."""
    from answering import strengthen
    from transformers import AutoConfig, AutoModelForCausalLM

    directory = make_tiny_model(tmp_path_factory.mktemp("experts") / "model")
    config = AutoConfig.for_model(
        "mixtral", vocab_size=json.loads((directory / "config.json").read_text())["vocab_size"], hidden_size=32,
        intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
        max_position_embeddings=512, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    strengthen(AutoModelForCausalLM.from_config(config)).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("method", METHODS)
def test_experts_lie_one_by_one_under_the_names_of_their_files(experts, tmp_path, method):
    told = run(experts, tmp_path / "out", method, bits=8)
    assert told.layers == 2 * (4 + 4 * 3)
    names = set(load_file(tmp_path / "out" / "model.safetensors"))
    originals = {name.removesuffix(".weight") for name in load_file(experts / "model.safetensors")}
    parts = {name.rpartition(".")[0] for name in names}
    assert parts == originals
    assert "model.layers.0.block_sparse_moe.experts.3.w2" in parts
    left_out = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert "block_sparse_moe" in json.dumps(left_out)
    assert told.closeness.mean_kl < 0.05
    found, original = (load_model(one, device=DEVICE, dtype=torch.float32) for one in (tmp_path / "out", experts))
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert float(of_logits(original(ids).logits[0], found(ids).logits[0]).mean()) < 0.05


# -- the gate -----------------------------------------------------------------------------------------------


def _zeros(tensors):
    return {name: one + 0x11111111 if name.endswith("qzeros") else one for name, one in tensors.items()}


def _nibbles(tensors):
    def swapped(words):
        return ((words & 0x0F0F0F0F) << 4) | ((words >> 4) & 0x0F0F0F0F)

    return {name: swapped(one) if name.endswith("qweight") else one for name, one in tensors.items()}


def _scales(tensors):
    return {name: one.roll(1, 0) if name.endswith("scales") else one for name, one in tensors.items()}


BROKEN = {"wrong zeros": _zeros, "swapped nibbles": _nibbles, "scales off by one group": _scales}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_a_broken_file_is_refused(base, tmp_path, monkeypatch, fault, method):
    kind = type(FORMATS[method])
    own = kind.tensors
    monkeypatch.setattr(kind, "tensors", lambda self, *given: BROKEN[fault](own(self, *given)))
    with pytest.raises((ParityError, ModelError), match=r"its files stand for other weights|a zero in the files is"):
        run(base, tmp_path / "out", method, symmetric=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", BROKEN)
def test_a_fault_that_reader_and_writer_share_is_refused_by_the_answers(base, tmp_path, monkeypatch, fault):
    """The weights are read as they were written, and are not those of the model."""
    own = FORMATS["awq"].tensors
    monkeypatch.setattr(type(FORMATS["awq"]), "tensors", lambda self, *given: BROKEN[fault](own(*given)))
    monkeypatch.setattr(driver, "check_written", lambda *_: None)
    sound = run(base, tmp_path / "out", "rtn", bits=4, format="compressed-tensors").closeness.mean_kl
    with pytest.raises(ParityError, match="nats from the original's"):
        run(base, tmp_path / "broken", "awq", max_kl=2 * sound)
    assert not (tmp_path / "broken").exists()


def test_answers_that_differ_too_often_are_refused(base, tmp_path):
    with pytest.raises(ParityError, match=r"the same token likeliest at .* of \d+ positions\n  allowed: at least 100"):
        run(base, tmp_path / "out", bits=3, least_same=1.0)
    assert not (tmp_path / "out").exists()


# -- bad input ----------------------------------------------------------------------------------------------


def changed(base, directory, change):
    shutil.copytree(base, directory)
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def test_weights_that_are_no_numbers(base, tmp_path):
    def change(tensors):
        tensors[f"{LAYER}.weight"][3, 5] = torch.nan
        tensors[f"{LAYER}.weight"][4, 5] = torch.inf

    with pytest.raises(ModelError, match=f"{LAYER}: 2 of its weights are inf or nan"):
        run(changed(base, tmp_path / "model", change), tmp_path / "out")
    assert names_in(tmp_path) == ["model"]


def test_groups_that_do_not_divide(base, tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)group_size=24 does not divide a layer's 32 inputs.*take 16"):
        run(base, tmp_path / "out", group_size=24)
    assert names_in(tmp_path) == []


def test_what_a_format_cannot_hold(base, tmp_path):
    with pytest.raises(ConfigError, match="awq does not hold 8 bits"):
        run(base, tmp_path / "out", "awq", bits=8, format="awq")
    assert names_in(tmp_path) == []


def test_too_little_text(base, tmp_path):
    (tmp_path / "text.jsonl").write_text('{"text": "one two three"}\n')
    with pytest.raises(
        DataError, match=r"(?s)text\.jsonl: .* tokens, .* too little to calibrate on.*at least 64 tokens"
    ):
        run(base, tmp_path / "out", "gptq", calibration=str(tmp_path / "text.jsonl"), calibration_length=8)
    assert names_in(tmp_path) == ["text.jsonl"]


def test_without_text_of_its_own_it_is_pythons(base, tmp_path):
    said = []
    run(base, tmp_path / "out", "gptq", said.append, calibration=None)
    assert any("Python's documentation and Danlu's Chinese help; give texts of your own" in one for one in said)


def test_conversations_are_text_as_well(base, tmp_path):
    rows = [{"messages": [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "three"}]}] * 40
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = []
    run(base, tmp_path / "out", "gptq", said.append, calibration=str(tmp_path / "talks.jsonl"), calibration_length=8)
    assert any("tokens of" in one and "talks.jsonl" in one for one in said)


def test_a_kind_whose_layers_lie_otherwise(tmp_path):
    with pytest.raises(ModelError):
        run(make_tiny_model(tmp_path / "gpt2", architecture="gpt2"), tmp_path / "out")
    assert names_in(tmp_path) == ["gpt2"]


def test_too_little_memory(base, tmp_path):
    with pytest.raises(MemoryShortage, match=r"quantizing needs .*1\.0 kB are free"):
        quantize(base, tmp_path / "out", options("rtn"), Device("cpu", 1, 1000, has_bfloat16=False), lambda _: None)
    assert names_in(tmp_path) == []


def test_memory_that_ends_in_between_leaves_what_is_done(base, tmp_path, monkeypatch):
    _failing_at(1, monkeypatch, RuntimeError("[enforce fail] can't allocate memory: you tried"))
    with pytest.raises(MemoryShortage, match="what is done is kept"):
        run(base, tmp_path / "out", "gptq")
    assert names_in(tmp_path) == [".out.quantizing"]


def _failing_at(number, monkeypatch, error):
    own, calls = driver.METHODS["gptq"], []

    def method(*given):
        calls.append(1)
        if len(calls) == number + 1:
            raise error
        return own(*given)

    monkeypatch.setitem(driver.METHODS, "gptq", method)


def test_too_little_disk(base, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(DiskError, match="are to be written, 1 bytes are free"):
        run(base, tmp_path / "out")
    assert names_in(tmp_path) == []


def test_a_directory_of_something_else(base, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="exists and is no model"):
        run(base, tmp_path / "out")


def test_the_model_itself_is_not_written_over(base):
    with pytest.raises(ConfigError, match="which is read"):
        run(base, base)


def test_another_process_that_writes_there(base, tmp_path):
    with claimed(tmp_path / "out", lambda _: None), pytest.raises(InUse):
        run(base, tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "rtn", "calibration_tokens": 9}, "rtn looks at no text: calibration_tokens has no effect"),
        ({"method": "nf4", "bits": 8}, "nf4 is 4 bits in blocks of 64"),
        ({"method": "nf4", "group_size": 32}, "nf4 is 4 bits in blocks of 64"),
        ({"bits": 5}, "bits"),
        ({"calibration_length": 1024, "calibration_tokens": 512}, "calibration_length is more than"),
    ],
)
def test_options_that_cannot_be(given, said):
    with pytest.raises(ConfigError, match=said):
        validate(QuantizeOptions, given, where="test")


def test_what_follows_from_options():
    assert QuantizeOptions().scheme.symmetric is False
    assert QuantizeOptions(method="gptq").scheme.symmetric is True
    assert QuantizeOptions(bits=8).form == "compressed-tensors"
    assert QuantizeOptions(bits=8).scheme.symmetric is True
    assert (QuantizeOptions().form, QuantizeOptions(method="gptq", bits=3).form) == ("awq", "gptq")
    assert QuantizeOptions(bits=3).allowed_kl > QuantizeOptions().allowed_kl
    assert LOOKING["calibration_tokens"] < QuantizeOptions().calibration_tokens


def test_rounding_alone_parts_float32_from_itself(base, tmp_path):
    """8 bits of weights that are multiples of a step of their own lose nothing."""

    def change(tensors):
        for name, one in tensors.items():
            if one.ndim == 2 and "embed" not in name:
                one.copy_((one * 64).round().clamp(-100, 100) / 64)
                one[:, ::16], one[:, 1::16] = 127 / 64, -2.0

    told = run(changed(base, tmp_path / "model", change), tmp_path / "out", bits=8)
    assert told.closeness.mean_kl < of_sums(1.0, 64, 12)
    assert told.closeness.same_answers == 1.0
