"""SFT: which records become examples, and that training on them lowers the loss of the answers."""

import pytest
import torch

from danlu.data.chat import Chat
from danlu.data.formats import Conversation
from danlu.device import Device
from danlu.errors import DataError
from danlu.journal import Journal
from danlu.model.adapters import LoraOptions, attach
from danlu.model.likelihood import prepare, token_losses
from danlu.model.load import load_model, load_tokenizer
from danlu.train.loop import Run, TrainOptions, train
from danlu.train.sft import sft_examples, sft_stage

CPU = Device("cpu", 1, 2**34, False)


def conversation(question, answer, place="d:1"):
    return Conversation(({"role": "user", "content": question}, {"role": "assistant", "content": answer}), place)


@pytest.fixture
def chat(tiny_model):
    return Chat.of(load_tokenizer(tiny_model), None)


def test_a_long_example_is_an_error_by_default(chat):
    record = conversation("q", "a long answer " * 20, "d:7")
    with pytest.raises(DataError, match=r"d:7: .* tokens, over data\.max_length=40"):
        sft_examples([record], chat, max_length=40)


def test_a_long_example_is_skipped_and_listed(chat):
    skipped = []
    records = [conversation("q", "a long answer " * 20, "d:1"), conversation("q", "short", "d:2")]
    kept = sft_examples(records, chat, max_length=40, too_long="skip", skip=lambda *fault: skipped.append(fault))
    assert [example.place for example in kept] == ["d:2"]
    assert skipped[0][0] == "d:1"
    assert "tokens" in skipped[0][1]


def test_a_long_example_is_cut_where_it_still_teaches(chat):
    (example,) = sft_examples([conversation("q", "word " * 90)], chat, max_length=40, too_long="truncate")
    assert len(example.token_ids) == 40
    assert example.learnt[-1]
    with pytest.raises(DataError, match="teaches nothing"):
        sft_examples([conversation("word " * 90, "a")], chat, max_length=40, too_long="truncate")


def test_a_tiny_model_learns_its_answers(tmp_path, tiny_model, chat):
    records = [conversation(f"question {i}", "the quick brown fox jumps over the lazy dog") for i in range(16)]
    examples = sft_examples(records, chat, max_length=200)
    model = attach(load_model(tiny_model, device=CPU, dtype=torch.float32), LoraOptions(lora_dropout=0.0), seed=0)
    taken = prepare(model)
    assert taken == {"lora": 14, "norm": 5, "swiglu": 2}
    options = TrainOptions(batch_size=8, num_train_epochs=20, learning_rate=1e-2)
    run = Run(examples, examples[:2], seed=0, identity={})
    journal = Journal(tmp_path)
    train(sft_stage(CPU), model, run, options, journal, CPU)
    losses = [row["loss"] for row in journal.metrics()]
    assert losses[-1] < losses[0] - 0.4
    batch = sft_stage(CPU).collate(examples[:2])
    with torch.no_grad():
        assert float(token_losses(model.eval(), batch).mean()) == pytest.approx(
            journal.metrics()[-1]["eval_loss"], abs=1e-5
        )
    assert (journal.adapter / "adapter_model.safetensors").exists()
