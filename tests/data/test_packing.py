"""Batches: nothing padded, nothing lost, the same whenever it is asked."""

from danlu.data.batches.packing import collate, micro_batches
from danlu.data.example import Example


def example(*pairs):
    return Example(tuple(token for token, _ in pairs), tuple(bool(learnt) for _, learnt in pairs))


def test_documents_lie_end_to_end_and_each_target_follows_its_place():
    batch = collate([example((5, 0), (6, 1), (7, 1)), example((8, 0), (9, 1))])
    assert batch.token_ids.tolist() == [5, 6, 7, 8, 9]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1]
    assert batch.predict_at.tolist() == [0, 1, 3]
    assert batch.targets.tolist() == [6, 7, 9]
    assert batch.document_of.tolist() == [0, 0, 1]
    assert (batch.lengths, batch.tokens, batch.learnt_tokens) == ((3, 2), 5, 3)


def test_a_first_token_is_never_predicted_from_the_document_before():
    batch = collate([example((1, 1), (2, 1)), example((3, 1), (4, 1))])
    assert batch.targets.tolist() == [2, 4]


def test_micro_batches_hold_every_index_once_within_the_limit():
    lengths = [5, 90, 7, 30, 31, 8, 200, 1]
    groups = micro_batches(lengths, range(8), max_tokens=64)
    assert sorted(i for group in groups for i in group) == list(range(8))
    assert all(sum(lengths[i] for i in group) <= 64 or len(group) == 1 for group in groups)
    assert groups[0] == [6]  # over the limit: alone, and first


def texts_of(batch):
    return [ids.tolist() for ids in batch.documents()]


def test_what_documents_begin_with_alike_stands_in_the_row_once():
    whole = [(9, 1, 2, 3, 4), (7, 1, 2, 3, 8), (9, 1, 2), (9, 1, 2, 3, 5, 6)]
    batch = collate([example(*((token, at > 0) for at, token in enumerate(text))) for text in whole])
    assert texts_of(batch) == [list(text) for text in whole]
    assert batch.lengths == (5, 5, 3, 6)
    assert batch.tokens == 5 + 5 + 0 + 2
    assert batch.targets.tolist() == [token for text in whole for token in text[1:]]
    assert batch.document_of.tolist() == [at for at, text in enumerate(whole) for _ in text[1:]]
    before = batch.token_ids[batch.predict_at].tolist()
    assert before == [token for text in whole for token in text[:-1]]
    assert batch.token_ids[batch.ends].tolist() == [text[-1] for text in whole]


def test_each_place_of_the_row_has_its_position_in_every_document():
    whole = [(1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 6), (8, 8)]
    batch = collate([example(*((token, 1) for token in text)) for text in whole])
    for at, length in zip(batch.places, batch.lengths, strict=True):
        assert batch.positions[at[:length]].tolist() == list(range(length))


def test_a_shared_token_may_be_learnt_in_one_document_and_not_in_another():
    learnt = Example((5, 6, 7, 8), (False, False, True, True), weights=(0.0, 0.0, 0.5, 2.0))
    context = Example((5, 6, 7, 9), (False, False, False, True))
    batch = collate([context, learnt])
    assert batch.tokens == 5
    assert batch.targets.tolist() == [9, 7, 8]
    assert batch.document_of.tolist() == [0, 1, 1]
    assert batch.weights.tolist() == [1.0, 0.5, 2.0]


def test_a_little_in_common_is_not_worth_a_layout():
    long = tuple(range(100, 140))
    batch = collate([Example((1, *long), (True,) * 41), Example((1, *reversed(long)), (True,) * 41)])
    assert batch.places is None
    assert batch.tokens == 82
