"""Direct preference optimization against numbers worked out by hand, and against its closed form."""

import math

import pytest
import torch
from pydantic import ValidationError

from danlu.data.batches.pairs import Pair, collate_pairs
from danlu.data.example import Example
from danlu.device import Device
from danlu.model.load import load_model
from danlu.train.dpo import DpoOptions, dpo_losses, pair_log_probs


def losses(policy, reference, **options):
    pair = [torch.tensor(values, dtype=torch.float64) for values in (policy, reference)]
    return dpo_losses(*pair, DpoOptions(**options)).tolist()


ALIKE = [[-3.0, -4.0], [-10.0, -2.0]]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_at_the_start_the_loss_is_ln_2_whatever_the_data(smoothing):
    assert losses(ALIKE, ALIKE, label_smoothing=smoothing) == pytest.approx([math.log(2)] * 2)


def test_at_the_start_ipo_is_the_square_of_its_gap_and_hinge_is_one():
    assert losses(ALIKE, ALIKE, loss_type="ipo", beta=0.1) == pytest.approx([25.0, 25.0])  # (1 / (2 * 0.1))^2
    assert losses(ALIKE, ALIKE, loss_type="hinge") == pytest.approx([1.0, 1.0])


def test_losses_by_hand():
    policy, reference = [[-2.0, -5.0]], [[-3.0, -4.0]]  # the gap is (-2 + 5) - (-3 + 4) = 2
    assert losses(policy, reference, beta=0.5) == pytest.approx([math.log(1 + math.exp(-1.0))])
    smooth = 0.9 * math.log(1 + math.exp(-1.0)) + 0.1 * math.log(1 + math.exp(1.0))
    assert losses(policy, reference, beta=0.5, label_smoothing=0.1) == pytest.approx([smooth])
    assert losses(policy, reference, beta=0.25, loss_type="ipo") == pytest.approx([0.0])  # its gap is wanted: 2
    assert losses(policy, reference, beta=0.2, loss_type="hinge") == pytest.approx([0.6])
    assert losses(policy, reference, beta=0.5, loss_type="hinge") == pytest.approx([0.0])


def test_an_answer_is_as_likely_as_its_tokens_together_or_in_the_mean(tiny_model):
    """Of three and of two tokens, after one prompt, read off the model's own scores one text at a time."""
    model = load_model(tiny_model, device=Device("cpu", 1, 2**34, False), dtype=torch.float32)
    texts = ((5, 60, 7, 9, 11), (5, 60, 30, 31))
    chosen, rejected = (Example(ids, (False, False, *[True] * (len(ids) - 2))) for ids in texts)
    each = []
    with torch.no_grad():
        for ids in texts:
            scores = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
            each.append([float(scores[at - 1, ids[at]]) for at in range(2, len(ids))])
        sums, means = (
            pair_log_probs(model, collate_pairs([Pair(chosen, rejected)]), mean=mean) for mean in (False, True)
        )
    assert sums[0].tolist() == pytest.approx([sum(each[0]), sum(each[1])], rel=1e-5)
    assert means[0].tolist() == pytest.approx([sum(each[0]) / 3, sum(each[1]) / 2], rel=1e-5)


def test_the_first_gradient_is_half_of_beta_each_way():
    """(beta / 2) (grad log pi_l - grad log pi_w), where policy and reference are one."""
    policy = torch.tensor(ALIKE, dtype=torch.float64, requires_grad=True)
    dpo_losses(policy, policy.detach(), DpoOptions(beta=0.3)).sum().backward()
    assert policy.grad.tolist() == [pytest.approx([-0.15, 0.15])] * 2


def test_smoothing_belongs_to_the_sigmoid():
    with pytest.raises(ValidationError, match="label_smoothing has no effect with loss_type: ipo"):
        DpoOptions(loss_type="ipo", label_smoothing=0.1)


@pytest.mark.parametrize(
    ("beta", "wanted"),
    [(1.0, [0.08507, 0.17344, 0.31430, 0.42718]), (0.5, [0.00742, 0.04114, 0.20267, 0.74877])],
)
def test_with_endless_pairs_it_reaches_the_optimum_of_the_reward(beta, wanted):
    """Preferences drawn as Bradley and Terry have it from r = (0, 1, 2, 3): pi* is pi_ref exp(r / beta) / Z."""
    reference = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
    reward = torch.arange(4.0, dtype=torch.float64)
    logits = reference.clone().requires_grad_()
    better, worse = torch.tensor([(i, j) for i in range(4) for j in range(4) if i != j]).T
    often = torch.sigmoid(reward[better] - reward[worse])  # how often the first is preferred
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        policy = torch.log_softmax(logits, 0)
        pairs, expected = (torch.stack([of[better], of[worse]], 1) for of in (policy, reference))
        loss = (often * dpo_losses(pairs, expected, DpoOptions(beta=beta))).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    policy = torch.log_softmax(logits.detach(), 0)
    assert policy.exp().tolist() == pytest.approx(wanted, abs=2e-5)
    gauge = reward - beta * (policy - reference)  # one number for every answer
    assert float(gauge.max() - gauge.min()) < 1e-4
