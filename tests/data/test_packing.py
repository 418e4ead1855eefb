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
