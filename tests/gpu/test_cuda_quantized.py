"""Few bits on a GPU: files of quantized weights, weights in 4 bits that are trained over, and keys in 8 bits."""

from __future__ import annotations

import pytest
import torch
from devices import DEVICES, on
from merging import strengthen
from quantizing import make_quantized
from rounding import assert_same_model
from showing import Lines
from trainings import joined, metrics, recipe_of, write_data

from danlu import Engine, GenerationParams
from danlu.hub import import_bitsandbytes
from danlu.journal import Journal
from danlu.model.compute.packed import whole
from danlu.model.formats.table import FORMATS
from danlu.model.four_bit import FourBit, packed_layers
from danlu.model.grouped import Scheme
from danlu.model.load import load_model
from danlu.run import run
from tiny import make_tiny_model

pytestmark = pytest.mark.cuda
needs_bitsandbytes = pytest.mark.skipif(import_bitsandbytes() is None, reason="bitsandbytes is not installed")

TEXT = [(7 * at + 11) % 300 + 3 for at in range(40)]
CASES = {
    "awq": ("awq", Scheme(4, 32)),
    "gptq": ("gptq", Scheme(4, 32, symmetric=True)),
    "gptq, 8 bits": ("gptq", Scheme(8, 32)),
    "gptq, 3 bits": ("gptq", Scheme(3, 32, symmetric=True)),
    "packed": ("pack-quantized", Scheme(4, 16)),
    "bytes": ("int-quantized", Scheme(8, None, symmetric=True)),
}
KINDS = {"sft": {}, "dpo": {}, "ppo": {"ppo": {"advantage_estimator": "grpo"}}}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    changes = {"num_key_value_heads": 4}  # 3 bits want 32 outputs
    return strengthen(make_tiny_model(tmp_path_factory.mktemp("base") / "model", changes=changes))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_a_model_in_few_bits_scores_and_answers_as_on_the_cpu(base, tmp_path, case):
    name, scheme = CASES[case]
    source = make_quantized(base, tmp_path / "few", FORMATS[name], scheme)
    scores, answers = [], []
    for device in DEVICES:
        with on(device):
            engine = Engine(str(source), "float32")
            scores.append(engine.logits(TEXT).cpu())
            answers.append(engine.generate([TEXT], GenerationParams(max_new_tokens=12))[0].sequences[0].token_ids)
            config = engine._model.config
            engine.close()
    assert_same_model(scores[1], scores[0], config)
    assert answers[1] == answers[0]


def test_keys_and_values_in_eight_bits_are_those_of_the_cpu(base):
    answers = []
    for device in DEVICES:
        with on(device):
            engine = Engine(str(base), "float32", kv_dtype="int8")
            found = engine.generate([TEXT, TEXT[:9]], GenerationParams(max_new_tokens=12))
            answers.append([each.sequences[0].token_ids for each in found])
            engine.close()
    assert answers[1] == answers[0]


@needs_bitsandbytes
def test_four_bits_hold_the_same_values_on_both(base):
    said = []
    for name in DEVICES:
        with on(name) as device:
            model = load_model(base, device=device, dtype=torch.float32, four_bit=FourBit())
            said.append({at: whole(layer.weight, torch.float32).cpu() for at, layer in packed_layers(model).items()})
    assert said[0].keys() == said[1].keys()
    for at, values in said[0].items():
        # scales are in 8 bits of their own, and one that lies between two may fall to either
        assert (values - said[1][at]).abs().max() <= values.abs().max() / 64


def packed_run(kind, base, **changes):
    short = {"model": {"load_in_4bit": True}, "train": {"max_steps": 4, "save_steps": 2}, "prove": None}
    short |= {"lora": {"lora_dropout": 0.0}, **KINDS[kind]}  # devices draw apart
    return recipe_of(kind, base, **joined(short, changes))


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_over_them_learns_as_on_the_cpu(folder, base, kind):
    found = []
    for device in DEVICES:
        with on(device):
            found.append(metrics(run(packed_run(kind, base, name=device), Lines(), "")))
    expected, losses = found
    assert losses == pytest.approx(expected, rel=0.02, abs=0.02)


@needs_bitsandbytes
def test_a_run_over_them_is_merged_both_ways(folder, base):
    made = packed_run("sft", base, merge={"max_new_tokens": 3, "prompts": 2}, train={"max_steps": 6})
    directory = run(made, Lines(), "")
    assert any(event["kind"] == "merged onto" for event in Journal(directory).events())
    assert (directory / "merged" / "model.safetensors").is_file()


@needs_bitsandbytes
@pytest.mark.parametrize("optim", ["paged_adamw_32bit", "paged_adamw_8bit"])
def test_a_paged_optimizer_goes_with_them(folder, base, optim):
    losses = metrics(run(packed_run("sft", base, train={"optim": optim}), Lines(), ""))
    assert len(losses) == 4
