"""What a training program keeps in memory beside the weights: facts of its code, as numbers.

Two programs that train the same model on the same tokens differ by a factor of two, by what of each block they keep
for the way back and by how long logits live. DANLU is this one. Others stand beside the rows they are checked against
(benchmarks/plan_rows.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Program:
    """Bytes are of one number; a model's own format has `d` of them (2 in bfloat16).

    Attributes:
        rms_norm: of what an RMSNorm reads, kept for the way back; 0 is d. LayerNorm keeps d everywhere.
        trained_norm: more where its weight is trained.
        gated: how many inner vectors a gated feed-forward part keeps: gate and up, and the gate's activation.
        has_joined_heads: whether what queries, keys and values were cut from is kept as well.
        repeats_keys: whether attention without scores repeats keys and values for each head of queries.
        adapter_weight: of an adapter's weight, its gradient and each of the optimizer's means.
        adapter_input: of what an adapter reads, beside what is kept anyway; what dropout adds to it.
        adapter_dropout: see there.
        shares_input: whether layers that read the same keep it once for their adapters.
        quantized_input: of what a quantized layer reads, kept although its weight is frozen.
        quantized_heads: copies of the head, in the model's format, that loading quantized weights leaves.
        logit: of each logit of a pass, from the loss to the first step back.
        chunk_tokens, chunk_logit: where logits are made for so many tokens at a time: of each of those.
        head_rows: tokens whose logits' gradient stands at once, in the model's format, for a trained head.
        score: of each of attention's scores, where it keeps them; 0 is d.
        remakes_scores: whether attention that keeps no scores makes those of one block whole on its way back.
        keeps_freed: whether logits that are gone still lie in memory when a block is computed again.
        master: of a weight under full tuning in 16 bits: its float32 copy.
        gradient: of a weight under full tuning; 0 is d.
        mean: of each of the optimizer's means of such a weight; 0 is d.
        forgets: whether keys and values that no window reaches any more are given up.
        rest: of each number between blocks, token by token and block by block: what no other line counts.
        holes: likewise, with and without checkpointing: what lies free between what stays.
        slack: share of what is allocated that the allocator holds besides.
        floor: bytes of the runtime, with nothing loaded.
        word: of a tokenizer, for each token that it knows.
    """

    rms_norm: float = 4
    trained_norm: float = 2
    gated: float = 3
    has_joined_heads: bool = False
    repeats_keys: bool = False
    adapter_weight: float = 4
    adapter_input: float = 4
    adapter_dropout: float = 1
    shares_input: bool = False
    quantized_input: float = 0
    quantized_heads: float = 0
    logit: float = 12
    chunk_tokens: int = 0
    chunk_logit: float = 0
    head_rows: int = 0
    score: float = 6
    remakes_scores: bool = False
    keeps_freed: bool = False
    forgets: bool = True
    master: float = 0
    gradient: float = 0
    mean: float = 0
    rest: float = 0
    holes: float = 0
    slack: float = 0
    floor: float = 0
    word: float = 0


# Norms keep what they read, adapters of one input share it, 5 % of whose places are noted in 8 bytes each, and logits
# exist for 256 tokens at a time: scores, their float32 copy, its logarithms, and the gradient.
_KEPT: dict[str, Any] = {
    "rms_norm": 0, "trained_norm": 0, "gated": 2, "adapter_input": 2, "adapter_dropout": 0.41, "shares_input": True,
    "logit": 0, "chunk_tokens": 256, "chunk_logit": 12, "head_rows": 1024, "score": 0, "master": 4, "gradient": 4,
    "mean": 4, "forgets": False,
}  # fmt: skip
# `rest` of a card is guessed from a processor's: texts are laid side by side for attention, and the way back of a block
# holds more than the block. Besides, what the driver and torch's own libraries take, and what lies in holes.
DANLU = Program(**_KEPT, rest=3.7, slack=0.05, floor=0.6e9)
# On a processor the gradient is written over the scores. `holes`, `slack` and `floor` (the interpreter with torch and
# transformers loaded) are fitted on runs (benchmarks/plan.py --runs); Gemma's tokenizer of 262,144 tokens takes 0.3 GB.
DANLU_CPU = Program(
    **_KEPT | {"chunk_logit": 2}, rest=1.1, holes=2.97, slack=0.106, floor=0.509e9, word=1000, keeps_freed=True
)
