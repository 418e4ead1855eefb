"""The forward pass of training against the plain model: documents laid end to end, each alone."""

from __future__ import annotations

import pytest
import torch
from losses import LENGTHS, alike, alone, assert_near, documents, examples, load, strong, with_adapter
from rounding import SUMS_IN_A_BLOCK, of_model, of_sums
from torch import nn

from danlu.data.batches.packing import collate
from danlu.data.chat import Chat
from danlu.data.example import Example
from danlu.errors import ModelError
from danlu.generate.engine import Engine
from danlu.model.adapters import attach
from danlu.model.company.attention import plain_attention
from danlu.model.company.company import Side
from danlu.model.company.documents import documents_of
from danlu.model.company.wiring import ATTENTION, run_in_company
from danlu.model.compute.token_rows import Rows, put_inputs
from danlu.model.likelihood import compute_twice, prepare, token_losses
from danlu.model.load import load_tokenizer
from danlu.model.lora_options import LoraOptions
from tiny import ARCHITECTURES


@pytest.mark.parametrize("texts", [documents, alike])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_in_one_row_each_document_has_the_loss_it_has_alone(directories, architecture, texts):
    model = load(directories[architecture])
    expected, batch = alone(model, texts=texts), collate(examples(texts=texts))
    assert len(expected.values) == sum(len(ids) - 1 for ids in texts())
    assert (batch.tokens < sum(batch.lengths)) == (texts is alike)
    assert_near(token_losses(model, batch), expected)
    prepare(model)
    assert_near(token_losses(model, batch), expected)


@pytest.mark.parametrize("texts", [documents, alike])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_the_same_with_an_adapter(directories, architecture, texts):
    model = with_adapter(directories[architecture])
    expected, batch = alone(model, texts=texts), collate(examples(texts=texts))
    without = alone(load(directories[architecture]), texts=texts)
    assert (expected.values - without.values).abs().max() > 0.1  # the adapter says something
    assert_near(token_losses(model, batch), expected)
    prepare(model)
    assert_near(token_losses(model, batch), expected)


