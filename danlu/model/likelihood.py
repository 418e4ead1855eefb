"""How likely a model finds the learnt tokens of documents laid end to end: the forward pass of training.

Knows batches (data/packing.py) and kernels; knows no stage, optimizer or generation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from danlu.data.packing import Batch
from danlu.model.attention import documents_of, use_our_attention
from danlu.model.kernels import fast_head_loss, use_fast_kernels

# Names under which model families change their logits after the head's product.
_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


def prepare(model: Any) -> dict[str, int]:
    """Make a model (with its adapter on) fast on documents laid end to end.

    Returns how many modules of each kind took a fast kernel.
    """
    use_our_attention(model)
    return use_fast_kernels(model)


def token_losses(model: Any, batch: Batch) -> Tensor:
    """Negative log-likelihood in nats of each learnt token of `batch`: (learnt,) float32.

    The head works only where something is learnt. A head that is a plain product (frozen, no bias, nothing
    done to its logits) works in chunks of rows; any other goes through the model's own code.
    """
    base = _base(model)
    inputs = {
        "input_ids": batch.token_ids.unsqueeze(0),
        "position_ids": batch.positions.unsqueeze(0),
        "documents": documents_of(batch.lengths, str(batch.token_ids.device)),
        "use_cache": False,
    }
    head = base.get_output_embeddings()
    if _is_plain_product(base, head):
        hidden = getattr(base, base.base_model_prefix)(**inputs).last_hidden_state[0]  # (tokens, dim)
        return fast_head_loss(hidden[batch.predict_at], head.weight, batch.targets)
    logits = base(**inputs, logits_to_keep=batch.predict_at).logits[0]
    return torch.nn.functional.cross_entropy(logits.float(), batch.targets, reduction="none")


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _is_plain_product(base: Any, head: Any) -> bool:
    return (
        type(head) is torch.nn.Linear
        and head.bias is None
        and not head.weight.requires_grad
        and not any(getattr(base.config, name, None) for name in _LOGIT_CHANGES)
    )
