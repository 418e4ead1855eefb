"""Quantizing tiny models: options, and what lies in a directory."""

from __future__ import annotations

from pathlib import Path

from danlu.device import Device
from danlu.quantize.driver import quantize
from danlu.quantize.options import QuantizeOptions

DEVICE = Device("cpu", 1, 10**10, has_bfloat16=False)
# Some text that is at hand; what it says is not looked at.
TEXT = str(Path(__file__).resolve().parent.parent / "docs" / "generation.md")
LOOKING = {"calibration": TEXT, "calibration_tokens": 512, "calibration_length": 64}
QUICK = {"group_size": 16, "prompts": 2, "max_new_tokens": 4, "max_kl": 20.0}


def options(method, **more):
    looking = LOOKING if method not in ("rtn", "nf4") else {}
    return QuantizeOptions(method=method, **{**QUICK, **looking, **more})


def run(model, out, method="rtn", say=lambda _: None, **more):
    return quantize(model, out, options(method, **more), DEVICE, say)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())
