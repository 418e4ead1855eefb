"""Tiny models with adapters for llama.cpp, and what Danlu says with them:  python tests/clients/adapted.py DIR

Of each kind that `danlu export-adapter` writes: KIND.gguf, KIND-lora.gguf, and in expected.json the log-probabilities
of the token after PROMPT, with the adapter and without. Runs in Danlu's own environment.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from adapting import make_adapter, plain_model
from ggufs import CASES, make_model, write_gguf

from danlu.model.adapter_files import put_adapter
from danlu.quantize.export_adapter import KINDS, export_gguf
from tiny import make_tokenizer

PROMPT = [5, 60, 7, 200, 9, 31, 77, 12]
# What llama.cpp's own format has no place for: scales by the root of the rank, and of some layers alone.
SCALES = {
    "use_rslora": True,
    "rank_pattern": {r".*\.0\..*(q_proj|c_attn|qkv_proj)": 2},
    "alpha_pattern": {r".*\.1\..*(o_proj|c_proj|out_proj)": 3},
}


@torch.no_grad()
def scores(model) -> list[float]:
    return torch.log_softmax(model(input_ids=torch.tensor([PROMPT])).logits[0, -1].float(), -1).tolist()


def write(kind: str, out: Path) -> dict[str, list[float]]:
    case = next(case for case, (_, own, _) in CASES.items() if own == kind)
    base = out / kind
    model = make_model(case)
    model.save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    layers = sorted(name for name, part in model.named_modules() if type(part).__name__ in ("Linear", "Conv1D"))
    targets = [name for name in layers if name.endswith(("_proj", "c_attn", "c_proj", "c_fc", "w1", "w2", "w3"))]
    adapter = make_adapter(base, out / f"{kind}-adapter", target_modules=targets, **SCALES)
    write_gguf(case, model, out / f"{kind}.gguf")
    export_gguf(adapter, base, out / f"{kind}-lora.gguf", print)
    return {"base": scores(model), "adapted": scores(put_adapter(plain_model(base), adapter))}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    found = {kind: write(kind, place) for kind in sorted(KINDS)}
    (place / "expected.json").write_text(json.dumps({"prompt": PROMPT, "kinds": found}))
