"""A pair head as files, and texts as what it reads: a source and a claim in one input.

The folder holds the encoder, or the adapter of a language model, with its tokenizer, the head (head.safetensors), and
pair.json: scale, temperature, what it has learnt from. The modules are heads.py's, training is pair_training.py's, what
rows become pairs pair_judge.py's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from danlu.device import Device
from danlu.errors import DataError
from danlu.evaluate.heads import Head, OrdinalHead, PairHead
from danlu.evaluate.sentences import evidence
from danlu.hub import Say, cache_directory, resolve, silent
from danlu.journal import write_atomic
from danlu.model.adapter_files import put_adapter
from danlu.model.adapters import attach
from danlu.model.likelihood import prepare
from danlu.model.load import load_encoder, load_model, load_tokenizer, read_json
from danlu.model.lora_options import LoraOptions

FILE = "pair.json"
HEAD = "head.safetensors"
_SPECIAL = 4  # beginning, two between, end


@dataclass(frozen=True)
class About:
    """What pair.json says.

    Attributes:
        encoder: what it grew from. scale: lowest and highest score. max_tokens: of a pair, the longest.
        temperature: logits are divided by it, so that the head is as sure as it is right (Guo et al. 2017).
        error: in deviations of its distribution, what nine of ten held-out pairs were off by at most.
        documents: digests of what it was trained on.
        pairs: trained on; held_out: what was found on others.
        lora: whether `encoder` is a language model, and the folder holds its adapter.
    """

    encoder: str
    scale: tuple[int, int]
    max_tokens: int
    temperature: float
    error: float
    documents: frozenset[str]
    pairs: int
    held_out: dict[str, float]
    lora: bool = False


class Made(NamedTuple):
    """A head, and the tokenizer of what it stands on."""

    head: Head
    tokenizer: Any


class Pairs:
    """Texts -> token ids of pairs.

    Args:
        tokenizer: the encoder's; it has tokens that begin and end a text.
        max_tokens: of a pair at most; the claim has half of them, the source what the claim leaves.
    """

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self._first, self._last = _ends(tokenizer)
        self._control = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
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
        """Without what a text spells out of control tokens: it would end where it does not."""
        ids: Iterable[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [token for token in ids if token not in self._control]


def _ends(tokenizer: Any) -> tuple[int, int]:
    known = tokenizer.sep_token_id, tokenizer.eos_token_id
    last = next((token for token in known if token is not None), None)
    first = next((one for one in (tokenizer.cls_token_id, tokenizer.bos_token_id, last) if one is not None), None)
    if first is None or last is None:
        raise DataError("the encoder's tokenizer has no token that ends a text", fix="name another encoder")
    return int(first), int(last)


def fresh(encoder: str, lora: LoraOptions | None, scores: int, device: Device, seed: int, say: Say = silent) -> Made:
    """A head that has learnt nothing, on an encoder, or, with `lora`, on a language model with a fresh adapter.

    Raises DataError for a language model without `lora`, and ModelError for an encoder with it.
    """
    directory = resolve(encoder, cache=cache_directory(), say=say)
    tokenizer = load_tokenizer(directory)
    if lora is not None:
        model = attach(load_model(directory, device=device, dtype=device.dtype("auto"), say=say), lora, seed)
        prepare(model)
        return Made(OrdinalHead(model, scores, seed), tokenizer)
    if any(name.endswith("ForCausalLM") for name in read_json(directory / "config.json").get("architectures") or ()):
        raise DataError(f"{encoder} is a language model", fix="give it an adapter (lora), or name an encoder")
    return Made(_on_encoder(directory, tokenizer, scores, device, seed), tokenizer)


def _on_encoder(directory: Path, tokenizer: Any, scores: int, device: Device, seed: int = 0) -> PairHead:
    return PairHead(load_encoder(directory, device=device), scores, int(tokenizer.pad_token_id), seed)


def save(head: Head, tokenizer: Any, about: About, folder: Path) -> None:
    """Write all three; pair.json last, so that a folder that has it is whole."""
    from safetensors.torch import save_file

    if isinstance(head, PairHead):
        head.encoder.save_pretrained(folder)
    elif isinstance(head, OrdinalHead):
        head.model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
    tokenizer.save_pretrained(folder)
    save_file(head.tensors(), folder / HEAD)
    document = asdict(about) | {"documents": sorted(about.documents)}
    write_atomic(folder / FILE, json.dumps(document, ensure_ascii=False, indent=1))


def load(folder: Path, device: Device) -> tuple[Head, Pairs, About]:
    """Raises DataError for a folder that holds none, or a torn one, and what `load_encoder` and `load_model` raise."""
    from safetensors.torch import load_file

    try:
        document = json.loads((folder / FILE).read_text("utf-8"))
        low, high = document["scale"]
        about = About(**{**document, "scale": (low, high), "documents": frozenset(document["documents"])})
        weights = load_file(folder / HEAD)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / FILE}: no pair head: {error}", fix="train it again") from None
    tokenizer, scores = load_tokenizer(folder), high - low + 1
    head: Head
    if about.lora:
        directory = resolve(about.encoder, cache=cache_directory())
        model = put_adapter(load_model(directory, device=device, dtype=device.dtype("auto")), folder)
        prepare(model)
        head = OrdinalHead(model, scores)
    else:
        head = _on_encoder(folder, tokenizer, scores, device)
    try:
        head.load_state_dict({**head.state_dict(), **weights})
    except RuntimeError as error:
        raise DataError(f"{folder / HEAD}: not the head of this version: {error}", fix="train it again") from None
    return head.eval(), Pairs(tokenizer, about.max_tokens), about
