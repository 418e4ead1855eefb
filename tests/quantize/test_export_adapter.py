"""An adapter as llama.cpp's file: what the file adds to each tensor of the base's file makes the merged model's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
from adapting import make_adapter, plain_model
from ggufs import CASES, make_model
from ggufs import _tensors as tensors_of

from danlu.cli import call
from danlu.errors import ConfigError, InUse, ModelError
from danlu.journal import claimed
from danlu.model.adapter_files import put_adapter
from danlu.quantize.export_adapter import KINDS, export_gguf
from tiny import make_tiny_model, make_tokenizer

# A case of each kind that is exported.
ONE_EACH = {kind: next(case for case, (_, own, _) in CASES.items() if own == kind) for kind in KINDS}
SCALES = {
    "use_rslora": True,
    "rank_pattern": {r".*\.0\..*(q_proj|c_attn|qkv_proj)": 2},
    "alpha_pattern": {r".*\.1\..*(o_proj|c_proj|out_proj)": 3},
}


def base_of_case(case, directory):
    model = make_model(case)
    model.save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return model


def read(path):
    """(alpha, {tensor: (A, B)}) of an adapter's file, as llama.cpp takes it."""
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.type"].contents() == "adapter"
    assert reader.fields["adapter.type"].contents() == "lora"
    arrays = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    names = {name.removesuffix(".lora_a") for name in arrays if name.endswith(".lora_a")}
    assert len(arrays) == 2 * len(names)
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    return alpha, {name: (arrays[f"{name}.lora_a"], arrays[f"{name}.lora_b"]) for name in names}


def assert_is_the_merged_model(kind, base, merged, path):
    """llama.cpp's rule for each tensor: W + alpha / rank B A."""
    alpha, pairs = read(path)
    before, after = (tensors_of(kind, model) for model in (base, merged))
    changed = {name for name in after if not np.array_equal(before[name], after[name])}
    assert pairs.keys() == changed
    for name, (a, b) in pairs.items():
        made = before[name] + alpha / len(a) * (b @ a)
        np.testing.assert_allclose(made, after[name], atol=1e-5, rtol=0, err_msg=name)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("options", [{}, SCALES], ids=["plain", "scales"])
def test_base_and_file_are_the_merged_model(tmp_path, kind, options):
    model = base_of_case(ONE_EACH[kind], tmp_path / "base")
    layers = {name for name, part in model.named_modules() if type(part).__name__ in ("Linear", "Conv1D")}
    targets = sorted(name for name in layers if "." in name and "gate" not in name.split(".")[-1].split("_proj")[0])
    adapter = make_adapter(tmp_path / "base", tmp_path / "adapter", target_modules=targets, **options)
    out = tmp_path / "adapter.gguf"
    made = export_gguf(adapter, tmp_path / "base", out, print)
    assert made.layers == len(targets)
    assert (made.folded > 0) == bool(options)
    merged = put_adapter(plain_model(tmp_path / "base"), adapter).merge_and_unload()
    assert_is_the_merged_model(KINDS[kind], model, merged, out)


def test_a_head_of_its_own_goes_along_and_a_tied_one_is_refused(tmp_path):
    for name in ("qwen3", "llama, tied"):
        base = base_of_case(name, tmp_path / name)
        adapter = make_adapter(tmp_path / name, tmp_path / f"{name}-adapter", target_modules=["q_proj", "lm_head"])
        if name == "qwen3":
            export_gguf(adapter, tmp_path / name, tmp_path / "head.gguf", print)
            merged = put_adapter(plain_model(tmp_path / name), adapter).merge_and_unload()
            assert_is_the_merged_model("qwen3", base, merged, tmp_path / "head.gguf")
        else:
            with pytest.raises(ModelError, match="it is tied to the embedding"):
                export_gguf(adapter, tmp_path / name, tmp_path / "tied.gguf", print)


