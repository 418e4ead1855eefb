"""Each fast kernel against its plain form: values and gradients."""

import pytest
import torch
from rounding import of_sums, unit

from danlu.device import Device
from danlu.model.adapters import attach
from danlu.model.company.attention import Scoring, fast_attention, plain_attention
from danlu.model.company.documents import Documents, causal_sight, documents_of
from danlu.model.compute import kernels, lora_kernel
from danlu.model.load import load_model
from danlu.model.lora_options import LoraOptions

CPU = Device("cpu", 1, 2**34, False)
# Of the largest number. The longest sum goes over the vocabulary of 50, and up to three stand in a row (forward, the
# softmax's, backward). In bfloat16 sums are held in float32, and each form stores up to five results rounded.
DTYPES = [(torch.float32, of_sums(1.0, terms=50, in_a_row=3)), (torch.bfloat16, 2 * 5 * unit(torch.bfloat16))]


def random(*shape, dtype=torch.float32, seed=0, grad=True):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.requires_grad_(grad)


def gradients(function, inputs):
    out = function(*inputs)
    wanted = [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad]
    return [out, *torch.autograd.grad(out, wanted, grad_outputs=random(*out.shape, dtype=out.dtype, seed=9))]


def assert_same(plain, fast, inputs, tolerance):
    for expected, seen in zip(gradients(plain, inputs), gradients(fast, inputs), strict=True):
        scale = expected.abs().max().clamp_min(1e-6)
        assert (expected.float() - seen.float()).abs().max() <= tolerance * scale


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_lora_linear_equals_its_definition(dtype, tolerance, bias):
    x, weight = random(2, 5, 16, dtype=dtype), random(24, 16, dtype=dtype, seed=1, grad=False)
    b = random(24, dtype=dtype, seed=2, grad=False) if bias else None
    low, high = random(4, 16, seed=3), random(24, 4, seed=4)
    assert_same(
        lora_kernel.plain_lora_linear, lora_kernel.fast_lora_linear, (x, weight, b, low, high, 2.0, 0.0), tolerance
    )


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_layers_that_share_an_input_equal_each_layer_alone(dtype, tolerance):
    x = random(2, 5, 16, dtype=dtype)
    sizes = ((24, 4), (8, 4), (8, 2))
    layers = [
        (random(out, 16, dtype=dtype, seed=out, grad=False), None, random(r, 16, seed=r), random(out, r, seed=9), scale)
        for (out, r), scale in zip(sizes, (2.0, 1.0, 0.5), strict=True)
    ]
    learnt = [tensor for layer in layers for tensor in layer[2:4]]

    def joined(outs):
        return torch.cat(outs, -1)

    def plain(x, *_):
        return joined([lora_kernel.plain_lora_linear(x, *layer, 0.0) for layer in layers])

    def fast(x, *_):
        return joined(lora_kernel.fast_lora_linears(x, layers, 0.0))

    assert_same(plain, fast, (x, *learnt), tolerance)


def test_a_shared_input_is_computed_once_and_not_held(tiny_model):
    model = attach(load_model(tiny_model, device=CPU, dtype=torch.float32), LoraOptions(lora_dropout=0.0), seed=0)
    attention = model.get_base_model().model.layers[0].self_attn
    layers = [attention.q_proj, attention.k_proj, attention.v_proj]
    x, other = random(3, 32, grad=False), random(3, 32, seed=5, grad=False)
    expected = [[layer(value) for layer in layers] for value in (x, other)]

    def assert_near(seen, out):  # the layer's sums over 32 inputs, then the adapter's
        tolerance = of_sums(float(out.detach().std()), terms=32, in_a_row=2)
        torch.testing.assert_close(seen, out, atol=tolerance, rtol=0)

    shared = lora_kernel.SharedInput(layers)
    shared.take_over()
    for value, outs in zip((x, other), expected, strict=True):
        for layer, out in zip(layers, outs, strict=True):
            assert_near(layer(value), out)
    assert shared._input is None
    assert_near(layers[2](x), expected[0][2])  # on its own, out of turn
    layers[0](x)
    assert_near(layers[1](other), expected[1][1])  # another input in between


def test_dropout_of_lora_drops_the_same_places_forward_and_backward():
    x = torch.ones(40, 50, requires_grad=True)
    weight, a, b = torch.zeros(50, 50), torch.eye(50), torch.eye(50)
    torch.manual_seed(1)
    out = lora_kernel.fast_lora_linear(x, weight, None, a, b, 1.0, 0.25)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(grad, out)  # with identity matrices the gradient is the mask itself


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
def test_each_element_is_dropped_with_probability_p(p):
    torch.manual_seed(0)
    n, rounds = 200, 4000
    hits = torch.zeros(n)
    for _ in range(rounds):
        hits[lora_kernel.dropped_positions(n, p, torch.device("cpu")).unique()] += 1
    share = hits / rounds
    error = (p * (1 - p) / rounds) ** 0.5
    draws = round(torch.log1p(torch.tensor(-p)).item() / torch.log1p(torch.tensor(-1 / n)).item())
    exact = 1 - (1 - 1 / n) ** draws
    assert abs(exact - p) < 1 / n  # rounding of the number of draws
    assert abs(share.mean() - exact) < error
    assert (share - exact).abs().max() < 5 * error


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("is_trained", [False, True])
def test_rms_norm_equals_its_definition(dtype, tolerance, is_trained):
    inputs = (random(3, 7, 32, dtype=dtype), random(32, dtype=dtype, seed=1, grad=is_trained), 1e-5)
    assert_same(kernels.plain_rms_norm, kernels.fast_rms_norm, inputs, tolerance)


