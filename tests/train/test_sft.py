"""SFT: which records become examples, and that training on them lowers the loss of the answers."""

from itertools import pairwise

import pytest
import torch

from danlu.data.chat import Chat
from danlu.data.example import Example
from danlu.data.formats import Conversation, Text, read_records
from danlu.device import Device
from danlu.errors import DataError, ModelError
from danlu.evaluate.held_out import example_losses
from danlu.journal import Journal
from danlu.model.adapters import attach
from danlu.model.likelihood import prepare, token_losses
from danlu.model.load import load_model, load_tokenizer
from danlu.model.lora_options import LoraOptions
from danlu.train.batches import Shuffled
from danlu.train.loop import Run, TrainOptions, train
from danlu.train.sft import left_out_counts, refuse_unknown_tokens, sft_examples, sft_stage, windows

CPU = Device("cpu", 1, 2**34, False)


def conversation(question, answer, place="d:1"):
    return Conversation(({"role": "user", "content": question}, {"role": "assistant", "content": answer}), place)


@pytest.fixture
def chat(tiny_model):
    return Chat.of(load_tokenizer(tiny_model), None)


def test_a_long_example_is_an_error_by_default(chat):
    record = conversation("q", "a long answer " * 20, "d:7")
    with pytest.raises(DataError, match=r"d:7: .* tokens, over data\.max_length=40"):
        list(sft_examples([record], chat, max_length=40))


def test_a_long_example_is_skipped_and_listed(chat):
    skipped = []
    records = [conversation("q", "a long answer " * 20, "d:1"), conversation("q", "short", "d:2")]
    kept = list(sft_examples(records, chat, max_length=40, too_long="skip", skip=lambda *fault: skipped.append(fault)))
    assert [example.place for example in kept] == ["d:2"]
    assert skipped[0][0] == "d:1"
    assert "tokens" in skipped[0][1]


def test_a_long_example_is_cut_where_it_still_teaches(chat):
    (example,) = sft_examples([conversation("q", "word " * 90)], chat, max_length=40, too_long="truncate")
    assert len(example.token_ids) == 40
    assert example.learnt[-1]
    with pytest.raises(DataError, match="teaches nothing"):
        list(sft_examples([conversation("word " * 90, "a")], chat, max_length=40, too_long="truncate"))


def test_a_tiny_model_learns_its_answers(tmp_path, tiny_model, chat):
    records = [conversation(f"question {i}", "the quick brown fox jumps over the lazy dog") for i in range(16)]
    examples = list(sft_examples(records, chat, max_length=200))
    model = attach(load_model(tiny_model, device=CPU, dtype=torch.float32), LoraOptions(lora_dropout=0.0), seed=0)
    taken = prepare(model)
    assert taken == {"lora": 14, "norm": 5, "swiglu": 2}
    options = TrainOptions(batch_size=8, num_train_epochs=20, learning_rate=1e-2)
    run = Run(Shuffled(examples, 8, seed=0), examples[:2], seed=0, identity={})
    journal = Journal(tmp_path)
    train(sft_stage(CPU), model, run, options, journal, CPU)
    losses = [row["loss"] for row in journal.metrics()]
    assert losses[-1] < losses[0] - 0.4
    batch = sft_stage(CPU).collate(examples[:2])
    with torch.no_grad():
        assert float(token_losses(model.eval(), batch).mean()) == pytest.approx(
            journal.metrics()[-1]["eval_loss"], abs=1e-5
        )


def test_weights_count_in_loss_and_mean_as_by_hand(tiny_model):
    """sum(w * loss) / sum(w), whatever the cut; the figures of the metrics count tokens."""
    ids, other = (5, 60, 7, 9, 11), (30, 31, 32)
    weighted = Example(ids, (False, True, True, False, True), weights=(0.0, 0.5, 0.5, 0.0, 2.0))
    plain = Example(other, (False, True, True))
    model = load_model(tiny_model, device=CPU, dtype=torch.float32)

    def losses(tokens):
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1)
        return [-float(scores[at - 1, tokens[at]]) for at in range(1, len(tokens))]

    one, two = losses(ids), losses(other)
    by_hand = [0.5 * one[0] + 0.5 * one[1] + 2.0 * one[3], two[0] + two[1]]
    stage = sft_stage(CPU)
    assert [stage.weight(weighted), stage.weight(plain)] == [3.0, 2.0]
    assert [stage.count(weighted), stage.count(plain)] == [3, 2]
    with torch.no_grad():
        joined = float(stage.loss(model, stage.collate([weighted, plain])).total)
    assert joined == pytest.approx(sum(by_hand), rel=1e-5)
    for most in (1, 100):
        measured = example_losses(model, [weighted, plain], CPU, most)
        assert [total for total, _ in measured] == pytest.approx(by_hand, rel=1e-5)
        assert [weight for _, weight in measured] == [3.0, 2.0]


@pytest.mark.parametrize(("size", "overlap"), [(8, 1), (8, 3), (7, 6), (100, 1)])
def test_windows_learn_every_token_once(size, overlap):
    whole = Example(tuple(range(30)), (False, *[True] * 29), "d:1")
    parts = list(windows(whole, size, overlap))
    learnt = [t for part in parts for t, is_learnt in zip(part.token_ids, part.learnt, strict=True) if is_learnt]
    assert learnt == list(range(1, 30))
    assert all(len(part.token_ids) <= size for part in parts)
    for before, after in pairwise(parts):
        assert after.token_ids[:overlap] == before.token_ids[-overlap:]


def test_long_documents_are_cut_into_windows_and_conversations_are_not(chat):
    parts = list(sft_examples([Text("word " * 90, "d:1")], chat, max_length=40, too_long="window"))
    (whole,) = sft_examples([Text("word " * 90, "d:1")], chat, max_length=4000)
    assert sum(part.learnt_tokens for part in parts) == whole.learnt_tokens
    with pytest.raises(DataError, match="only a document without turns is cut into windows"):
        list(sft_examples([conversation("q", "word " * 90)], chat, max_length=40, too_long="window"))


def test_a_token_without_a_row_is_said_before_training(tiny_model, chat):
    model = load_model(tiny_model, device=CPU, dtype=torch.float32)
    refuse_unknown_tokens([Example((1, 2), (False, True))], model, chat.tokenizer)
    chat.tokenizer.add_tokens(["<new>"])
    (example,) = sft_examples([conversation("q", "<new>", "d:3")], chat, max_length=200)
    with pytest.raises(ModelError, match=r"d:3: the tokenizer makes token \d+, '<new>'; the model's embedding has"):
        refuse_unknown_tokens([example], model, chat.tokenizer)


def test_what_templates_leave_out_is_counted():
    examples = [Example((1,), (False,), left_out=what) for what in ((), ("a", "a"), ("a", "b"))]
    assert left_out_counts(examples) == {"a": 2, "b": 1}


def test_an_answer_labelled_false_is_not_imitated_whoever_brings_it(tmp_path, chat):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"prompt": "q", "completion": "yes", "label": true}\n{"prompt": "p", "completion": "no", "label": 0}\n'
    )
    records, left_out = list(read_records(path)), []
    with pytest.raises(DataError, match=r"a\.jsonl:2: the label says that this answer is not wanted"):
        list(sft_examples(records, chat, max_length=64))
    (kept,) = sft_examples(records, chat, max_length=64, skip=lambda place, reason: left_out.append(place))
    assert (kept.place, left_out) == ("a.jsonl:1", ["a.jsonl:2"])