@pytest.fixture
def base(tiny_model):
    return tiny_model


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"modules_to_save": ["norm"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"trainable_token_indices": [3]}, "rows of tokens of its own"),
    ],
)
def test_what_llama_cpp_does_not_read_is_refused_with_its_reason(base, tmp_path, options, reason):
    adapter = make_adapter(base, tmp_path / "adapter", **options)
    with pytest.raises(ModelError, match=reason):
        export_gguf(adapter, base, tmp_path / "out.gguf", print)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_an_adapter_of_another_model_and_one_that_learnt_nothing_are_refused(base, tmp_path):
    other = make_tiny_model(tmp_path / "other", architecture="gpt2")
    with pytest.raises(ModelError, match="no such layers"):
        export_gguf(make_adapter(base, tmp_path / "one"), other, tmp_path / "out.gguf", print)
    idle = make_adapter(base, tmp_path / "two", strength=0.0)
    with pytest.raises(ModelError, match="4 of 4 layers have learnt nothing"):
        export_gguf(idle, base, tmp_path / "out.gguf", print)
    assert not (tmp_path / "out.gguf").exists()


def test_a_kind_that_was_not_compared_is_refused(tmp_path, base):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "cohere"}))
    with pytest.raises(ModelError, match="of cohere was not compared here"):
        export_gguf(make_adapter(base, tmp_path / "adapter"), tmp_path, tmp_path / "out.gguf", print)


def test_only_an_older_file_of_its_kind_is_replaced(base, tmp_path):
    adapter, out = make_adapter(base, tmp_path / "adapter"), tmp_path / "out.gguf"
    out.write_text("years of work")
    with pytest.raises(ConfigError, match="is no GGUF file"):
        export_gguf(adapter, base, out, print)
    with pytest.raises(ConfigError, match="is a directory"):
        export_gguf(adapter, base, adapter, print)
    assert out.read_text() == "years of work"
    out.write_bytes(b"GGUF, older")
    with claimed(out, print), pytest.raises(InUse):
        export_gguf(adapter, base, out, print)
    export_gguf(adapter, base, out, print)
    assert len(read(out)[1]) == 4


def test_from_the_command_line(base, tmp_path, capsys):
    adapter = make_adapter(base, tmp_path / "adapter", use_rslora=True)
    out = tmp_path / "out.gguf"
    assert call(["export-adapter", str(adapter), str(out), "--format", "gguf", "--base", str(base)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "4 layers of llama, 4 of them with a scale of their own" in said
    assert len(read(out)[1]) == 4


# The export dies by kill -9 before a byte is written, in the middle, and before the file has its name.
KILLED = """
import os, signal, sys
from pathlib import Path
import gguf
import danlu.quantize.export_adapter as export
base, adapter, out, at = sys.argv[1:]
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
if at == "name":
    export.os.replace = die
else:
    setattr(gguf.GGUFWriter, at, die)
export.export_gguf(Path(adapter), Path(base), Path(out), print)
"""


@pytest.mark.parametrize("at", ["write_kv_data_to_file", "write_tensors_to_file", "name"])
def test_killed_it_leaves_the_older_file_whole_and_the_next_one_clears_up(base, tmp_path, at):
    adapter, out = make_adapter(base, tmp_path / "adapter"), tmp_path / "made" / "out.gguf"
    export_gguf(adapter, base, out, print)
    before = out.read_bytes()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-W", "ignore", "-c", KILLED, str(base), str(adapter), str(out), at]
    assert subprocess.run(words, env=environment, capture_output=True).returncode == -signal.SIGKILL
    assert out.read_bytes() == before
    export_gguf(adapter, base, out, print)
    assert out.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ["out.gguf"]


def test_the_scales_are_what_they_are_by_hand(base, tmp_path):
    """r = 4, alpha = 8, rsLoRA: s = 8 / sqrt(4) = 4; with alpha = r = 4 in the file, B is four times as large."""
    from safetensors.torch import load_file

    adapter, out = make_adapter(base, tmp_path / "adapter", use_rslora=True), tmp_path / "out.gguf"
    export_gguf(adapter, base, out, print)
    alpha, pairs = read(out)
    b = load_file(adapter / "adapter_model.safetensors")[
        "base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight"
    ]
    assert alpha == 4
    assert torch.equal(torch.from_numpy(pairs["blk.0.attn_v.weight"][1]), 4 * b)
