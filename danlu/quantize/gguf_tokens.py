"""A tokenizer -> what a GGUF file says of it: tokens, their kinds, merges or scores, how words are cut, what is added.

Two kinds are written: byte-level BPE ("gpt2" there), whose way of cutting words must be one that llama.cpp knows by
name, and BPE over pieces with bytes to fall back on ("llama": SentencePiece's), whose scores are the order of merges.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from danlu.data.chat import Chat
from danlu.errors import ModelError
from danlu.model.load import read_json

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
# Names that llama.cpp has for ways of cutting words; of several for one way, the first in this order.
NAMES = ("llama-bpe", "qwen2", "gpt-4o", "tekken", "qwen35")
CONVERTER = "turn the model into a GGUF file with llama.cpp's own converter"


@dataclass(frozen=True)
class Tokens:
    """What the file says.

    Attributes:
        model: gpt2 or llama.
        pre: how words are cut; of gpt2.
        scores: of llama. merges: of gpt2.
    """

    model: str
    tokens: Sequence[str]
    types: Sequence[int]
    pre: str = ""
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()
    has_prefix: bool = False


def tokens_of(tokenizer: Any, rows: int) -> Tokens:
    """What the file says of this tokenizer, for a model with so many rows. Raises ModelError for other kinds."""
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    model = document["model"]
    if model.get("type") != "BPE":
        raise ModelError(f"the tokenizer is of the kind {model.get('type')}", allowed="BPE", fix=CONVERTER)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    tokens, types = _listed(model["vocab"], document["added_tokens"], tokenizer, rows)
    if model.get("byte_fallback"):
        types = [
            BYTE if _is_byte(token) and kind == NORMAL else kind for token, kind in zip(tokens, types, strict=True)
        ]
        scores = _scores(tokens, model["merges"])
        return Tokens("llama", tokens, types, scores=scores, has_prefix=_has_prefix(document))
    return Tokens("gpt2", tokens, types, pre=_cutting(document.get("pre_tokenizer")), merges=merges)


def turn_end(source: Path, tokenizer: Any) -> int | None:
    """The token that ends an answer, where it is another than the tokenizer's end of a text: as the chat template
    writes it, or as generation_config.json names one."""
    path = source / "generation_config.json"
    told = read_json(path).get("eos_token_id") if path.is_file() else None
    try:
        chat = Chat.of(tokenizer, SimpleNamespace(eos_token_id=told))
    except ModelError:  # nothing ends its texts
        return None
    others = sorted(chat.stop_ids - {tokenizer.eos_token_id})
    return chat.end_of_turn if chat.end_of_turn in others else next(iter(others), None)


def _listed(
    vocabulary: Mapping[str, int], added: Sequence[Mapping[str, Any]], tokenizer: Any, rows: int
) -> tuple[list[str], list[int]]:
    """Token and kind of each row; rows without a token are marked as unused."""
    tokens, types = [f"[PAD{row}]" for row in range(rows)], [UNUSED] * rows
    if (most := max([*vocabulary.values(), *(one["id"] for one in added)])) >= rows:
        raise ModelError(
            f"the tokenizer has a token {most}, and the model {rows} rows", fix="use the tokenizer it was trained with"
        )
    for token, row in vocabulary.items():
        tokens[row], types[row] = token, NORMAL
    for one in added:
        tokens[one["id"]], types[one["id"]] = one["content"], CONTROL if one["special"] else USER
    unknown = tokenizer.unk_token_id
    if unknown is not None and types[unknown] in (NORMAL, CONTROL) and tokenizer.unk_token == "<unk>":
        types[unknown] = UNKNOWN
    return tokens, types


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _scores(tokens: Sequence[str], merges: Sequence[Any]) -> list[float]:
    """The earlier a token is made by a merge, the higher it scores, which is what merges were made from."""
    order: dict[str, int] = {}
    for at, merge in enumerate(merges):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        order.setdefault(left + right, at)
    last = float(len(merges))
    return [-float(order.get(token, last)) for token in tokens]


def _has_prefix(document: Mapping[str, Any]) -> bool:
    """Whether a space is put before a text."""
    text = json.dumps([document.get("normalizer"), document.get("pre_tokenizer")])
    return '"type": "Prepend"' in text or '"prepend_scheme": "first"' in text or '"prepend_scheme": "always"' in text


def _cutting(before: Mapping[str, Any] | None) -> str:
    """llama.cpp's name of the way in which words are cut. Raises ModelError for one that it has no name for."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS as SPLITS

    steps = [before] if before and before["type"] != "Sequence" else list((before or {}).get("pretokenizers", ()))
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True) and not steps[0].get("add_prefix_space"):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1].get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        pattern = steps[0]["pattern"].get("Regex")
        for name in NAMES:
            if name in SPLITS and pattern in (SPLITS[name], getattr(SPLITS[name], "pattern", None)):
                return name
    raise ModelError(
        f"how the tokenizer cuts words ({', '.join(kinds) or 'not at all'}) has no name in llama.cpp known here",
        allowed=", ".join(("gpt-2", "smollm", *NAMES)),
        fix=CONVERTER,
    )
