"""Every kind of model in the zoo builds and answers, and its answers depend on all that stands before."""

import pytest
import torch
from zoo import KINDS, LOOKS_AHEAD, VARIANTS, VOCABULARY, plain_logits, tiny_model, why_not

NAMES = [name for name in (*KINDS, *VARIANTS) if not why_not(name)]
# No token twice: equal ones would be equally good to a kind that chooses among them.
IDS = (3 + torch.randperm(VOCABULARY - 3, generator=torch.Generator().manual_seed(1))[:40]).tolist()

SHORT_SIGHTED = {
    "mistral",
    "mixtral windowed",
    "starcoder2 windowed",
}  # every layer has a window: two of them see 14 tokens back


@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_model_is_the_same_twice_and_depends_on_its_first_token(name):
    model = tiny_model(name)
    assert sum(weight.numel() for weight in model.parameters()) < 200_000
    logits = plain_logits(model, IDS)
    assert logits.shape == (len(IDS), VOCABULARY)
    assert logits.isfinite().all()
    again = tiny_model(name).state_dict()
    assert all(torch.equal(weight, again[key]) for key, weight in model.state_dict().items())
    first = len(IDS) - 12 if name in SHORT_SIGHTED else 0
    other = [*IDS[:first], IDS[first] ^ 1, *IDS[first + 1 :]]
    assert (plain_logits(model, other) - logits)[-1].abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_model_reads_a_beginning_alike_whatever_follows(name):
    model = tiny_model(name)
    text = plain_logits(model, IDS)
    worst = max((plain_logits(model, IDS[:end]) - text[:end]).abs().max() for end in (5, 20, 33))
    assert (worst > 1e-3) == (name in LOOKS_AHEAD)
    assert worst < 1e-4 or name in LOOKS_AHEAD
