"""Quantizing from the command line, and as a step of a recipe."""

from __future__ import annotations

import json
import shlex

import pytest
from showing import Lines

from danlu.chain import Chain
from danlu.cli import call
from danlu.config import validate
from danlu.errors import ConfigError
from danlu.hub import import_bitsandbytes
from danlu.journal import Journal
from danlu.run import product_of, run

QUICK = {"method": "rtn", "group_size": 16, "prompts": 2, "max_new_tokens": 2, "max_kl": 20.0}
FLAGS = shlex.split("--method rtn --group_size 16 --prompts 2 --max_new_tokens 2 --max_kl 20")


def chain(model, folder, **more):
    step = {"start": str(model), **QUICK, **more}
    return validate(Chain, {"name": "c", "runs": str(folder / "runs"), "steps": {"quantize": step}}, where="test")


def test_from_the_command_line(base, tmp_path, capfd):
    assert call(["quantize", str(base), str(tmp_path / "out"), *FLAGS, "--bits", "8"]) == 0
    said = capfd.readouterr().out
    assert "14 layers in 8 bits (rtn, files of pack-quantized)" in said
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--bits", "5"], "--bits"),
        (["--method", "rtn", "--calibration_tokens", "8"], "rtn looks at no text: --calibration_tokens has no effect"),
        (["--method", "magic"], "--method"),
    ],
)
def test_a_mistake_on_the_command_line(base, tmp_path, capfd, flags, said):
    assert call(["quantize", str(base), str(tmp_path / "out"), *flags]) == 2
    assert said in " ".join(capfd.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_as_a_step(base, tmp_path):
    recipe, show = chain(base, tmp_path), Lines()
    directory = run(recipe, show, "")
    journal = Journal(directory / "quantize")
    assert journal.results()["closeness"]["prompts"] == 2
    assert next(event for event in journal.events() if event["kind"] == "quantized")["layers"] == 14
    assert product_of(recipe).model == str(journal.model)
    told = json.loads((journal.model / "config.json").read_text())["quantization_config"]
    assert told["quant_method"] == "compressed-tensors"
    again = Lines()
    run(recipe, again, "")
    assert any("nothing has changed" in one for one in again.said)


def test_a_step_chooses(base, tmp_path):
    (tmp_path / "lines.jsonl").write_text(
        "".join(json.dumps({"text": f"line {at} of a text"}) + "\n" for at in range(64))
    )
    told = {"bits": "auto", "calibration": str(tmp_path / "lines.jsonl"), "max_loss": "50%", "judged_tokens": 256}
    journal = Journal(run(chain(base, tmp_path, **told), Lines(), "") / "quantize")
    choice = journal.results()["choice"]
    assert [one["name"] for one in choice["trials"] if "again" in one][-1] == choice["taken"]
    assert next(event for event in journal.events() if event["kind"] == "chosen")["reason"] == choice["reason"]
    page = (journal.directory / "report.html").read_text()
    assert "Loss by size" in page
    assert "Loss by speed" in page


def test_a_step_that_cannot_work_is_refused_before_it_begins(base, tmp_path):
    with pytest.raises(ConfigError, match="awq does not hold 8 bits"):
        run(chain(base, tmp_path, bits=8, format="awq"), Lines(), "")


@pytest.mark.skipif(import_bitsandbytes() is None, reason="needs bitsandbytes")
def test_nf4_is_what_bitsandbytes_reads(base, tmp_path, capfd):
    from danlu.device import Device
    from danlu.model.four_bit import packed_layers
    from danlu.model.load import load_model

    flags = shlex.split("--method nf4 --prompts 2 --max_new_tokens 2 --max_kl 20")
    assert call(["quantize", str(base), str(tmp_path / "out"), *flags]) == 0
    assert "14 layers in 4 bits (nf4, files of bitsandbytes)" in capfd.readouterr().out
    import torch

    model = load_model(tmp_path / "out", device=Device("cpu", 1, 10**9, has_bfloat16=False), dtype=torch.float32)
    assert len(packed_layers(model)) == 14
