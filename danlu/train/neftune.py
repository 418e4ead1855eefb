"""Noise on the embeddings of texts that are learnt (Jain et al. 2023, arXiv:2310.05914, NEFTune).

To each number of a text's embeddings is added one drawn evenly from -m to m, m = alpha / sqrt(L d): L tokens in the
text, d numbers a token. Of texts in one row each has its own L. A beginning that several texts share has one noise, as
it has one dropout, by the L of the text that comes first in the row. Draws are the device's own generator's, which a
checkpoint keeps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from danlu.model.company.company import Side
from danlu.model.company.wiring import base_of, wiring_of


@contextmanager
def noisy_embeddings(model: Any, alpha: float | None) -> Iterator[None]:
    """Inside, what a model in training mode learns from is noisy; in evaluation mode, and afterwards, nothing is."""
    if alpha is None:
        yield
        return
    base = base_of(model)

    def add(module: Any, _given: Any, embedded: Tensor) -> Tensor:
        if not module.training:
            return embedded
        noise = torch.empty_like(embedded).uniform_(-1, 1)
        return embedded + noise * _sizes(base, embedded, alpha).to(embedded.dtype)

    hook = base.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


def _sizes(base: Any, embedded: Tensor, alpha: float) -> Tensor:
    """(tokens, 1) how far the noise of each token reaches: embedded (1, tokens, dim)."""
    tokens, dim = embedded.shape[-2:]
    wiring = wiring_of(base)
    company = wiring.company if wiring is not None else None
    if not isinstance(company, Side):  # a text by itself
        return embedded.new_full((tokens, 1), alpha / math.sqrt(tokens * dim), dtype=torch.float32)
    documents = company.documents
    lengths = torch.tensor(documents.lengths, dtype=torch.float32, device=embedded.device)
    own = lengths[documents.packed // documents.longest]
    return (alpha * (own * dim).rsqrt()).unsqueeze(1)
