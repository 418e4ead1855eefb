"""What the text that GPTQ is fitted to does to texts of other kinds: languages, the size of tokens, damping.

    make bench-calibration CMRC=cmrc2018_dev.json WRITE=--write

The model is the one of benchmarks/quantize.py that was trained off its grid. H is that of the original's activations on
4,096 tokens, of Python's documentation and talks about it alone, or of all that `danlu quantize` looks at where it is
given nothing; as they are, where the first token outweighs all others, or every token at one size, as danlu has it. The
divergence from the original in 4 bits is that of benchmarks/quantize.py's texts, and of passages of CMRC 2018 where its
file is given.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import guides
import torch
from guides import QUANTIZATION
from machine import cpu_name
from quantize import CALIBRATED, WINDOW, original_of, wanted, windows
from quantize_models import directory_of

MODEL = "smollm2-135m, tuned"
EVERY = {"en": 4, "zh": 4, "talk": 2}  # windows that are looked at: each so many-th
PASSAGES = 4
# Reads what q_proj reads, or gate_proj.
SAME = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}


class Case(NamedTuple):
    """Whose text H is of, whether tokens count the same, and the share of damping; none of them: plain rounding."""

    text: str
    is_even: bool
    damping: float


CASES = (
    None,
    Case("english", False, 0.01),
    Case("english", True, 0.01),
    Case("english", True, 0.1),
    Case("own", False, 0.01),
    Case("own", True, 0.01),
    Case("own", True, 0.1),
)


def rows_of(text: str, chat: Any) -> list[torch.Tensor]:
    from danlu.data.records import Text
    from danlu.quantize import calibration

    records = calibration._own_records(chat)
    if text == "english":
        records = [one for one in records if not (isinstance(one, Text) and one.place == "danlu")]
    ids = (calibration._ids(one, chat) for one in records)
    return list(calibration.in_rows(ids, text, tokens=CALIBRATED["calibration_tokens"], length=512, at_least=1).rows)


class Subject:
    """The model, its layers, what they were, and H by text and by whether tokens count the same."""

    def __init__(self) -> None:
        from danlu.data.chat import Chat
        from danlu.device import read_device
        from danlu.model.load import load_model, load_tokenizer
        from danlu.quantize.blocks import Blocks
        from danlu.quantize.layers import file_names, layers_of

        place = directory_of(MODEL)
        self.model = load_model(place, device=read_device(), dtype=torch.float32)
        self.tokenizer = load_tokenizer(place)
        self.chat = Chat.of(self.tokenizer, self.model.generation_config)
        self.blocks, names = Blocks(self.model), file_names(self.model)
        each = range(len(self.blocks))
        self.layers = [layers_of(self.blocks.list[at], f"{self.blocks.name}.{at}", names) for at in each]
        self.own = {layer.name: layer.weight.clone() for layer in chain(*self.layers)}
        self.hessians: dict[str, dict[tuple[str, bool], torch.Tensor]] = {}

    def restore(self) -> None:
        for layer in chain(*self.layers):
            layer.weight.copy_(self.own[layer.name])

    def hessian(self, text: str, layer: Any, is_even: bool) -> torch.Tensor:
        if text not in self.hessians:
            self.restore()
            self.hessians = {text: self._heard(rows_of(text, self.chat))}
        return self.hessians[text][layer.name.removesuffix(layer.last) + SAME.get(layer.last, layer.last), is_even]

    def _heard(self, rows: list[torch.Tensor]) -> dict[tuple[str, bool], torch.Tensor]:
        from danlu.quantize.layers import listening

        found: dict[tuple[str, bool], torch.Tensor] = {}

        def hear(layers: Any, inputs: torch.Tensor) -> None:
            if layers[0].last in SAME:
                return
            even = inputs / inputs.square().mean(1, keepdim=True).sqrt()
            for is_even, one in ((False, inputs), (True, even)):
                gram = found.setdefault((layers[0].name, is_even), torch.zeros(one.shape[1], one.shape[1]))
                gram.addmm_(one.T, one, alpha=2)

        hidden = self.blocks.enter(rows)
        for at, layers in enumerate(self.layers):
            answers = []
            for row in hidden:
                with listening(layers, hear):
                    answers.append(self.blocks.run(at, row))
            hidden = answers
        return found

    def quantize(self, case: Case | None) -> None:
        from danlu.model.grouped import Scheme
        from danlu.quantize import gptq
        from danlu.quantize.rtn import rounded

        scheme = Scheme(4, 64, symmetric=True)
        for layer in chain(*self.layers):
            weight = self.own[layer.name]
            if case is None:
                made = rounded(weight, scheme)
            else:
                gptq.DAMPING = case.damping
                made = gptq.gptq(weight, self.hessian(case.text, layer, case.is_even), scheme).grouped
            layer.weight.copy_(made.weight())


def judged(subject: Subject, passages: Path | None) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Kind of text, ids, and the original's logits."""
    for kind, step in EVERY.items():
        for at, ids in list(enumerate(windows(MODEL, kind, 2048)))[::step]:
            yield kind, ids, wanted(MODEL, kind, at, ids)
    if passages is not None:
        documents = json.loads(passages.read_text("utf-8"))["data"]
        texts = [one["context"] for document in documents for one in document["paragraphs"]]
        for text in texts[:: len(texts) // PASSAGES][:PASSAGES]:
            ids = torch.tensor([subject.tokenizer(text, add_special_tokens=False)["input_ids"][:WINDOW]])
            yield "cmrc", ids, original_of(MODEL)(input_ids=ids).logits[0, :-1].float()


HEADS = {
    "en": "| fitted to | a token counts | damping | KL, English | Chinese guides | talk |",
    "zh": "| 校准文本 | 各 token 的权重 | 阻尼 | KL，英文 | 中文文档 | 对话 |",
}
OTHERS = {"en": " Chinese, CMRC |", "zh": " 中文，CMRC |"}
TEXTS = {
    "en": {"english": "Python's documentation, talks", "own": "and Danlu's Chinese help", None: "nothing: rounded"},
    "zh": {"english": "Python 文档与相关对话", "own": "再加Danlu的中文帮助", None: "不校准：直接取整"},
}
COUNTS = {"en": ("by its size", "once"), "zh": ("按大小", "相同")}
HOW = {
    "en": "KL in nats a token, of {model}, 4 bits, groups of 64; {cores} cores of {kind}; written by "
    "`make bench-calibration\nWRITE=--write`.",
    "zh": "KL 的单位是 nat/token；{model}，4 bit，每组 64 个；{cores} 核（{kind}）；由 `make bench-calibration\n"
    "WRITE=--write` 写入。",
}


def block(found: dict[Case | None, dict[str, float]], language: str) -> str:
    kinds = list(next(iter(found.values())))
    rows = [HEADS[language] + (OTHERS[language] if "cmrc" in kinds else ""), "|---" * (3 + len(kinds)) + "|"]
    for case, figures in found.items():
        cells = [TEXTS[language][case.text if case else None]]
        cells += [COUNTS[language][case.is_even], f"{case.damping:g}"] if case else ["–", "–"]
        rows.append(f"| {' | '.join([*cells, *(f'{figures[kind]:.3f}' for kind in kinds)])} |")
    return "\n".join(rows) + f"\n\n{HOW[language].format(model=MODEL, cores=os.cpu_count(), kind=cpu_name())}\n"


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cmrc", type=Path, help="cmrc2018_dev.json: Chinese that no method was shown")
    parser.add_argument("--write", action="store_true", help="put the table into the guides to quantization")
    asked = parser.parse_args()
    from danlu.quantize.divergence import of_logits

    subject = Subject()
    texts = list(judged(subject, asked.cmrc))
    found: dict[Case | None, dict[str, float]] = {}
    for case in CASES:
        subject.quantize(case)
        sums: dict[str, list[float]] = {}
        for kind, ids, logits in texts:
            each = of_logits(logits, subject.model(input_ids=ids).logits[0, :-1].float())
            sums.setdefault(kind, []).extend(each.tolist())
        found[case] = {kind: sum(one) / len(one) for kind, one in sums.items()}
        print(case, found[case], file=sys.stderr, flush=True)
    print(block(found, "en"))
    if asked.write:
        guides.write(QUANTIZATION, "calibration", lambda language: block(found, language))
    return 0


if __name__ == "__main__":
    sys.exit(main())
