"""An encoder that reads two texts in one input, a source and a claim, with a head that says which score people give.

Both texts see each other in every layer, so that the head learns what in the one speaks for or against the other;
vectors of the two apart cannot tell that (Conneau et al. 2017 beside Devlin et al. 2019, on the same pairs). The folder
holds the encoder with its tokenizer, the head (head.safetensors), and pair.json: scale, temperature, what it has learnt
from. Training is pair_training.py's, what rows become pairs pair_judge.py's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danlu.device import Device, memory_faults, read_device
from danlu.errors import DataError
from danlu.evaluate.sentences import evidence
from danlu.journal import write_atomic
from danlu.model.load import load_encoder, load_tokenizer

FILE = "pair.json"
HEAD = "head.safetensors"
AT_ONCE_TOKENS = 4096
_SPECIAL = 4  # beginning, two between, end


@dataclass(frozen=True)
class About:
    """What pair.json says.

    Attributes:
        encoder: what it grew from. scale: lowest and highest score. max_tokens: of a pair, the longest.
        temperature: logits are divided by it, so that the head is as sure as it is right (Guo et al. 2017).
        documents: digests of what it was trained on.
        pairs: trained on; held_out: what was found on others.
    """

    encoder: str
    scale: tuple[int, int]
    max_tokens: int
    temperature: float
    documents: frozenset[str]
    pairs: int
    held_out: dict[str, float]


class Pairs:
    """Texts -> token ids of pairs.

    Args:
        tokenizer: the encoder's; it has tokens that begin and end a text.
        max_tokens: of a pair at most; the claim has half of them, the source what the claim leaves.
    """

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self._first, self._last = _ends(tokenizer)
        self._sizes: dict[str, int] = {}

    def ids(self, source: str, claim: str) -> list[int]:
        """Of the sentences of `source` that bear on the claim, and the claim."""
        ours = self._plain(claim)[: (self.max_tokens - _SPECIAL) // 2]
        most = self.max_tokens - _SPECIAL - len(ours)
        theirs = self._plain(evidence(source, claim, self._size, most))[:most]
        return [self._first, *theirs, self._last, self._last, *ours, self._last]

    def _size(self, text: str) -> int:
        if text not in self._sizes:
            self._sizes[text] = len(self._plain(text))
        return self._sizes[text]

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids


def _ends(tokenizer: Any) -> tuple[int, int]:
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if first is None or last is None:
        raise DataError("the encoder's tokenizer has no tokens that begin and end a text", fix="name another encoder")
    return int(first), int(last)


class PairHead(nn.Module):
    """Token ids -> logits of scores.

    Args:
        encoder: of transformers; its table of words stays as it is, for a few thousand pairs have few of them.
        scores: how many.
        seed: of the head's beginning.
    """

    def __init__(self, encoder: Any, scores: int, pad: int, seed: int = 0) -> None:
        super().__init__()
        self.encoder, self.pad = encoder, pad
        # bfloat16 products where the hardware has them: three times as fast on such a processor.
        self._is_lower = read_device().has_bfloat16
        dim = int(encoder.config.hidden_size)
        start = torch.randn(scores, dim, generator=torch.Generator().manual_seed(seed)) * 0.02
        self.weight = nn.Parameter(start.to(encoder.device))  # (scores, dim)
        self.bias = nn.Parameter(torch.zeros(scores, device=encoder.device))
        encoder.get_input_embeddings().weight.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def forward(self, ids: Tensor, is_text: Tensor) -> Tensor:
        """(rows, scores) float32 of ids and flags (rows, time), padded at the end."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._is_lower):
            states = self.encoder(input_ids=ids, attention_mask=is_text.long()).last_hidden_state  # (rows, time, dim)
        logits: Tensor = states[:, 0].float() @ self.weight.T + self.bias
        return logits

    def padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """ids and flags (rows, time)."""
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[self.pad] * (longest - len(row))] for row in rows], device=self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        return ids, torch.arange(longest, device=self.device) < lengths[:, None]

    @torch.no_grad()
    def logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """(rows, scores) float32 on the CPU, in order; neighbours in length are read together."""
        self.eval()
        found = torch.empty(len(rows), len(self.bias))
        batch: list[int] = []
        for at in [*sorted(range(len(rows)), key=lambda at: -len(rows[at])), None]:
            if batch and (at is None or len(rows[batch[0]]) * (len(batch) + 1) > AT_ONCE_TOKENS):
                ids, is_text = self.padded([rows[one] for one in batch])
                with memory_faults(f"out of memory in a pass over {ids.numel()} tokens", "give shorter texts"):
                    found[batch] = self(ids, is_text).cpu()
                batch = []
            if at is not None:
                batch.append(at)
        return found


def save(head: PairHead, tokenizer: Any, about: About, folder: Path) -> None:
    """Write all three; pair.json last, so that a folder that has it is whole."""
    from safetensors.torch import save_file

    head.encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file({"weight": head.weight.detach().cpu(), "bias": head.bias.detach().cpu()}, folder / HEAD)
    document = asdict(about) | {"documents": sorted(about.documents)}
    write_atomic(folder / FILE, json.dumps(document, ensure_ascii=False, indent=1))


def load(folder: Path, device: Device) -> tuple[PairHead, Pairs, About]:
    """Raises DataError for a folder that holds none, or a torn one, and what `load_encoder` raises."""
    from safetensors.torch import load_file

    try:
        document = json.loads((folder / FILE).read_text("utf-8"))
        low, high = document["scale"]
        about = About(**{**document, "scale": (low, high), "documents": frozenset(document["documents"])})
        weights = load_file(folder / HEAD)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / FILE}: no pair head: {error}", fix="train it again") from None
    tokenizer = load_tokenizer(folder)
    head = PairHead(load_encoder(folder, device=device), high - low + 1, int(tokenizer.pad_token_id))
    head.load_state_dict({name: weights[name] for name in ("weight", "bias")}, strict=False)
    return head.eval(), Pairs(tokenizer, about.max_tokens), about
