"""Slots of keys and values that tell their tokens, for tests of what a store keeps."""

from __future__ import annotations

import torch

from danlu.generate.batch.kv import KVShape
from danlu.model.company.company import Width

SHAPE = KVShape((Width(2, 3, 3),) * 2, torch.float32, torch.device("cpu"))

ACTIONS = [*["open"] * 3, *["step"] * 8, *["fork"] * 2, "close", "ready", "narrow"]


def write(slot, start, tokens):
    """Keys and values that tell the token: key = token, value = -token, in every layer, head and dimension."""
    for keys, values in zip(slot.shelf.keys, slot.shelf.values, strict=True):
        for at, token in enumerate(tokens, start):
            keys[slot.index, :, at], values[slot.index, :, at] = token, -token


def read_prompt(slot, tokens):
    slot.append_shared(len(tokens), 0)
    write(slot, slot.length - len(tokens), tokens)


def take_step(slot, position, tokens):
    slot.append_step(position)
    write(slot, slot.length - slot.rows, tokens)


def held_bytes(store):
    """What the tensors really take."""
    tensors = [t for shelf in store.shelves.values() for t in shelf._tensors()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
