"""How likely a model finds the learnt tokens of documents laid end to end: the forward pass of training.

Knows batches (data/batches/packing.py) and kernels; knows no stage, optimizer or generation.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from danlu.data.batches.packing import Batch
from danlu.errors import ModelError
from danlu.model.company.check import (
    CODE_FAULTS,
    allowed,
    alone,
    difference,
    probe_texts,
    refuse_unless_causal,
    tells_too_little,
)
from danlu.model.company.company import Side
from danlu.model.company.documents import Documents, documents_of, shared_documents
from danlu.model.company.wiring import as_it_came, base_of, kind_of, run_in_company, wire, wiring_of
from danlu.model.compute import token_rows
from danlu.model.compute.kernels import fast_head_loss, fast_head_loss_of_rows, use_fast_kernels

# The same product of the same states: so much of what is allowed to a whole pass.
HEADS_APART = 0.05

# Names under which model families change their logits after the head's product.
_LOGIT_CHANGES = ("final_logit_softcapping", "logits_soft_cap", "logit_scale", "logits_scaling", "lm_head_multiplier")


def prepare(model: Any) -> dict[str, int]:
    """Make a model (with its adapter on) fast on documents laid end to end, where it is right on them.

    Returns how many modules of each kind took a fast kernel. Raises ModelError for a model that does not read from
    left to right.
    """
    was_training = model.training
    model.eval()
    try:
        texts = probe_texts(model)
        wanted = [alone(model, ids) for ids in texts]
        half = len(texts[-1]) // 2
        refuse_unless_causal(model, texts[-1][:half], wanted[-1][:half])
        reason = _wire(model)
        taken = use_fast_kernels(model)
        base = base_of(model)
        base.danlu_alone = reason or _difference(model, texts, wanted)
        base.danlu_plain_head = not base.danlu_alone and _head_is_a_product(base, texts[0])
    finally:
        model.train(was_training)
    return taken


def compute_twice(model: Any) -> None:
    """Let each block of a model in training compute its inside a second time for its gradients, instead of keeping it
    (Chen et al. 2016, arXiv:1604.06174): memory for one block and the borders of all, a third more time.

    Raises ModelError for a kind that transformers cannot do this with.
    """
    base = base_of(model)
    if not base.supports_gradient_checkpointing:
        raise ModelError(
            f"transformers computes no blocks of {kind_of(model)} a second time",
            fix="set train.gradient_checkpointing=false, and lower train.micro_batch_tokens instead",
        )
    options = {"use_reentrant": False}
    if hasattr(base, "activation_checkpointing_enable"):
        base.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:  # an earlier transformers
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def why_alone(model: Any) -> str:
    """Why a prepared model reads one document at a time; nothing if it reads many laid end to end."""
    return str(getattr(base_of(model), "danlu_alone", ""))


def _wire(model: Any) -> str:
    try:
        wire(model)
    except ModelError as error:
        return error.seen
    return ""


@torch.no_grad()
def _difference(model: Any, texts: list[list[int]], wanted: list[Tensor]) -> str:
    """What is wrong when the texts lie end to end; nothing if each answers as it does alone."""
    ids = [token for text in texts for token in text]
    joined = alone(model, ids)
    positions = torch.cat([torch.arange(len(text)) for text in texts]).tolist()
    try:
        got = _logits(model, ids, positions, tuple(map(len, texts)))
    except CODE_FAULTS as error:
        return f"{kind_of(model)}: its code fails on documents laid end to end: {error}"
    got = got.to(base_of(model).dtype)  # some give float32, whatever they compute in
    start, limit = len(texts[0]), allowed(model)
    found = tells_too_little(joined[start:], wanted[1], got.dtype, limit)
    for part, right in zip(got.split([start, len(texts[1])]), wanted, strict=True):
        found = found or difference(part, right, limit)
    return f"{kind_of(model)}: documents laid end to end: {found}" if found else ""


def _logits(model: Any, ids: list[int], positions: list[int], lengths: tuple[int, ...]) -> Tensor:
    device = base_of(model).device
    tokens, at = (torch.tensor(numbers, device=device)[None] for numbers in (ids, positions))
    side = Side(documents_of(lengths, str(device)))
    logits: Tensor = run_in_company(model, side, input_ids=tokens, position_ids=at).logits[0]
    return logits


def token_losses(model: Any, batch: Batch, temperature: float = 1.0) -> Tensor:
    """Negative log-likelihood in nats of each learnt token of `batch`: (learnt,) float32.

    The head works only where something is learnt. A head that is a plain product (no bias, nothing
    done to its logits) works in chunks of rows; any other goes through the model's own code. A model that was not
    prepared, or is not right on documents laid end to end, reads one after the other; so does one that a long document
    makes rotate all of them otherwise.

    Args:
        temperature: what logits are divided by, as when tokens were drawn.
    """
    base = base_of(model)
    if _reads_alone(base, batch):
        with as_it_came(base):
            return _losses_alone(model, batch, temperature)
    if _is_plain_product(base, base.get_output_embeddings()):
        return _head_losses(base, _body(base, batch)[batch.predict_at], batch, temperature)
    side, given = _row(batch)
    logits = run_in_company(base, side, **given, logits_to_keep=batch.predict_at).logits[0]
    if len(logits) == batch.tokens:  # some give all, whatever they are asked
        logits = logits[batch.predict_at]
    return torch.nn.functional.cross_entropy(logits.float() / temperature, batch.targets, reduction="none")


def losses_and_states(model: Any, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """`token_losses`, and what the body has made of the token before each learnt one: (learnt, dim)."""
    base = base_of(model)
    if not _reads_alone(base, batch) and _is_plain_product(base, base.get_output_embeddings()):
        states = _body(base, batch)[batch.predict_at]
        return _head_losses(base, states, batch, temperature), states
    return token_losses(model, batch, temperature), states_at(model, batch, batch.predict_at)


def document_log_probs(model: Any, batch: Batch) -> Tensor:
    """Log-probability in nats of all learnt tokens of each document together: (documents,) float32."""
    losses = token_losses(model, batch)
    return losses.new_zeros(len(batch.lengths)).index_add(0, batch.document_of, -losses)


def states_at(model: Any, batch: Batch, places: Tensor) -> Tensor:
    """What the body has made of the tokens at these places of the row: (places, dim)."""
    base = base_of(model)
    if not _reads_alone(base, batch):
        return _body(base, batch)[places]
    with as_it_came(base):
        parts = [base.base_model(ids[None], use_cache=False).last_hidden_state[0] for ids in batch.documents()]
        return _laid_out(batch).row(pad_sequence(parts, batch_first=True))[places]


def last_states(model: Any, batch: Batch) -> Tensor:
    """What the body has made of the last token of each document: (documents, dim)."""
    return states_at(model, batch, batch.ends)


def _reads_alone(base: Any, batch: Batch) -> bool:
    wiring = wiring_of(base)
    return wiring is None or bool(why_alone(base)) or max(batch.lengths) > (wiring.longest or math.inf)


def _body(base: Any, batch: Batch) -> Tensor:
    """(tokens, dim), the last states of a model that reads documents end to end."""
    side, given = _row(batch)
    states: Tensor = run_in_company(base.base_model, side, **given).last_hidden_state[0]
    return states


def _row(batch: Batch) -> tuple[Side, dict[str, Tensor]]:
    """The company of a batch's documents, and what the model is called with."""
    return Side(_laid_out(batch)), {
        "input_ids": batch.token_ids.unsqueeze(0),
        "position_ids": batch.positions.unsqueeze(0),
    }