def test_rms_norm_by_hand():
    # mean of squares of (3, 4) is 12.5; 3 / sqrt(12.5) = 0.848528, 4 / sqrt(12.5) = 1.131371
    out = kernels.fast_rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0)
    assert torch.allclose(out, torch.tensor([[0.848528, 2.262742]]))


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_swiglu_equals_its_definition(dtype, tolerance):
    inputs = (random(5, 16, dtype=dtype), random(5, 16, dtype=dtype, seed=1))
    assert_same(kernels.plain_swiglu, kernels.fast_swiglu, inputs, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("chunk", "block"), [(3, 5), (2, 4), (256, 1024)])
@pytest.mark.parametrize("is_trained", [False, True])
def test_head_loss_equals_its_definition(dtype, tolerance, chunk, block, is_trained, monkeypatch):
    monkeypatch.setattr(kernels, "LOSS_CHUNK", chunk)
    monkeypatch.setattr(kernels, "WEIGHT_BLOCK", block)
    hidden, weight = random(8, 16, dtype=dtype), random(50, 16, dtype=dtype, seed=1, grad=is_trained)
    targets = torch.tensor([0, 49, 7, 7, 12, 3, 31, 8])
    for loss in (lambda each: each, lambda each: each.sum().expand(8) / 3):  # rows that count otherwise, and alike
        plain, fast = (
            lambda *given, form=form, loss=loss: loss(form(*given))
            for form in (kernels.plain_head_loss, kernels.fast_head_loss)
        )
        assert_same(plain, fast, (hidden, weight, targets), tolerance)


def test_a_trained_head_makes_no_logits_twice_where_all_rows_count_alike(monkeypatch):
    monkeypatch.setattr(kernels, "_of_weight", lambda *_: pytest.fail("it made them again"))
    hidden, weight = random(8, 16), random(50, 16, seed=1)
    (kernels.fast_head_loss(hidden, weight, torch.arange(8)).sum() / 8).backward()
    assert weight.grad.abs().sum() > 0


def test_a_trained_head_of_no_rows_learns_nothing():
    hidden, weight = random(0, 16), random(50, 16, seed=1)
    kernels.fast_head_loss(hidden, weight, torch.arange(0)).sum().backward()
    assert not weight.grad.any()


def test_head_loss_of_equal_logits_is_the_log_of_the_vocabulary():
    loss = kernels.fast_head_loss(torch.zeros(2, 4), torch.ones(10, 4), torch.tensor([3, 9]))
    assert loss.tolist() == pytest.approx([2.302585, 2.302585])


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("short", [512, 0])
def test_attention_keeps_documents_apart(dtype, tolerance, window, heads, short, monkeypatch):
    monkeypatch.setattr("danlu.model.company.attention.SHORT_DOCUMENT", short)
    documents = documents_of((5, 1, 9, 4), "cpu")
    q = random(19, heads[0], 8, dtype=dtype)
    k, v = (random(19, heads[1], 8, dtype=dtype, seed=seed) for seed in (1, 2))
    assert_same(plain_attention, fast_attention, (q, k, v, documents, Scoring(0.35, window)), tolerance)


def test_a_change_in_one_document_does_not_reach_another():
    documents = documents_of((4, 6), "cpu")
    q, k, v = (random(10, 2, 8, seed=seed, grad=False) for seed in range(3))
    before = fast_attention(q, k, v, documents, Scoring(0.3))
    k[:4] += 5
    v[:4] -= 3
    after = fast_attention(q, k, v, documents, Scoring(0.3))
    assert torch.equal(before[4:], after[4:])
    assert not torch.equal(before[:4], after[:4])


def test_a_window_counts_the_token_itself():
    seen = causal_sight(4, 2, None, torch.device("cpu"))
    assert seen.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


def test_spreading_and_gathering_are_each_others_inverse():
    documents: Documents = documents_of((3, 1, 5), "cpu")
    x = random(9, 2, 4, grad=False)
    assert torch.equal(documents.gather(documents.spread(x)), x)
    assert torch.equal(documents.gather(documents.scatter(x)), x)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_the_loss_of_a_head_with_trained_rows_equals_its_definition(dtype, tolerance, monkeypatch):
    monkeypatch.setattr(kernels, "LOSS_CHUNK", 4)
    hidden, weight = random(9, 16, dtype=dtype), random(50, 16, dtype=dtype, seed=1, grad=False)
    rows, indices = random(3, 16, seed=2), torch.tensor([7, 0, 49])
    targets = torch.tensor([0, 7, 3, 49, 7, 12, 0, 5, 49])
    inputs = (hidden, weight, targets, indices, rows)
    assert_same(kernels.plain_head_loss_of_rows, kernels.fast_head_loss_of_rows, inputs, tolerance)