@pytest.mark.parametrize(("texts", "checkpointing"), [(documents, False), (alike, False), (alike, True)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_weight_has_the_gradient_that_it_has_alone(directories, architecture, texts, checkpointing):
    """All weights trained; once more with each block computed a second time for its gradients."""
    model = load(directories[architecture]).train()
    for part in (part for part in model.modules() if isinstance(part, nn.Dropout)):  # GPT-2 has some
        part.p = 0.0
    expected = alone(model, texts=texts)
    expected.values.sum().backward()
    wanted = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    prepare(model)
    if checkpointing:
        compute_twice(model)
    token_losses(model, collate(examples(texts=texts))).sum().backward()
    tokens = sum(map(len, texts()))
    for name, weight in model.named_parameters():
        # A gradient's own sums, of all tokens, stand behind those of a pass forward and one back.
        size = float(wanted[name].abs().max())
        tolerance = of_sums(size, terms=tokens, in_a_row=2 * SUMS_IN_A_BLOCK * model.config.num_hidden_layers)
        torch.testing.assert_close(weight.grad, wanted[name], atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@torch.no_grad()
def test_these_models_would_show_documents_that_see_each_other(directories):
    model = load(directories["llama"])
    prepare(model)
    apart = token_losses(model, collate(examples()))
    ids = [token for document in documents() for token in document]
    joined = collate([Example(tuple(ids), tuple(e for x in examples() for e in x.learnt))])
    assert (token_losses(model, joined) - apart).abs().max() > 0.1


@torch.no_grad()
def test_these_models_would_show_a_window_that_is_off_by_one(directories):
    def changed(window):
        model = load(directories["mistral"])
        model.config.sliding_window = window
        prepare(model)
        return token_losses(model, collate(examples()))

    expected = alone(load(directories["mistral"]))
    assert_near(changed(16), expected)
    for window in (15, None):
        assert (changed(window) - expected.values).abs().max() > 30 * expected.tolerance


@pytest.mark.parametrize("texts", [documents, alike])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_of_the_adapter_are_those_of_the_plain_path(directories, architecture, texts):
    def gradients(model, losses):
        losses(model).sum().backward()
        return {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}

    plain = gradients(with_adapter(directories[architecture]), lambda model: alone(model, texts=texts).values)
    fast_model = with_adapter(directories[architecture])
    prepare(fast_model)
    fast = gradients(fast_model, lambda model: token_losses(model, collate(examples(texts=texts))))
    assert plain.keys() == fast.keys()
    there_and_back = 2 * (SUMS_IN_A_BLOCK * fast_model.config.num_hidden_layers + 1)
    for name, expected in plain.items():
        scale = expected.abs().max()
        assert scale > 0, name
        tolerance = of_sums(float(scale), terms=sum(map(len, texts())), in_a_row=there_and_back)
        assert (fast[name] - expected).abs().max() <= tolerance, name


@torch.no_grad()
def test_only_learnt_tokens_are_given_in_order(directories):
    def learnt(at):
        return at % 3 == 2

    model = load(directories["llama"])
    expected = alone(model, learnt)
    prepare(model)
    batch = collate(examples(learnt))
    assert len(expected.values) == batch.learnt_tokens < sum(LENGTHS) - len(LENGTHS)
    assert_near(token_losses(model, batch), expected)


@torch.no_grad()
def test_one_long_document_takes_another_way_to_the_same_loss(directories, monkeypatch):
    monkeypatch.setattr("danlu.model.company.attention.SHORT_DOCUMENT", 20)
    for architecture in ("llama", "mistral"):
        model = load(directories[architecture])
        expected = alone(model)
        prepare(model)
        assert_near(token_losses(model, collate(examples())), expected)


@torch.no_grad()
def test_a_head_with_an_adapter_goes_through_the_models_own_code(directories):
    model = with_adapter(directories["qwen3"], target_modules=("q_proj", "lm_head"))
    expected = alone(model)
    prepare(model)
    assert_near(token_losses(model, collate(examples())), expected)


@torch.no_grad()
def test_logits_that_the_family_changes_go_through_the_models_own_code(tmp_path):
    """Granite divides its logits; the bare product of hidden state and head would be wrong."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        "granite", vocab_size=320, num_key_value_heads=2, logits_scaling=8.0, pad_token_id=2, **shape
    )
    model = strong(AutoModelForCausalLM.from_config(config))
    expected = alone(model)
    model.requires_grad_(False)
    prepare(model)
    assert_near(token_losses(model, collate(examples())), expected)


@torch.no_grad()
def test_logits_that_are_changed_under_no_name_are_found_out(directories):
    """Nothing in the configuration says so; the body's states times the head are not what the model answers."""
    model = load(directories["llama"]).requires_grad_(False)
    own = model.forward

    def halved(**given):
        out = own(**given)
        out.logits = out.logits / 2
        return out

    model.forward = halved
    expected = alone(model)
    prepare(model)
    assert_near(token_losses(model, collate(examples())), expected)


def test_a_prepared_model_refuses_rows_without_documents(directories):
    model = load(directories["llama"])
    prepare(model)
    with pytest.raises(ModelError, match="laid end to end or to slots; it got neither"):
        model(input_ids=torch.tensor([[5, 6, 7]]))


@torch.no_grad()
def test_the_company_hears_what_each_layer_wants(directories):
    """Each layer's queries, keys and values of all tokens, its scale and its window."""
    model = with_adapter(directories["mistral"])
    ids = documents()[0]
    expected = model(input_ids=torch.tensor([ids])).logits
    prepare(model)
    windows = []

    class Told(Side):
        def attend(self, store, q, k, v, scoring, dropout=0.0):
            windows.append((store, scoring.window))
            assert (q.shape, k.shape, v.shape) == ((len(ids), 4, 8), (len(ids), 2, 8), (len(ids), 2, 8))
            return plain_attention(q, k, v, self.documents, scoring)

    given = {"input_ids": torch.tensor([ids]), "position_ids": torch.arange(len(ids)).unsqueeze(0)}
    seen = run_in_company(model, Told(documents_of((len(ids),), "cpu")), **given).logits
    torch.testing.assert_close(seen, expected, atol=of_model(expected, model.config), rtol=0)
    assert windows == [(0, 16), (1, 16)]
    prepare(model)  # once more changes nothing
    assert model.get_base_model().config._attn_implementation == ATTENTION


def test_a_layout_made_while_answering_serves_training(directories, monkeypatch):
    """The engine's scores and training share the cache of layouts."""
    monkeypatch.setattr("danlu.model.company.attention.SHORT_DOCUMENT", 20)
    model = load(directories["mistral"])
    engine = Engine.around(model, Chat.of(load_tokenizer(directories["mistral"]), model.generation_config))
    batch = collate([examples()[4]])
    engine.logits(batch.token_ids.tolist())
    token_losses(model, batch).sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


# --- rows of tokens

ROWS = (1, 7, 200)


def with_rows(directory):
    """An adapter with rows of tokens that are not the base's."""
    model = attach(load(directory), LoraOptions(r=2, lora_dropout=0), 0, ROWS)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in (weight for weight in model.parameters() if weight.requires_grad):
            weight.normal_(0, 0.2, generator=generator)
    return model.eval()


def batch_of_rows():
    ids = [tuple(ROWS[at % 3] if at % 4 == 2 else token for at, token in enumerate(text)) for text in documents()]
    return collate([Example(text, tuple(at > 0 for at in range(len(text)))) for text in ids])


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text", "gpt2"])
def test_rows_of_tokens_learn_as_in_pefts_own_code(directories, architecture):
    batch, seen = batch_of_rows(), []
    for is_prepared in (False, True):
        model = with_rows(directories[architecture])
        if is_prepared:
            assert prepare(model)["rows"] == 2
            assert model.get_base_model().danlu_plain_head
        losses = token_losses(model, batch)
        losses.sum().backward()
        seen.append([losses.detach(), *(weight.grad for weight in model.parameters() if weight.requires_grad)])
    for plain, fast in zip(*seen, strict=True):
        scale = float(plain.abs().max().clamp_min(1e-6))
        assert (plain - fast).abs().max() <= scale * of_sums(1.0, terms=320 * sum(LENGTHS), in_a_row=12)


def test_a_token_that_also_pads_is_learnt_where_it_is_read():
    """torch's embedding gives the padding token no gradient; here nothing is padded, and it is often the end."""
    embedding = nn.Embedding(5, 3, padding_idx=2)
    rows = Rows(torch.tensor([2]), torch.ones(1, 3, requires_grad=True))
    put_inputs(rows, torch.tensor([1, 2]), embedding(torch.tensor([1, 2])).detach()).sum().backward()
    assert rows.values.grad.tolist() == [[1, 1, 1]]


@torch.no_grad()
def test_rows_that_are_switched_off_or_merged_are_obeyed(directories):
    model, batch = with_rows(directories["llama"]), batch_of_rows()
    expected, base = token_losses(model, batch), token_losses(load(directories["llama"]), batch)
    tolerance = of_sums(float(expected.max()), terms=320, in_a_row=12)
    prepare(model)
    with model.disable_adapter():
        torch.testing.assert_close(token_losses(model, batch), base, atol=tolerance, rtol=0)
    torch.testing.assert_close(token_losses(model, batch), expected, atol=tolerance, rtol=0)