def _laid_out(batch: Batch) -> Documents:
    if batch.places is None:
        return documents_of(batch.lengths, str(batch.token_ids.device))
    return shared_documents(batch.lengths, batch.places, batch.tokens)


def _head_losses(base: Any, states: Tensor, batch: Batch, temperature: float) -> Tensor:
    """(learnt,) float32, of a head that is a plain product, from the states (learnt, dim) before it."""
    head = base.get_output_embeddings()
    weight = token_rows.bare(head).weight
    states = states if temperature == 1.0 else states / temperature
    if token_rows.is_wrapper(head) and token_rows.is_active(head):
        rows = token_rows.rows_of(head)
        return fast_head_loss_of_rows(states, weight, batch.targets, rows.indices, rows.values)
    return fast_head_loss(states, weight, batch.targets)


def _losses_alone(model: Any, batch: Batch, temperature: float) -> Tensor:
    """The definition: each document by itself through the model's own code."""
    losses = []
    for at, ids in enumerate(batch.documents()):
        own = batch.document_of == at
        if bool(own.any()):
            logits = model(input_ids=ids[None], use_cache=False).logits[0][batch.positions[batch.predict_at[own]]]
            scaled = logits.float() / temperature
            losses.append(torch.nn.functional.cross_entropy(scaled, batch.targets[own], reduction="none"))
    return torch.cat(losses) if losses else batch.token_ids.new_zeros(0, dtype=torch.float32)


@torch.no_grad()
def _head_is_a_product(base: Any, ids: list[int]) -> bool:
    """Whether the logits are the body's last states times the head's weight, and nothing is done to them besides."""
    head, device = base.get_output_embeddings(), base.device
    if type(token_rows.bare(head)) is not torch.nn.Linear or base.base_model is base:
        return False
    side = Side(documents_of((len(ids),), str(device)))
    tokens, at = torch.tensor(ids, device=device)[None], torch.arange(len(ids), device=device)[None]
    given = {"input_ids": tokens, "position_ids": at}
    product = head(run_in_company(base.base_model, side, **given).last_hidden_state[0])
    logits = run_in_company(base, side, **given).logits[0].to(product.dtype)
    return not difference(product, logits.float(), HEADS_APART * allowed(base))


def _is_plain_product(base: Any, head: Any) -> bool:
    bare = token_rows.bare(head)
    return (
        getattr(base, "danlu_plain_head", False)
        and type(bare) is torch.nn.Linear
        and bare.bias is None
        and not (bare.weight.requires_grad and token_rows.is_wrapper(head))
        and not any(getattr(base.config, name, None) for name in _LOGIT_CHANGES)
    )
